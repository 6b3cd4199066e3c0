"""Model FLOPs of a batch: what the maths of one training pass asks for, from shapes alone.

Counted are matrix products, convolutions and attention, a multiplication and an addition as two. A weight of
a linear layer costs 2 a position forward, 2 more where the gradient passes on to the input of the layer, and
2 more where the weight itself learns: the usual 6 N of a model that learns, 4 N of a frozen one that a
gradient passes through, 2 N of one that only reads. Attention costs 4 a channel and pair of positions forward
and twice that backward, for the pairs that causal attention inside a document has. The head is counted at
labels. Not counted are padding, what is computed a second time (gradient checkpointing, logits of a chunk),
norms, activations, the optimizer, and pictures that a cache knows.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from dreamllm.models.decoders.condition import Condition
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.jam import JAM
from dreamllm.models.language_model import sliding_window
from dreamllm.models.quantization import num_weights
from dreamllm.sequence.batch import Batch

FORWARD: Final = 2
"""FLOPs of a weight at a position; as many for the gradient of the input, and for that of the weight."""

Flops = Callable[[Any], int]
"""A micro-batch to the FLOPs of its pass, forward and backward."""


def flops_of(module: nn.Module, *, noises_per_image: int = 1) -> Flops | None:
    """What counts the FLOPs of micro-batches of a model, as it is frozen now; None for other modules than
    DreamLLM, JAM and language models, and where those of the language model are not known.
    """
    if isinstance(module, DreamLLM):
        return DreamLLMFlops.of(module, noises_per_image=noises_per_image)
    language_model = module.language_model if isinstance(module, JAM) else module
    if not isinstance(language_model, PreTrainedModel) or language_model.get_output_embeddings() is None:
        return None
    found = LanguageModelFlops.of(language_model, has_gradient=_learns(language_model))
    return None if found is None else found.of_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageModelFlops:
    """What a language model costs."""

    position: int
    """A position, without attention and head."""
    pair: int
    """A pair of positions in one layer, one of which attends to the other."""
    label: int
    """A position with a label: the head."""
    num_layers: int
    """Those whose attention sees all of a document before a position."""
    num_window_layers: int
    """Those whose attention sees as far as the window."""
    window: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, *, has_gradient: bool) -> Self | None:
        """Of a stock language model as it is frozen now.

        `has_gradient` says whether one passes through it to something that learns. None where a position uses
        a part of the weights (experts), or where there are two towers.
        """
        decoder, config = model.get_decoder(), model.config.get_text_config()
        if not getattr(model, "takes_segments", True) or any(p.ndim > 2 for p in decoder.parameters()):
            return None
        heads, window = config.num_attention_heads, sliding_window(model)
        channels = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
        layer_types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        num_window_layers = 0 if window is None else list(layer_types).count("sliding_attention")
        return cls(
            position=linear_flops(decoder, has_gradient=has_gradient),
            pair=(3 if has_gradient else 1) * 2 * FORWARD * channels,
            label=linear_flops(model.get_output_embeddings(), has_gradient=has_gradient),
            num_layers=config.num_hidden_layers - num_window_layers,
            num_window_layers=num_window_layers,
            window=window,
        )

    def of_batch(self, batch: Batch) -> int:
        """Of the documents of a batch."""
        lengths = document_lengths(batch)
        pairs = self.num_layers * num_pairs(lengths)
        pairs += self.num_window_layers * num_pairs(lengths, window=self.window)
        return self.position * int(lengths.sum()) + self.pair * pairs + self.label * batch.num_labels


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamLLMFlops:
    """What a DreamLLM costs."""

    language_model: LanguageModelFlops
    image_read: int
    """A picture read from pixels: the vision encoder."""
    image_told: int
    """A picture read, from pixels or a cache: the visual projector."""
    image_encoded: int
    """A target from pixels: the encoder of the VAE."""
    image_drawn: int
    """A target: the condition projector, and the denoiser as often as it gets a noise."""

    @classmethod
    def of(cls, model: DreamLLM, *, noises_per_image: int = 1) -> Self | None:
        """Of a model as it is frozen now; None where that of its language model is not known.

        Vision encoder and VAE are run forward, the denoiser forward and backward to its condition, all of
        them as stock code does it, on tensors without memory.
        """
        into = (model.visual_projector, model.dream_queries, model.special_token_rows, model.language_model)
        has_gradient = any(_learns(part) for part in into if part is not None)
        language_model = LanguageModelFlops.of(model.language_model, has_gradient=has_gradient)
        if language_model is None:
            return None
        eye, projector = _without_memory(model.vision_encoder), _without_memory(model.visual_projector)
        decoder, connector = _without_memory(model.image_decoder), _without_memory(model.condition_projector)
        if hasattr(decoder.denoiser, "disable_gradient_checkpointing"):
            decoder.denoiser.disable_gradient_checkpointing()
        width = model.language_model.get_input_embeddings().embedding_dim
        draws = has_gradient or _learns(model.condition_projector) or _learns(model.image_decoder)
        states = _blank(1, model.config.num_dream_queries, width).requires_grad_(has_gradient)
        tokens = _blank(1, model.config.num_dream_queries, decoder.condition_width).requires_grad_(draws)
        condition = Condition(tokens, _blank(1, decoder.pooled_width).requires_grad_(draws))
        latents = _blank(1, *decoder.latent_shape)
        px = model.vision_encoder.image_px
        return cls(
            language_model=language_model,
            image_read=_count(lambda: eye(_blank(1, 3, px, px))),
            image_told=_count(lambda: projector(_blank(1, eye.num_tokens, eye.width))),
            image_encoded=_count(lambda: decoder.moments(_blank(1, 3, *decoder.image_size))),
            image_drawn=_count(lambda: connector(states))
            + noises_per_image * _count(lambda: decoder.predict(latents, _blank(1), condition)),
        )

    def __call__(self, batch: Batch) -> int:
        """Of the documents and pictures of a batch."""
        return (
            self.language_model.of_batch(batch)
            + self.image_read * len(batch.vision_pixels)
            + self.image_told * batch.image_slots.shape[0]
            + self.image_encoded * len(batch.target_pixels)
            + self.image_drawn * batch.num_targets
        )


def linear_flops(module: nn.Module, *, has_gradient: bool) -> int:
    """Of a position in all matrices of a module but its tables, in a pass whose gradient reaches its input
    or does not."""
    tables = {id(p) for each in module.modules() if isinstance(each, nn.Embedding) for p in each.parameters()}
    is_head = isinstance(module, nn.Linear)  # which may share its weight with the table
    return sum(
        FORWARD * num_weights(parameter) * (1 + has_gradient + parameter.requires_grad)
        for parameter in module.parameters()
        if parameter.ndim == 2 and (is_head or id(parameter) not in tables)
    )


def document_lengths(batch: Batch) -> np.ndarray:
    """Positions of every document, (S,) int64; padding is none."""
    rows = batch.document_index.numpy()
    counts = [np.bincount(row)[1:] for row in rows]
    return np.concatenate(counts) if counts else np.zeros(0, dtype=np.int64)


def num_pairs(lengths: np.ndarray, *, window: int | None = None) -> int:
    """Pairs of a position and one that it sees, itself included, in documents of these lengths."""
    beyond = np.zeros_like(lengths) if window is None else np.maximum(lengths - window, 0)
    return int((lengths * (lengths + 1) - beyond * (beyond + 1)).sum()) // 2


def _count(run: Callable[[], Tensor]) -> int:
    """FLOPs of a forward pass, and of the backward pass where there is a gradient."""
    with FlopCounterMode(display=False) as counter:
        result = run()
        if result.requires_grad:
            result.sum().backward()
    return counter.get_total_flops()


def _without_memory(module: Any) -> Any:
    """A copy whose parameters and buffers are on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        blank = torch.empty(parameter.shape, dtype=torch.float32, device="meta")
        memo[id(parameter)] = nn.Parameter(blank, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo)


def _blank(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
