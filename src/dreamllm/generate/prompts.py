"""Documents made ready to be continued: encoded, checked for room, and named for their randomness."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dreamllm.document.document import Document, Text
from dreamllm.errors import LayoutError
from dreamllm.generate.options import GenerationOptions
from dreamllm.sequence.batch import Sequence as EncodedDocument
from dreamllm.sequence.encode import SequenceEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One document in the queue."""

    index: int
    """Its place in the caller's list."""
    name: str
    """With the seed, decides its randomness; a pure function of the document and of equal ones before it."""
    sequence: EncodedDocument
    first_prefix: str
    """What the chat template puts before the first words of the answer; empty when an answer is continued."""
    next_prefix: str
    """What it puts before words that follow a picture."""


def encode_prompts(
    encoder: SequenceEncoder, documents: Sequence[Document], options: GenerationOptions, *, max_length: int
) -> list[Prompt]:
    """The queue, in the order of the documents.

    Raises:
        LayoutError: a prompt is too long, or leaves no room for one token (or for the picture asked for).
        ImageError: a picture cannot be read.
    """
    needed = encoder.sizes.dream_length if options.mode == "image" else 1
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
    content.update(sequence.vision_pixels.tobytes())
    return content.hexdigest()
