"""A forward and backward pass of the real model over fake tensors: allocations are counted, none is made.

Fake tensors have a shape, a type and a lifetime, and the stock code, autograd, autocast and checkpointing all
treat them as real. So the bytes in use at the worst moment, and what they are for, are measured for any
architecture, and no formula can fall behind it. What a device adds (kernel workspaces, fragmentation) is not
seen.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.hooks import RemovableHandle

from dreamllm.losses.total import total
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.pixels import Pixels
from dreamllm.train.plan.workload import Workload
from dreamllm.train.run_config import Precision
from dreamllm.train.step import AUTOCAST

LANGUAGE_MODEL: Final = "language model"
IMAGE_DECODER: Final = "image decoder"
VISION_ENCODER: Final = "vision encoder"
VAE: Final = "VAE"
CONNECTORS: Final = "connectors"
LOGITS: Final = "logits"
WEIGHT_COPIES: Final = "16-bit copies of weights"
GRADIENTS: Final = "gradients"
BATCH: Final = "batch"
REST: Final = "embeddings and losses"
BACKWARD: Final = "backward pass"
"""What it computes again, and gradients of activations."""

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What a pass takes, beside weights and optimizer, in bytes by purpose."""

    at_peak: Mapping[str, int]
    """At the moment when most is in use."""
    for_backward: Mapping[str, int]
    """Between the two passes: what the backward pass will need, and what stays."""
    own_peaks: Mapping[str, int]
    """The most that is ever in use for each purpose."""
    flops: Mapping[str, int]
    """Of forward passes by part, and of the backward pass with what it computes again."""

    @property
    def peak_bytes(self) -> int:
        """The most that is ever in use."""
        return sum(self.at_peak.values())


def trace_pass(
    model: DreamLLM,
    workload: Workload,
    *,
    precision: Precision,
    noises_per_image: int,
    weights: Mapping[str, float],
    has_gradients: bool,
) -> Trace:
    """Run a micro-batch through a model of the meta device, which is of no other use afterwards.

    `has_gradients` says that it is not the first of its step: gradients are in place already.
    """
    ledger = _Ledger(model.language_model.config.get_text_config().vocab_size)
    cast = nullcontext() if precision == "float32" else torch.autocast("cpu", dtype=AUTOCAST[precision])
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model)
        model.train()
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.keep(tensor)
        batch = blank_batch(model, workload)
        for item in fields(batch):
            if isinstance(value := getattr(batch, item.name), Tensor):
                ledger.add(value, BATCH)
        if has_gradients:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
                    ledger.add(parameter.grad, GRADIENTS)
        with _hooks(model, ledger, precision), ledger:
            with cast:
                terms = model(batch, None, noises_per_image=noises_per_image)
                counts = {name: max(1, term.count) for name, term in terms.items()}
                loss = total(terms, counts=counts, weights=weights)
            del terms
            for_backward = ledger.now
            if loss.requires_grad:  # it does not where nothing of the batch is learned
                with ledger.at(BACKWARD):
                    loss.backward()
    return Trace(
        at_peak=dict(ledger.at_peak),
        for_backward=dict(for_backward),
        own_peaks=dict(ledger.own_peaks),
        flops=dict(ledger.flops),
    )


