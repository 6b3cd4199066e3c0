"""An encoder of JAM that lays retrieved documents before each document (CM3Leon, arXiv:2309.02591).

In training the retriever draws, and drops words, by the document's own generator; in generation it gives its
best.
"""

from dataclasses import dataclass

import numpy as np

from dreamllm.data.retrieval import Retriever
from dreamllm.document.document import Document
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.chat import ChatTemplate
from dreamllm.sequence.code_tokens import CodeTokens
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievingEncoder:
    """Encodes with what was retrieved; what does not fit is left out, the least alike first."""

    encoder: CodeSequenceEncoder
    retriever: Retriever
    room: int = 0
    """Positions of a prompt that retrieved documents leave free for what will be written."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The encoder's own, as are the following."""
        return self.encoder.tokenizer

    @property
    def tokens(self) -> CodeTokens:
        """Ids that are no words."""
        return self.encoder.tokens

    @property
    def chat(self) -> ChatTemplate:
        """How a conversation is written as text."""
        return self.encoder.chat

    @property
    def options(self) -> CodeEncodeOptions:
        """What a document becomes."""
        return self.encoder.options

    def encode(self, document: Document, *, rng: np.random.Generator | None = None) -> list[Sequence]:
        """The document as one training sequence, after what was retrieved for it."""
        return self.encoder.encode(document, rng=rng, context=self.retriever.retrieve(document, rng=rng))

    def encode_prompt(self, document: Document) -> Sequence:
        """The document as a prefix to continue, after the best that was retrieved for it."""
        context = self.retriever.retrieve(document)
        return self.encoder.encode_prompt(document, context=context, room=self.room)

    def unconditional(self) -> Sequence:
        """The other side of guidance, which sees nothing retrieved."""
        return self.encoder.unconditional()
