"""What turns documents into sequences, whichever family of models reads them."""

from typing import Protocol

import numpy as np

from dreamllm.document.document import Document
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.tokenizer import Tokenizer


class DocumentEncoder(Protocol):
    """What training asks of an encoder."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Knows the id that pads."""
        ...

    def encode(self, document: Document, *, rng: np.random.Generator | None = None) -> list[Sequence]:
        """The training sequences of a document; a generator decides what is random."""
        ...
