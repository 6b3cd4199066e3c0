"""What can be said of one document by itself: a document in, its facts out, or a FaultError.

Pictures are opened as far as their header; with `decode` they are decoded whole, which finds damage further
in, and lets pictures that look the same be found, not only those of equal bytes. A pass over an archive
measures documents in worker processes and gives the facts in order, so the number of workers changes nothing.
"""

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image as PILImage

from dreamllm.data.duplicates import DocumentSketch
from dreamllm.data.sketches import THUMBNAIL_PX, repetition, text_sketch, thumbnail
from dreamllm.data.token_count import load_counter, num_tokens
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.images import image_size
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError, DocumentError, ImageError

_DOCUMENTS_PER_TASK = 32
_TASKS_PER_WORKER = 4


class Documents(Protocol):
    """Documents by index; an index whose document cannot be used raises a FaultError."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Document: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How closely a document is looked at."""

    decode: bool = False
    """Decode every picture whole."""
    tokenizer: Path | None = None
    """Folder with a tokenizer.json to count tokens with; None: words are counted alone."""
    sketch: bool = True
    """Make what near-duplicates are found by."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """One picture of a document."""

    width: int
    height: int
    is_drawn: bool
    """Whether a model learns to draw it."""
    digest: int
    """64 bits of its bytes."""

    @property
    def shorter_side_px(self) -> int:
        """The shorter side."""
        return min(self.width, self.height)

    @property
    def aspect_ratio(self) -> float:
        """Longer side by shorter side, at least 1."""
        return max(self.width, self.height) / min(self.width, self.height)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentFacts:
    """One document, measured."""

    id: str
    roles: tuple[str, ...]
    """One a part; empty in a plain document."""
    num_characters: int
    num_words: int
    """Runs of characters between white space."""
    num_tokens: int | None
    """Of the text alone; None without a tokenizer."""
    learns: bool
    """Whether any part of it is learned; the rest is only read."""
    repetition: float
    """Share of runs of 20 characters that stood in the text before."""
    pictures: tuple[PictureFacts, ...]
    digest: int
    """64 bits of all its parts: equal documents have equal digests, whatever their ids."""
    text_digest: int
    sketch: DocumentSketch | None


def measure(document: Document, options: MeasureOptions = MeasureOptions()) -> DocumentFacts:
    """The facts of one document.

    Raises:
        FaultError: a picture is missing or cannot be read.
        ConfigError: the tokenizer cannot be read.
    """
    seen = [_look(image, decode=options.decode) for image in document.images]
    texts = [part.text for part in document if isinstance(part, Text)]
    text = "\n".join(texts)  # turns of a conversation do not run into each other
    sketch = None
    if options.sketch:
        sketch = DocumentSketch(
            text=text_sketch(text), picture=seen[0][1] if seen else None, num_pictures=len(seen)
        )
    pictures = tuple(facts for facts, _ in seen)
    return DocumentFacts(
        id=document.id,
        roles=tuple(part.role for part in document if part.role is not None),
        num_characters=sum(map(len, texts)),
        num_words=len(text.split()),
        num_tokens=None if options.tokenizer is None else num_tokens(options.tokenizer, texts),
        learns=any(part.learn and part.role in (None, "assistant") for part in document),
        repetition=repetition(text),
        pictures=pictures,
        digest=_digest_of(document, pictures),
        text_digest=_digest(text.encode("utf-8", "surrogatepass")),
        sketch=sketch,
    )


def measure_all(
    documents: Documents, indices: Iterable[int], *, options: MeasureOptions, num_workers: int = 0
) -> Iterator[tuple[int, DocumentFacts | FaultError]]:
    """Every index with its facts, or with the fault that makes its document unusable, in the order given.

    Raises:
        DocumentError: a worker process was ended from outside.
    """
    if num_workers < 0:
        raise ConfigError(f"workers is {num_workers}; expected 0 (none) or more; correct it")
    if options.tokenizer is not None:
        load_counter(options.tokenizer)  # a wrong folder is told before the first document
    if num_workers == 0:
        yield from ((index, _measured(documents, index, options)) for index in indices)
        return
    numbers = iter(indices)
    tasks = iter(lambda: list(islice(numbers, _DOCUMENTS_PER_TASK)), [])
    pending: deque[tuple[list[int], Future[list[DocumentFacts | FaultError]]]] = deque()
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of threads that are not copied
    with ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(documents, options)
    ) as pool:
        try:
            while True:
                for task in islice(tasks, num_workers * _TASKS_PER_WORKER - len(pending)):
                    pending.append((task, pool.submit(_measure_task, task)))
                if not pending:
                    return
                task, result = pending.popleft()
                yield from zip(task, result.result(), strict=True)
        except BrokenProcessPool as error:
            raise DocumentError(
                f"a worker of {num_workers} was ended while it read documents; expected enough memory for "
                "all of them; choose fewer workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def usable(documents: Documents, index: int) -> Document | FaultError:
    """The document at an index, or the fault that stands in its way, of whatever kind it is."""
    try:
        return documents[index]
    except FaultError as fault:
        return fault
    except ImageError as error:
        return FaultError("corrupt_image", str(error))
    except (DocumentError, OSError) as error:
        return FaultError("bad_document", str(error))


def _measured(documents: Documents, index: int, options: MeasureOptions) -> DocumentFacts | FaultError:
    document = usable(documents, index)
    if isinstance(document, FaultError):
        return document
    try:
        return measure(document, options)
    except FaultError as fault:
        return FaultError(fault.kind, f"document {index} ({document.id!r}): {fault}")


_worker: tuple[Documents, MeasureOptions] | None = None


def _start_worker(documents: Documents, options: MeasureOptions) -> None:
    global _worker
    _worker = (documents, options)


def _measure_task(indices: Sequence[int]) -> list[DocumentFacts | FaultError]:
    assert _worker is not None
    documents, options = _worker
    return [_measured(documents, index, options) for index in indices]


def _look(image: Image, *, decode: bool) -> tuple[PictureFacts, np.ndarray]:
    """Facts of a picture, and the thumbnail that stands for it."""
    try:
        data = _bytes(image)
        picture = image.load() if decode else None
        width, height = picture.size if picture is not None else image_size(image.source)
    except ImageError as error:
        is_missing = isinstance(image.source, Path) and not image.source.exists()
        raise FaultError("missing_image" if is_missing else "corrupt_image", str(error)) from error
    facts = PictureFacts(width, height, image.learn and image.role != "user", _digest(data))
    if picture is not None:
        return facts, thumbnail(picture)
    # Noise that belongs to the bytes: like itself, and like nothing else.
    noise = hashlib.shake_128(data).digest(THUMBNAIL_PX * THUMBNAIL_PX * 3)
    return facts, np.frombuffer(noise, dtype=np.uint8).reshape(THUMBNAIL_PX, THUMBNAIL_PX, 3)


def _bytes(image: Image) -> bytes:
    source = image.source
    if isinstance(source, bytes):
        return source
    if isinstance(source, PILImage.Image):
        picture = image.load()
        return repr(picture.size).encode() + picture.tobytes()
    try:
        return source.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise ImageError(
            f"picture {source} cannot be read: {reason}; expected a readable file; "
            "restore it, or remove the document"
        ) from error


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _digest_of(document: Document, pictures: Sequence[PictureFacts]) -> int:
    digests = iter(pictures)
    parts = [
        (part.role, part.learn, part.text if isinstance(part, Text) else next(digests).digest)
        for part in document
    ]
    return _digest(repr(parts).encode("utf-8", "backslashreplace"))
