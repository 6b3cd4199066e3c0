"""DreamLLM (arXiv:2309.11499), figure 2: one causal language model between a frozen eye and a frozen brush.

    picture -> vision encoder -> visual projector -----.
    text ----> token embeddings -----------------------+-> language model -> head -> next token
    dream queries -------------------------------------'         |
                                          states at the queries -> condition projector -> image decoder

The language model is any `AutoModelForCausalLM`. It is given embeddings, an attention mask and positions, and
gives states; nothing in it is subclassed or patched.
"""

from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from dreamllm.errors import ConfigError
from dreamllm.losses.next_token import next_token_losses
from dreamllm.losses.total import Term
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.draws import Generators, generators_of
from dreamllm.models.decoders.image_decoder import ImageDecoder
from dreamllm.models.dream_queries import DreamQueries
from dreamllm.models.language_model import check_language_model, run_decoder
from dreamllm.models.packed_attention import attention_of, use_packed_attention
from dreamllm.models.projectors import (
    ConnectorKind,
    ProjectorKind,
    condition_projector,
    pooled_projector,
    visual_projector,
)
from dreamllm.models.special_token_rows import SpecialTokenRows
from dreamllm.models.splice import read_slots, write_slots
from dreamllm.models.vision_encoder import VisionEncoder
from dreamllm.sequence.batch import Batch, Segments
from dreamllm.sequence.chat import chat_template
from dreamllm.sequence.layout import SlotSizes


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamLLMConfig:
    """What the stock parts do not say of themselves; the defaults are the paper's."""

    num_dream_queries: int = 64
    """Q."""
    visual_projector: ProjectorKind = "linear"
    """From the vision encoder to the language model."""
    condition_projector: ConnectorKind = "linear"
    """From the language model to the image decoder."""
    num_connector_layers: int = 6
    """Layers of a `transformer` between the language model and the image decoder."""
    select_layer: int = -2
    """Hidden state of the vision model that is read; -1 is the last."""
    drop_cls: bool = True
    """Whether the class token is left out."""
    post_layernorm: bool = False
    """Whether the final normalisation is applied; for the last layer only."""
    vision_px: int | None = None
    """Side of the pictures that are read; None takes what the vision model is configured for."""
    chat_template: str = "vicuna_v1_1"
    """How a conversation is written as text; see `sequence/chat.py`. `tokenizer` is the tokenizer's own."""

    def __post_init__(self) -> None:
        if self.num_dream_queries < 1:
            raise ConfigError(
                f"num_dream_queries is {self.num_dream_queries}; a picture needs 1 query or more"
            )
        if self.num_connector_layers < 1:
            raise ConfigError(
                f"num_connector_layers is {self.num_connector_layers}; a transformer needs 1 or more"
            )
        kinds = {"visual_projector": get_args(ProjectorKind), "condition_projector": get_args(ConnectorKind)}
        for name, known in kinds.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        if self.chat_template != "tokenizer":
            chat_template(self.chat_template)  # raises for an unknown name


