"""Which positions of a pass the text tower reads (`jam_cross.py`).

In JAM-X the text tower leaves pictures out. Without a cache the positions it reads are moved together, so
that a picture costs it nothing; with one, rows whose chunk holds nothing but codes are left out of the pass.
Either way its own layers see an ordinary, smaller pass, and this file knows how the two fit together.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReading:
    """The text tower's part of a pass of B rows and T positions: b rows of t positions, which see s keys."""

    embeds: Float[Tensor, "b t D"]
    position_ids: Int[Tensor, "b t"]
    self_mask: Bool[Tensor, "b 1 t s"]
    reads_image_mask: Bool[Tensor, "b 1 t S"]
    """Its queries, the image tower's keys."""
    read_by_image_mask: Bool[Tensor, "B 1 T s"]
    """The image tower's queries, its keys."""
    is_read: Bool[Tensor, "b t"] | None
    """False where a position of this part is none of its own; None where all are."""
    order: Int[Tensor, "b t"] | None = None
    """Where its positions stand in the pass; None where they stand as they are."""
    rows: Int[Tensor, " b"] | None = None
    """Which rows of the pass it reads; None for all."""
    shape: tuple[int, int]
    """(B, T) of the pass."""

    @property
    def is_empty(self) -> bool:
        """Whether it reads nothing at all, as while all rows draw."""
        return self.embeds.shape[0] == 0

    def of_rows(self, tensor: Float[Tensor, "B ..."]) -> Float[Tensor, "b ..."]:
        """The rows that the text tower reads."""
        return tensor if self.rows is None else tensor.index_select(0, self.rows)

    def to_rows(self, tensor: Float[Tensor, "b ..."]) -> Float[Tensor, "B ..."]:
        """All rows of the pass, with zeros in those that it does not read."""
        if self.rows is None:
            return tensor
        return tensor.new_zeros(self.shape[0], *tensor.shape[1:]).index_copy(0, self.rows, tensor)

    def to_pass(self, states: Float[Tensor, "b t D"]) -> Float[Tensor, "B T D"]:
        """States at the positions of the pass, with zeros where the text tower does not read."""
        if self.is_read is not None:
            states = states * self.is_read[..., None]
        if self.order is not None:
            index = self.order[..., None].expand(-1, -1, states.shape[-1])
            return states.new_zeros(*self.shape, states.shape[-1]).scatter(1, index, states)
        return self.to_rows(states)


class CacheOfRows:
    """A cache as seen by a pass over some of its rows; the others get zeros, which no mask lets through."""

    def __init__(self, cache: Cache, reading: TextReading) -> None:
        self.cache = cache
        self.reading = reading

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write the entries of the rows at hand and return all that these rows may look at."""
        seen = self.cache.update(self.reading.to_rows(keys), self.reading.to_rows(values), layer_idx)
        return self.reading.of_rows(seen[0]), self.reading.of_rows(seen[1])


def read_all(embeds: Tensor, position_ids: Tensor, mask: Tensor) -> TextReading:
    """The text tower reads every position, as in JAM-Cross."""
    return TextReading(
        embeds=embeds,
        position_ids=position_ids,
        self_mask=mask,
        reads_image_mask=mask,
        read_by_image_mask=mask,
        is_read=None,
        shape=(embeds.shape[0], embeds.shape[1]),
    )


def read_text(
    embeds: Float[Tensor, "B T D"],
    position_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B 1 T T"],
    *,
    is_text: Bool[Tensor, "B T"],
) -> TextReading:
    """Without a cache: the positions of words, moved together. How many these are is asked of the device."""
    size = max(int(is_text.sum(1).max()), 1)
    order = (~is_text).int().argsort(dim=1, stable=True)[:, :size]  # words first, in their order
    is_read = is_text.gather(1, order)
    num_positions = mask.shape[-1]
    of_words = mask[:, 0].gather(1, order[..., None].expand(-1, -1, num_positions))  # (B, t, T)
    among_words = of_words.gather(2, order[:, None].expand(-1, size, -1)) & is_read[:, None]
    by_image = mask[:, 0].gather(2, order[:, None].expand(-1, num_positions, -1)) & is_read[:, None]
    return TextReading(
        embeds=embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[-1])),
        position_ids=position_ids.gather(1, order),
        self_mask=_never_empty(among_words)[:, None],
        reads_image_mask=of_words[:, None],
        read_by_image_mask=by_image[:, None],
        is_read=is_read,
        order=order,
        shape=(embeds.shape[0], embeds.shape[1]),
    )


def read_text_rows(
    embeds: Float[Tensor, "B T D"],
    position_ids: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B 1 T S"],
    *,
    is_text: Bool[Tensor, "B T"],
    is_text_key: Bool[Tensor, "B S"],
) -> TextReading:
    """With a cache: the rows whose chunk has a word. Which these are is asked of the device."""
    rows = is_text.any(1).nonzero()[:, 0]
    seen = mask & is_text_key[:, None, None]
    return TextReading(
        embeds=embeds[rows],
        position_ids=position_ids[rows],
        self_mask=_never_empty(seen[rows]),
        reads_image_mask=mask[rows],
        read_by_image_mask=seen,
        is_read=is_text[rows],
        rows=rows,
        shape=(embeds.shape[0], embeds.shape[1]),
    )


def _never_empty(mask: Tensor) -> Tensor:
    """A query that may see nothing sees everything: its state is never used, but must be finite."""
    return mask | ~mask.any(-1, keepdim=True)
