"""Documents of a step -> packed micro-batches; a pure function of the step number."""

import numpy as np
from torch.utils.data import Dataset

from dreamllm.data.mixture import Mixture
from dreamllm.sequence.batch import Batch
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
    ) -> None:
        self._mixture = mixture
        self._encoder = encoder
        self._steps = steps
        self._row_length = row_length
        self._rows_per_micro_batch = rows_per_micro_batch
        self._seed = seed
        self._packing = packing

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> list[Batch]:
        """Raises LayoutError for a document that is longer than a row."""
        rng = np.random.default_rng([self._seed % 2**32, step])
        sequences = [
            sequence
            for document in self._mixture.documents(step)
            for sequence in self._encoder.encode(document, rng=rng)
        ]
        rows = pack(sequences, self._row_length, enabled=self._packing)
        size = self._rows_per_micro_batch
        return [
            collate(rows[start : start + size], self._encoder.tokenizer.pad_id)
            for start in range(0, len(rows), size)
        ]