class DreamLLM(nn.Module):
    """Reads and writes illustrated documents. Vision encoder and image decoder are frozen."""

    def __init__(
        self,
        config: DreamLLMConfig,
        *,
        language_model: PreTrainedModel,
        vision_model: PreTrainedModel,
        image_decoder: ImageDecoder,
    ) -> None:
        """Raises ConfigError for a language or vision model that cannot be used; the message says why."""
        super().__init__()
        check_language_model(language_model)
        use_packed_attention(language_model)
        self.config = config
        self.language_model = language_model
        self.vision_encoder = VisionEncoder(
            vision_model,
            select_layer=config.select_layer,
            drop_cls=config.drop_cls,
            post_layernorm=config.post_layernorm,
            image_px=config.vision_px,
        )
        width = language_model.get_input_embeddings().embedding_dim
        self.visual_projector = visual_projector(
            self.vision_encoder.width, width, kind=config.visual_projector
        )
        self.dream_queries = DreamQueries(config.num_dream_queries, width)
        self.condition_projector = condition_projector(
            width,
            image_decoder.condition_width,
            kind=config.condition_projector,
            num_layers=config.num_connector_layers,
        )
        self.pooled_projector = pooled_projector(width, image_decoder.pooled_width)
        """For image decoders that read a pooled vector; None for the others."""
        self.image_decoder = image_decoder
        self.special_token_rows: SpecialTokenRows | None = None
        """Rows that train while the language model is frozen; put in place by `freezing.apply_trainable`."""

    @property
    def slot_sizes(self) -> SlotSizes:
        """How many positions a picture takes."""
        return SlotSizes(
            num_visual_tokens=self.vision_encoder.num_tokens, num_dream_queries=self.config.num_dream_queries
        )

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.language_model.device

    def enable_gradient_checkpointing(self) -> None:
        """Compute the blocks of the language model and of the denoiser again in the backward pass.

        The language model does so in training mode only, the denoiser whenever there are gradients.
        """
        self.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.image_decoder.denoiser.enable_gradient_checkpointing()

    def forward(
        self,
        batch: Batch,
        generator: torch.Generator | None,
        *,
        noises_per_image: int = 1,
        min_snr_gamma: float | None = None,
    ) -> dict[str, Term]:
        """The loss terms `next_token` and `denoising`, as sums; `losses.total` divides and weighs them.

        Noise is drawn from the seeds of the batch, a picture at a time, and where it has none from
        `generator`, on its device. A batch without pictures, targets or labels is no special case: its empty
        terms are zero and every connector still gets a gradient, of zeros.
        """
        hidden = self.hidden_states(batch)
        words = self._next_token(hidden, batch)
        pictures = self._denoising(hidden, batch, generator, noises_per_image, min_snr_gamma)
        size = batch.num_documents
        return {
            "next_token": Term.of_items(words, batch.label_documents, num_documents=size),
            "denoising": Term.of_items(pictures, batch.target_documents, num_documents=size),
        }

    def hidden_states(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """The language model's states after its final norm."""
        attention = attention_of(self.language_model, batch)
        return self.language_states(self.embed(batch), attention, batch.position_ids)

    def embed(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Token embeddings with the pictures' features and the dream queries in their slots."""
        embeds = self.embed_ids(batch.input_ids)
        embeds = write_slots(embeds, self.project_images(self.image_features(batch)), batch.image_slots)
        return write_slots(embeds, self.dream_queries(batch.dream_slots.shape[0]), batch.dream_slots)

    def language_states(
        self,
        embeds: Float[Tensor, "B T D"],
        attention: Bool[Tensor, "B 1 T S"] | Segments,
        position_ids: Int[Tensor, "B T"],
        cache: Any = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the language model without its head; S counts the positions in the cache and the new ones."""
        return run_decoder(self.language_model, embeds, attention, position_ids, cache)

    def conditions(self, hidden: Float[Tensor, "B T D"], dream_slots: Int[Tensor, "M Q"]) -> Condition:
        """What the image decoder is to draw: the projected states at the dream queries."""
        return self.project_conditions(read_slots(hidden, dream_slots))

    def project_conditions(self, states: Float[Tensor, "M Q D"]) -> Condition:
        """The condition projector, on states at dream queries; a pooled vector is read off their mean."""
        states = states.to(_dtype(self.condition_projector))
        tokens = self.condition_projector(states)
        if self.pooled_projector is None:
            return Condition.of_tokens(tokens)
        return Condition(tokens, self.pooled_projector(states.mean(dim=1)))

    def embed_ids(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Token embeddings."""
        return self.language_model.get_input_embeddings()(ids)

    def image_embeds(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """Pictures as the language model reads them."""
        return self.project_images(self.vision_encoder(pixels))

    def image_features(self, batch: Batch) -> Float[Tensor, "N P E"]:
        """What the vision encoder says of the pictures read, computed from pixels or cached."""
        computed = self.vision_encoder(batch.vision_pixels.scaled())
        return computed if batch.cached_images is None else batch.cached_images.fill(computed)

    def project_images(self, features: Float[Tensor, "N P E"]) -> Float[Tensor, "N P D"]:
        """The visual projector, on features of the vision encoder."""
        return self.visual_projector(features.to(_dtype(self.visual_projector)))

    def query_embeds(self) -> Float[Tensor, "Q D"]:
        """The dream queries of one slot."""
        return self.dream_queries(1)[0]

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """The head, on states of the language model."""
        return self.language_model.get_output_embeddings()(hidden)

    def _next_token(self, hidden: Tensor, batch: Batch) -> Tensor:
        states = hidden.flatten(0, 1).index_select(0, batch.label_positions)  # (L, D)
        return next_token_losses(states, self.logits, batch.labels)

    def _denoising(
        self,
        hidden: Tensor,
        batch: Batch,
        generator: torch.Generator | None,
        noises_per_image: int,
        min_snr_gamma: float | None,
    ) -> Tensor:
        condition = self.conditions(hidden, batch.dream_slots.index_select(0, batch.target_dreams))
        own: Generators = generators_of(batch.noise_seeds) if batch.noise_seeds else generator
        moments = self.image_decoder.moments(batch.target_pixels.scaled())
        if batch.cached_targets is not None:
            moments = batch.cached_targets.fill(moments)
        latents = self.image_decoder.latents(moments, own)
        return self.image_decoder.denoising_loss(
            latents, condition, own, noises_per_image=noises_per_image, min_snr_gamma=min_snr_gamma
        )


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