def make_fake(model: nn.Module) -> None:
    """Turn meta tensors into fake ones of the CPU, inside a `FakeTensorMode`; tied ones stay tied."""
    fakes: dict[Tensor, Any] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None and tensor not in fakes:
                    fake = torch.empty_like(tensor, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    fakes[tensor] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                table[name] = None if tensor is None else fakes[tensor]


def blank_batch(model: DreamLLM, workload: Workload) -> Batch:
    """A batch of the right shapes, all zeros; fake inside a `FakeTensorMode`."""
    sizes, (height, width) = model.slot_sizes, model.image_decoder.image_size
    vision_px, rows = model.vision_encoder.image_px, (workload.rows, workload.positions)

    def integers(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    return Batch(
        input_ids=integers(*rows),
        position_ids=integers(*rows),
        document_index=integers(*rows),
        label_positions=integers(workload.labels),
        labels=integers(workload.labels),
        image_slots=integers(workload.images_read, sizes.num_visual_tokens),
        dream_slots=integers(workload.images_drawn, sizes.num_dream_queries),
        vision_pixels=Pixels(torch.zeros(workload.images_read, 3, vision_px, vision_px, dtype=torch.uint8)),
        target_pixels=Pixels(torch.zeros(workload.images_drawn, 3, height, width, dtype=torch.uint8)),
        target_dreams=integers(workload.images_drawn),
        label_documents=integers(workload.labels),
        target_documents=integers(workload.images_drawn),
        document_ids=("",),
        sources=("",),
    )


class _Ledger(TorchDispatchMode):
    """Books every storage from the operation that makes it until its last tensor is gone."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.at_peak: Counter[str] = Counter()
        self.own_peaks: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self._vocabulary_size = vocabulary_size
        self._purposes = [REST]
        self._kept: set[int] = set()
        self._open: dict[int, tuple[str, int, weakref.ref]] = {}
        self._now: Counter[str] = Counter()
        self._peak_bytes = 0
        self._now_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket) or _ATTENTION_FLOPS.get(func.overloadpacket)
        if formula is not None:
            self.flops[self._purposes[-1]] += formula(*args, **(kwargs or {}), out_val=out)
        is_cast = func is torch.ops.aten._to_copy.default and self._is_kept(args[0])
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor, WEIGHT_COPIES if is_cast else self._purpose_of(tensor))
        return out

    @property
    def now(self) -> Counter[str]:
        """Bytes in use by purpose."""
        return +self._now

    @contextmanager
    def at(self, purpose: str) -> Iterator[None]:
        """What is made inside serves this purpose."""
        self._purposes.append(purpose)
        yield
        self._purposes.pop()

    def watch(self, module: nn.Module, purpose: str) -> list[RemovableHandle]:
        """What the forward pass of a module makes serves this purpose."""
        return [
            module.register_forward_pre_hook(lambda *_: self._purposes.append(purpose)),
            module.register_forward_hook(self._leave),
        ]

    def keep(self, tensor: Tensor) -> None:
        """A tensor that was there before and stays; it is not booked."""
        self._kept.add(_key(tensor))

    def add(self, tensor: Tensor, purpose: str) -> None:
        """Book the storage of a tensor, unless it is booked already."""
        key, storage = _key(tensor), tensor.untyped_storage()
        if key in self._kept or key in self._open:
            return
        self._open[key] = (purpose, storage.nbytes(), weakref.ref(storage, partial(self._close, key)))
        self._book(purpose, storage.nbytes())

    def name_gradient(self, parameter: Tensor) -> None:
        """As a hook after the gradient of a parameter is there."""
        assert parameter.grad is not None
        old, size, reference = self._open[_key(parameter.grad)]
        self._open[_key(parameter.grad)] = (GRADIENTS, size, reference)
        self._book(old, -size)
        self._book(GRADIENTS, size)

    def _leave(self, *_: object) -> None:
        self._purposes.pop()

    def _close(self, key: int, _: object) -> None:
        purpose, size, _reference = self._open.pop(key)
        self._book(purpose, -size)

    def _book(self, purpose: str, size: int) -> None:
        self._now[purpose] += size
        self._now_bytes += size
        self.own_peaks[purpose] = max(self.own_peaks[purpose], self._now[purpose])
        if self._now_bytes > self._peak_bytes:
            self._peak_bytes = self._now_bytes
            self.at_peak = self.now

    def _is_kept(self, tensor: Tensor) -> bool:
        return _key(tensor) in self._kept

    def _purpose_of(self, tensor: Tensor) -> str:
        is_logits = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary_size
        return LOGITS if is_logits else self._purposes[-1]


@contextmanager
def _hooks(model: DreamLLM, ledger: _Ledger, precision: Precision) -> Iterator[None]:
    """Tell the ledger which part is at work and what is a gradient; normalise in float32, as CUDA's autocast
    does and the CPU's does not."""
    decoder: Any = model.image_decoder
    parts: list[tuple[str, nn.Module | None]] = [
        (VISION_ENCODER, model.vision_encoder),
        (LANGUAGE_MODEL, model.language_model.get_decoder()),
        (LOGITS, model.language_model.get_output_embeddings()),
        (VAE, decoder.vae.encoder),
        (IMAGE_DECODER, decoder.denoiser),
        *((CONNECTORS, each) for each in (model.visual_projector, model.condition_projector)),
        (CONNECTORS, model.pooled_projector),
    ]
    handles = [
        each for purpose, module in parts if module is not None for each in ledger.watch(module, purpose)
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(ledger.name_gradient))
    if precision != "float32":
        norms = [each for each in model.modules() if isinstance(each, nn.GroupNorm | nn.LayerNorm)]
        handles += [norm.register_forward_pre_hook(_in_float32) for norm in norms]
    yield
    for handle in handles:
        handle.remove()


def _in_float32(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].float(), *inputs[1:])


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


_ATTENTION_FLOPS: Final[Mapping[Any, Callable[..., int]]] = {
    _ATTENTION: _attention_flops,
    _ATTENTION_BACKWARD: _attention_backward_flops,
}
"""The counter of torch does not know its attention for CPUs (2.13); delete this when it does."""
