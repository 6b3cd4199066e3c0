"""Documents of a step -> packed micro-batches; a pure function of the step number.

What is random follows from the seed, the step and the position of a document in it, and for the noise of a
drawn picture from its number in the document: never from the documents beside it. Several ranks share the
documents of a step, so together they see what one would have seen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Self

import numpy as np
from torch.utils.data import Dataset

from dreamllm.data.mixture import Mixture
from dreamllm.document.document import Document, Text
from dreamllm.errors import DocumentError, LayoutError
from dreamllm.runtime.seeding import derive_seed
from dreamllm.sequence.batch import Batch, Sequence
from dreamllm.sequence.document_encoder import DocumentEncoder
from dreamllm.sequence.packing import collate, pack


class DocumentSteps(Dataset[list[Batch]]):
    """Item `step`: the step's documents, encoded, packed into rows, cut into micro-batches of rows."""

    def __init__(
        self,
        mixture: Mixture,
        encoder: DocumentEncoder,
        *,
        steps: int,
        row_length: int,
        rows_per_micro_batch: int,
        seed: int,
        packing: bool = True,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._mixture = mixture
        self._encoder = encoder
        self._steps = steps
        self._row_length = row_length
        self._rows_per_micro_batch = rows_per_micro_batch
        self._seed = seed
        self._packing = packing
        self._rank = rank
        self._num_ranks = num_ranks

    def part(self, rank: int, *, num_ranks: int) -> Self:
        """The steps as one of many ranks sees them: a fair part of the documents of each."""
        return type(self)(
            self._mixture,
            self._encoder,
            steps=self._steps,
            row_length=self._row_length,
            rows_per_micro_batch=self._rows_per_micro_batch,
            seed=self._seed,
            packing=self._packing,
            rank=rank,
            num_ranks=num_ranks,
        )

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> list[Batch]:
        """The first micro-batch tells what had to be left out; it is there even if nothing else is.

        Raises:
            DocumentError: a document cannot be used, and its source does not leave such documents out.
            LayoutError: the same of one that is longer than a row.
        """
        sequences, left_out = list[Sequence](), list[str]()
        for position in self._mixture.dealt(step, num_ranks=self._num_ranks)[self._rank]:
            source, index = self._mixture.find(step, position)
            try:
                encoded = self._encoder.encode(source[index], rng=self._rng(step, position))
            except (DocumentError, LayoutError) as fault:
                if source.on_fault == "raise":
                    raise
                left_out.append(str(fault))
                continue
            sequences += self._seeded(encoded, source.name, step, position)
        rows = pack(sequences, self._row_length, enabled=self._packing)
        size = self._rows_per_micro_batch
        batches = [
            collate(rows[start : start + size], self._encoder.tokenizer.pad_id)
            for start in range(0, len(rows), size)
        ]
        if not left_out:
            return batches
        first, *others = batches or [self.nothing()]
        return [replace(first, left_out=tuple(left_out)), *others]

    def nothing(self) -> Batch:
        """A micro-batch that supervises nothing, for a rank that has none while others have one."""
        document = Document(parts=(Text(text="."),), id="nothing")
        sequence = self._encoder.encode(document, rng=np.random.default_rng(0))[0]
        silent = replace(sequence, is_label=np.zeros_like(sequence.is_label))
        return collate([[silent]], self._encoder.tokenizer.pad_id)

    def _rng(self, step: int, position: int) -> np.random.Generator:
        """What is random in a document, but for the noise of its pictures."""
        return np.random.default_rng([self._seed % 2**32, step, position])

    def _seeded(
        self, encoded: Iterable[Sequence], source: str, step: int, position: int
    ) -> Iterator[Sequence]:
        """The sequences of a document, with its source and a seed for the noise of every drawn picture."""
        pictures = 0
        for sequence in encoded:
            numbers = range(pictures, pictures + len(sequence.target_dreams))
            seeds = tuple(derive_seed(self._seed, "noise", step, position, number) for number in numbers)
            yield replace(sequence, noise_seeds=seeds, source=source)
            pictures += len(seeds)
