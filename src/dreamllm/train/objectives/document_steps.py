"""Documents of a step -> packed micro-batches; a pure function of the step number.

What is random follows from the seed, the step and the position of a document in it, and for the noise of a
drawn picture from its number in the document: never from the documents beside it. Several ranks share the
documents of a step, so together they see what one would have seen.
"""

import logging
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

logger = logging.getLogger(__name__)


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
        """The steps as one of many ranks sees them: the documents at positions rank, rank + num_ranks, ..."""
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
        """Raises LayoutError for a document that is longer than a row."""
        positions = range(self._rank, self._mixture.documents_per_step, self._num_ranks)
        sequences = [
            sequence for position in positions for sequence in self._sequences(step, position=position)
        ]
        rows = pack(sequences, self._row_length, enabled=self._packing)
        size = self._rows_per_micro_batch
        return [
            collate(rows[start : start + size], self._encoder.tokenizer.pad_id)
            for start in range(0, len(rows), size)
        ]

    def nothing(self) -> Batch:
        """A micro-batch that supervises nothing, for a rank that has none while others have one."""
        document = Document(parts=(Text(text="."),), id="nothing")
        sequence = self._encoder.encode(document, rng=np.random.default_rng(0))[0]
        silent = replace(sequence, is_label=np.zeros_like(sequence.is_label))
        return collate([[silent]], self._encoder.tokenizer.pad_id)

    def _sequences(self, step: int, *, position: int) -> list[Sequence]:
        """Those of one document, with a seed for the noise of every picture that is drawn.

        None where the document cannot be used and its source leaves such documents out.
        """
        rng = np.random.default_rng([self._seed % 2**32, step, position])
        try:
            encoded = self._encoder.encode(self._mixture.document(step, position), rng=rng)
        except (DocumentError, LayoutError) as fault:
            if not self._mixture.leaves_out_faults(step, position):
                raise
            logger.warning("step %d goes without one of its documents: %s", step, fault)
            return []
        sequences, pictures = [], 0
        for sequence in encoded:
            numbers = range(pictures, pictures + len(sequence.target_dreams))
            seeds = tuple(derive_seed(self._seed, "noise", step, position, number) for number in numbers)
            sequences.append(replace(sequence, noise_seeds=seeds))
            pictures += len(seeds)
        return sequences
