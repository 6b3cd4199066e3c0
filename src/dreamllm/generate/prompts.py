"""Documents made ready to be continued: encoded, checked for room, and named for their randomness."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dreamllm.document.document import Document, Text
from dreamllm.errors import LayoutError
from dreamllm.generate.options import GenerationOptions
from dreamllm.sequence.batch import Sequence as EncodedDocument
from dreamllm.sequence.chat import ChatTemplate
from dreamllm.sequence.tokenizer import Tokenizer


class PromptEncoder(Protocol):
    """What the engine asks of the encoder of a family."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        ...

    @property
    def chat(self) -> ChatTemplate:
        """How a conversation is written as text."""
        ...

    def encode_prompt(self, document: Document) -> EncodedDocument:
        """The document as a prefix to continue."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One document in the queue."""

    index: int
    """Its place in the caller's list."""
    name: str
    """With the seed, decides its randomness; a pure function of the document and of equal ones before it."""
    document: Document
    sequence: EncodedDocument
    first_prefix: str
    """What the chat template puts before the first words of the answer; empty when an answer is continued."""
    next_prefix: str
    """What it puts before words that follow a picture."""


def encode_prompts(
    encoder: PromptEncoder,
    documents: Sequence[Document],
    options: GenerationOptions,
    *,
    max_length: int,
    needed: int,
) -> list[Prompt]:
    """The queue, in the order of the documents; each leaves `needed` of `max_length` positions.

    Raises:
        LayoutError: a prompt is too long, or leaves no room for one token (or for the picture asked for).
        ImageError: a picture cannot be read.
    """
    times_seen: Counter[str] = Counter()
    prompts = []
    for index, document in enumerate(documents):
        sequence = encoder.encode_prompt(document)
        length = len(sequence.input_ids)
        if length + needed > max_length:
            raise LayoutError(
                f"the prompt of document {document.id!r} has {length} positions; at most "
                f"{max_length - needed} leave room for what mode {options.mode!r} adds; shorten it"
            )
        name = document.id or _digest(sequence)
        prefix = encoder.chat.content_prefix if document.is_conversation else ""
        prompts.append(
            Prompt(
                index=index,
                name=f"{name}/{times_seen[name]}",
                document=document,
                sequence=sequence,
                first_prefix="" if _continues_answer(document) else prefix,
                next_prefix=prefix,
            )
        )
        times_seen[name] += 1
    return prompts


def _continues_answer(document: Document) -> bool:
    last = document.parts[-1] if document.parts else None
    return isinstance(last, Text) and last.role == "assistant"


def _digest(sequence: EncodedDocument) -> str:
    content = hashlib.sha256(sequence.input_ids.tobytes())
    content.update(sequence.vision_pixels.levels.numpy().tobytes())
    return content.hexdigest()
