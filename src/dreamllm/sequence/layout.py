"""Where pictures sit in a token sequence, as data.

A slot is a run of positions whose embeddings do not come from the token table: P visual tokens of a picture
that is read, or Q dream queries of a picture that is drawn. Positions are computed once, when a document
becomes a sequence, and checked here; `forward` never searches for a token id.

DreamLLM (arXiv:2309.11499), section 3.2; layouts of a drawn and fed-back picture:

    <dream_start> q_1 .. q_Q <dream_end> <im_start> v_1 .. v_P <im_end>
"""

from dataclasses import dataclass

import numpy as np

from dreamllm.errors import LayoutError


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSizes:
    """How many positions one picture takes."""

    num_visual_tokens: int
    """P: positions between `<im_start>` and `<im_end>`."""
    num_dream_queries: int
    """Q: positions between `<dream_start>` and `<dream_end>`."""

    @property
    def image_length(self) -> int:
        """Positions of a picture that is read, brackets included: P + 2."""
        return self.num_visual_tokens + 2

    @property
    def dream_length(self) -> int:
        """Positions of a picture that is drawn, brackets included: Q + 2."""
        return self.num_dream_queries + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """First positions of the slots of one sequence, in reading order.

    The n-th image start belongs to the n-th picture read, the m-th dream start to the m-th picture drawn.
    """

    sizes: SlotSizes
    length: int
    """Positions in the sequence."""
    image_starts: tuple[int, ...]
    """Position of the first of P visual tokens, one entry a picture read."""
    dream_starts: tuple[int, ...]
    """Position of the first of Q dream queries, one entry a picture drawn."""

    def __post_init__(self) -> None:
        spans = sorted(
            [(start, start + self.sizes.num_visual_tokens) for start in self.image_starts]
            + [(start, start + self.sizes.num_dream_queries) for start in self.dream_starts]
        )
        last_end = 0
        for start, end in spans:
            if start < last_end + 1 or end + 1 > self.length:  # a bracket token stands on either side
                raise LayoutError(
                    f"slot [{start}, {end}) overlaps its neighbour or leaves a sequence of {self.length} "
                    "positions; each slot needs a bracket token before and after it"
                )
            last_end = end + 1
        for starts in (self.image_starts, self.dream_starts):
            if list(starts) != sorted(starts):
                raise LayoutError(f"slot starts {starts} are not in reading order")

    def image_positions(self) -> np.ndarray:
        """Positions (N, P) of the visual tokens, int64."""
        return _spans(self.image_starts, self.sizes.num_visual_tokens)

    def dream_positions(self) -> np.ndarray:
        """Positions (M, Q) of the dream queries, int64."""
        return _spans(self.dream_starts, self.sizes.num_dream_queries)


def _spans(starts: tuple[int, ...], size: int) -> np.ndarray:
    return np.asarray(starts, dtype=np.int64).reshape(-1, 1) + np.arange(size, dtype=np.int64)
