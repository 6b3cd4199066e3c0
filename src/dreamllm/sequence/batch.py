"""Sequences and batches: what a model eats.

The letters used for shapes in the whole project:

    B rows            T positions         D model width        V vocabulary
    N images read     P visual tokens     E vision width
    M images drawn    Q dream queries     C condition width    K condition tokens (Q, or a text length)
    Z latent channels h w latent size     H W pixel size       L supervised positions
    Y channels of a VAE's moments, 2Z or Z              S sequences of a batch, one or more a document
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dreamllm.errors import LayoutError
from dreamllm.sequence.cached_pictures import CachedPictures
from dreamllm.sequence.layout import Slots
from dreamllm.sequence.pixels import Pixels

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Value = TypeVar("Value", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequence:
    """One document ready for a model, still on the CPU and unpadded."""

    document_id: str
    source: str = ""
    """Name of the source the document came from."""
    input_ids: np.ndarray
    """(T,) int64; `<im_patch>` at every slot position."""
    is_label: np.ndarray
    """(T,) bool; whether the token AT this position is a target (predicted from the position before)."""
    slots: Slots
    vision_pixels: Pixels
    """N pictures for the vision encoder; without those in `cached_images`."""
    target_pixels: Pixels
    """M pictures for the image decoder. A dream slot whose picture is only context (condition dropout moved
    its target to an unconditional sequence) has no row here, and neither has one in `cached_targets`."""
    target_dreams: tuple[int, ...]
    """For each target, the index of its dream slot in `slots.dream_starts`."""
    noise_seeds: tuple[int, ...] = ()
    """For each target, what decides its noise; empty where the batch's generator does."""
    cached_images: CachedPictures | None = None
    """Features of pictures read that a cache knows; None where there is no cache."""
    cached_targets: CachedPictures | None = None
    """Moments of targets that a cache knows; None where there is no cache."""

    def __post_init__(self) -> None:
        length = len(self.input_ids)
        if self.is_label.shape != (length,) or self.slots.length != length:
            raise LayoutError(
                f"document {self.document_id!r} has {length} ids, {self.is_label.size} label flags and "
                f"slots laid out over {self.slots.length} positions; expected one number; build them together"
            )
        if length == 0 or self.is_label[0]:
            raise LayoutError(
                f"document {self.document_id!r} has {length} positions and a label at the first of them, or "
                "none; a label is predicted from the position before it; begin with an unsupervised BOS"
            )
        num_dreams = len(self.slots.dream_starts)
        num_images = len(self.vision_pixels) + _num_cached(self.cached_images)
        num_targets = len(self.target_pixels) + _num_cached(self.cached_targets)
        if num_images != len(self.slots.image_starts) or num_targets != len(self.target_dreams):
            raise LayoutError(
                f"document {self.document_id!r} has {num_images} pictures for "
                f"{len(self.slots.image_starts)} image slots and {num_targets} targets for "
                f"{len(self.target_dreams)} target slots; expected equal counts; give each slot its picture"
            )
        if not set(self.target_dreams) <= set(range(num_dreams)) or len(set(self.target_dreams)) != len(
            self.target_dreams
        ):
            raise LayoutError(
                f"document {self.document_id!r} has targets for dream slots {self.target_dreams} of "
                f"{num_dreams}; expected each at most once, below that count; "
                "point every target at a slot of its own"
            )
        if len(self.noise_seeds) not in (0, num_targets):
            raise LayoutError(
                f"document {self.document_id!r} has {len(self.noise_seeds)} noise seeds for "
                f"{num_targets} targets; expected one each, or none; give every picture its own"
            )


def _num_cached(cached: CachedPictures | None) -> int:
    return 0 if cached is None else len(cached)


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Where documents begin and end in the flattened (B*T) sequence; the padding of a row is one of them."""

    bounds: Int[Tensor, " S+1"]
    """int32: 0, then the end of every segment."""
    longest: int
    """Positions of the longest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Packed rows. Positions in `*_slots` and `label_positions` index the flattened (B*T) sequence."""

    input_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    """Start again at 0 in every document."""
    document_index: Int[Tensor, "B T"]
    """0 on padding, 1.. for the documents of a row: a position attends only within its own number."""
    label_positions: Int[Tensor, " L"]
    """Flattened position whose hidden state predicts the label."""
    labels: Int[Tensor, " L"]
    image_slots: Int[Tensor, "N P"]
    dream_slots: Int[Tensor, "M Q"]
    """Every dream slot, with or without a target."""
    vision_pixels: Pixels
    """Of the Np pictures read that `cached_images` does not know; all N without a cache."""
    target_pixels: Pixels
    """Of the Mp targets that `cached_targets` does not know; all Mt without a cache."""
    target_dreams: Int[Tensor, " Mt"]
    """Row of `dream_slots` that conditions each target."""
    label_documents: Int[Tensor, " L"]
    """For each label, its document: a place in `document_ids`."""
    target_documents: Int[Tensor, " Mt"]
    """For each target, the same."""
    document_ids: tuple[str, ...]
    """Names of the S sequences, for messages; a document whose condition is dropped has several."""
    sources: tuple[str, ...]
    """Names of the sources these came from."""
    left_out: tuple[str, ...] = ()
    """What was wrong with documents of the step that could not be used; the first micro-batch tells it."""
    noise_seeds: tuple[int, ...] = ()
    """What decides the noise of each target, on the host; empty where a generator decides for all."""
    segments: Segments | None = None
    """The documents as stretches, for attention without a mask; None where only the mask is known."""
    cached_images: CachedPictures | None = None
    """Features (P, E) of pictures read that a cache knows."""
    cached_targets: CachedPictures | None = None
    """Moments (Y, h, w) of targets that a cache knows."""

    @property
    def num_labels(self) -> int:
        """L: supervised tokens in this batch."""
        return self.labels.shape[0]

    @property
    def num_documents(self) -> int:
        """S: sequences in this batch."""
        return len(self.document_ids)

    @property
    def num_targets(self) -> int:
        """Pictures whose drawing is supervised."""
        return self.target_dreams.shape[0]

    def attention_mask(self) -> Bool[Tensor, "B 1 T T"]:
        """True where a query position may look: causal, and inside its own document only.

        A padding position looks at itself alone, so that no softmax row is empty. Only for attention that
        takes booleans (`sdpa`): `eager` attention adds its mask to the scores, and True and False hide
        nothing there.
        """
        same = self.document_index[:, :, None] == self.document_index[:, None, :]
        size = self.input_ids.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=self.input_ids.device).tril()
        real = self.document_index[:, :, None] > 0
        itself = torch.eye(size, dtype=torch.bool, device=self.input_ids.device)
        return ((same & causal & real) | itself)[:, None]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return _with_tensors(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, as a DataLoader asks for it: from there `to` copies to a GPU
        while the host goes on."""
        return _with_tensors(self, Tensor.pin_memory)


def _with_tensors(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """A dataclass with every tensor in it changed, those of the dataclasses in it too."""
    changed: dict[str, Any] = {}
    for field in fields(value):
        inner = getattr(value, field.name)
        if isinstance(inner, Tensor):
            changed[field.name] = change(inner)
        elif is_dataclass(inner) and not isinstance(inner, type):
            changed[field.name] = _with_tensors(inner, change)
    return replace(value, **changed)
