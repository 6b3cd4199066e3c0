"""Several sources, in proportion and in phases: the documents of a step, as a pure function of the step.

Documents are dealt in blocks. Every block holds a fixed number from each source, in an order of its own; so
the place of any document in its source follows from its number alone, and nothing has to be stored to resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dreamllm.data.sources import DocumentSource, PhaseConfig, build_source
from dreamllm.document.document import Document
from dreamllm.errors import ConfigError
from dreamllm.runtime.seeding import derive_seed

BLOCK = 512
"""Documents dealt at once; shares are exact to one part in this."""


@dataclass(frozen=True, slots=True)
class _Phase:
    first_step: int
    sources: tuple[DocumentSource, ...]
    dealt: np.ndarray
    """(BLOCK,) source of every place of a block, before shuffling."""


class Mixture:
    """Documents of every step of a run."""

    def __init__(
        self, phases: tuple[PhaseConfig, ...], *, steps: int, documents_per_step: int, seed: int
    ) -> None:
        """Raises ConfigError for phases that do not end in order, at 1, or have no source to deal from."""
        ends = [phase.until for phase in phases]
        if not ends or ends != sorted(ends) or ends[-1] != 1.0 or not all(p.sources for p in phases):
            raise ConfigError(
                f"phases end at {ends} of the run; expected one or more phases with sources, in rising "
                "order, the last until 1.0; correct `until`"
            )
        weights = [[source.weight for source in phase.sources] for phase in phases]
        if min(map(min, weights)) <= 0:
            raise ConfigError(
                f"sources weigh {weights}, phase by phase; expected every weight above 0; "
                "leave out a source that is not to be read"
            )
        self.documents_per_step = documents_per_step
        self._seed = seed
        firsts = [0, *(round(end * steps) for end in ends[:-1])]
        self._phases = [
            _Phase(
                first,
                tuple(build_source(s, derive_seed(seed, "phase", i, j)) for j, s in enumerate(phase.sources)),
                _shares(weights[i]),
            )
            for i, (first, phase) in enumerate(zip(firsts, phases, strict=True))
        ]

    def documents(self, step: int) -> list[Document]:
        """The documents of a step."""
        places = (self.find(step, position) for position in range(self.documents_per_step))
        return [source[index] for source, index in places]

    def find(self, step: int, position: int) -> tuple[DocumentSource, int]:
        """The source of a document of a step, and its index there; nothing is read."""
        sources, number, index = self._place(step, position)
        return sources[number], index

    def dealt(self, step: int, *, num_ranks: int) -> list[list[int]]:
        """The positions of a step by rank, so that all ranks have about the same to do.

        Each rank gets as many documents of a source as any other, to one, and long and short ones alike where
        the source knows their sizes. Nothing is read.
        """
        positions = range(self.documents_per_step)
        if num_ranks == 1:
            return [list(positions)]
        keys = []
        for position in positions:
            sources, number, index = self._place(step, position)
            keys.append((number, -sources[number].size(index), position))
        return deal(keys, num_ranks)

    def _place(self, step: int, position: int) -> tuple[tuple[DocumentSource, ...], int, int]:
        """The sources of a step's phase, the number of a document's source among them, its index there."""
        number, phase = max(
            ((n, p) for n, p in enumerate(self._phases) if p.first_step <= step), key=lambda item: item[0]
        )
        index = (step - phase.first_step) * self.documents_per_step + position
        block, place = divmod(index, BLOCK)
        order = phase.dealt[_permutation(self._seed % 2**32, number, block)]
        source = int(order[place])
        before = block * int((phase.dealt == source).sum()) + int((order[:place] == source).sum())
        return phase.sources, source, before


@lru_cache(maxsize=16)
def _permutation(seed: int, phase: int, block: int) -> np.ndarray:
    """The order within a block; a step asks for the same few blocks again and again."""
    return np.random.default_rng([seed, phase, block]).permutation(BLOCK)


def deal(keys: Sequence[tuple[int, ...]], num_ranks: int) -> list[list[int]]:
    """The places of the keys by rank, each in order. In the order of the keys they are dealt to the ranks in
    turn, there and back again, so that none has the larger one every time."""
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    for turn, place in enumerate(sorted(range(len(keys)), key=lambda place: keys[place])):
        round_, seat = divmod(turn, num_ranks)
        hands[seat if round_ % 2 == 0 else num_ranks - 1 - seat].append(place)
    return [sorted(hand) for hand in hands]


def _shares(weights: list[float]) -> np.ndarray:
    edges = np.rint(np.cumsum(weights) / np.sum(weights) * BLOCK).astype(int)
    return np.searchsorted(edges, np.arange(BLOCK), side="right")
