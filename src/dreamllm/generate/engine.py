"""The loop that both families of models generate with: documents in, events out, many rows at once.

A queue of prompts, rows of the language model's cache that documents use and hand on, one step after the
other for all documents under way, and what they say in the meantime. What a step is, and when a picture comes
into being, is the family's: `interleaved.py` (DreamLLM) and `codes.py` (JAM).
"""

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dreamllm.document.document import Document, Role
from dreamllm.document.events import Event, fold
from dreamllm.generate.cache import CachedReader, PrefixReader, Reader
from dreamllm.generate.options import GenerationOptions
from dreamllm.generate.prompts import Prompt, PromptEncoder, encode_prompts
from dreamllm.generate.rows import Row

DEFAULT_OPTIONS = GenerationOptions()
COST_OF_A_PASS = 32
"""What a pass of a small model over nothing would take, in positions."""
RowT = TypeVar("RowT", bound=Row)


class ReaderRows:
    """The rows of a reader that are free; the lowest are taken first, so that rows in use are neighbours."""

    def __init__(self, reader: Reader, num_rows: int) -> None:
        self.reader = reader
        self._free = list(range(num_rows))

    def take(self) -> int:
        """A row that nobody uses."""
        return heapq.heappop(self._free)

    def release(self, row: int) -> None:
        """The row is forgotten and free."""
        self.reader.release(row)
        heapq.heappush(self._free, row)


class Engine(ABC, Generic[RowT]):
    """Continues documents; the families say what one step does."""

    def __init__(
        self, language_model: PreTrainedModel, encoder: PromptEncoder, *, max_encoded_length: int
    ) -> None:
        """`max_encoded_length` is the longest sequence that the encoder makes."""
        config = language_model.config.get_text_config()
        self._language_model = language_model
        self._prompt_encoder = encoder
        self.tokenizer = encoder.tokenizer
        # One position is kept for EOS, so that a finished document can be read again.
        self.max_length = min(max_encoded_length, config.max_position_embeddings) - 1

    def generate(
        self, documents: Sequence[Document], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> list[Document]:
        """The documents with what the model wrote and drew after them.

        Raises:
            ConfigError: an option is of another family of models.
            LayoutError: a prompt leaves no room in the model's context.
            ImageError: a picture of a prompt cannot be read.
        """
        events: list[list[Event]] = [[] for _ in documents]
        for index, event in self.stream(documents, options):
            events[index].append(event)
        return [continued(document, said) for document, said in zip(documents, events, strict=True)]

    def stream(
        self, documents: Sequence[Document], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Event]]:
        """Events as they happen, each with the index of its document. Closing the iterator stops the work.

        Raises:
            ConfigError: an option is of another family of models.
            LayoutError: a prompt leaves no room in the model's context; no document is begun then.
            ImageError: a picture of a prompt cannot be read.
        """
        self._check(options)
        queue = deque(
            encode_prompts(
                self._prompt_encoder,
                documents,
                options,
                max_length=self.max_length,
                needed=self._picture_length() if options.mode == "image" else 1,
            )
        )
        num_documents = min(options.max_batch_size, len(queue))
        num_rows = num_documents * self._rows_per_document(options)
        free = ReaderRows(self._reader(queue, options, num_rows=num_rows), num_rows)
        rows: list[RowT] = []
        while queue or rows:
            while queue and len(rows) < num_documents:
                rows.append(self._admit(queue.popleft(), free, options))
            yield from self._step(rows, free, options)
            for row in rows:
                for event in row.collect():
                    yield row.index, event
            for row in [row for row in rows if row.is_done]:
                free.release(row.cache_row)
                rows.remove(row)

    @abstractmethod
    def _check(self, options: GenerationOptions) -> None:
        """Raise ConfigError for options that this family cannot obey."""

    @abstractmethod
    def _picture_length(self) -> int:
        """Positions that a prompt must leave for the one picture of the image mode."""

    @abstractmethod
    def _room_for_pictures(self, options: GenerationOptions) -> int:
        """Positions that the pictures of one document may take."""

    def _rows_per_document(self, options: GenerationOptions) -> int:
        """Rows of the reader that one document may use at once."""
        return 1

    @abstractmethod
    def _admit(self, prompt: Prompt, free: ReaderRows, options: GenerationOptions) -> RowT:
        """A document under way, which is to be fed the prompt."""

    @abstractmethod
    def _step(
        self, rows: list[RowT], free: ReaderRows, options: GenerationOptions
    ) -> Iterator[tuple[int, Event]]:
        """Bring the rows on by one step; only what cannot wait for its end is yielded."""

    def _may_say(self) -> Tensor:
        """(V,) bool: words and EOS."""
        vocab_size = self._language_model.config.get_text_config().vocab_size
        words = torch.zeros(vocab_size, dtype=torch.bool, device=self._language_model.device)
        words[: self.tokenizer.vocab_size] = True  # further rows only pad the table, or are codes
        never = {*self.tokenizer.special.suppressed, self.tokenizer.bos_id} - {self.tokenizer.eos_id}
        words[sorted(never)] = False
        return words

    def _reader(self, prompts: Sequence[Prompt], options: GenerationOptions, *, num_rows: int) -> Reader:
        if not options.use_cache:
            return PrefixReader(self._language_model)
        longest = max((len(prompt.sequence.input_ids) for prompt in prompts), default=0)
        needed = longest + options.max_new_tokens + self._room_for_pictures(options)
        return CachedReader(self._language_model, num_rows=num_rows, max_length=min(needed, self.max_length))


def passes(lengths: Mapping[int, int]) -> list[list[int]]:
    """Rows that are read together, by how much each reads: all, or the short apart from the long.

    In one pass every row takes the time of the longest, as a prompt among rows that read one token; a pass
    of its own takes time too.
    """
    rows = sorted(lengths, key=lengths.__getitem__)
    sizes = [lengths[row] for row in rows]
    num = len(rows)
    cuts = [cut for cut in range(1, num) if sizes[cut - 1] < sizes[cut]]
    costs = {cut: cut * sizes[cut - 1] + (num - cut) * sizes[-1] + COST_OF_A_PASS for cut in cuts}
    cut = min(costs, key=costs.__getitem__, default=num)
    if cut == num or costs[cut] >= num * sizes[-1]:
        return [rows]
    return [rows[:cut], rows[cut:]]


def continued(document: Document, events: Sequence[Event]) -> Document:
    """The document with what the events wrote and drew after it."""
    role: Role | None = "assistant" if document.is_conversation else None
    return replace(document, parts=document.parts + fold(events, role=role))
