"""The interleaved generator: documents in, words and pictures out, in the order the model decides.

The course of one document (DreamLLM, arXiv:2309.11499, section 3.2; `rows.py` keeps its state):

    1. read the prompt; pictures in it stand in image slots
    2. sample words; EOS ends the document
    3. on `<dream_start>` feed the dream queries and `<dream_end>`; their states are the condition
    4. draw the picture under classifier-free guidance
    5. feed `<im_start>`, the drawn picture as the vision encoder sees it, `<im_end>`; go on at 2

Only the decision to dream is the model's: all other structural tokens are fed, never sampled. Documents share
their language-model steps whatever state they are in, pictures that wait share a denoising loop, and a
finished document hands its row to the next in the queue.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.document.document import Document, Role
from dreamllm.document.events import Event, ImagePreview, fold
from dreamllm.generate.cache import CachedReader, PrefixReader, Reader
from dreamllm.generate.chunks import dream_chunk, image_chunks, sequence_chunk
from dreamllm.generate.draw_diffusion import draw
from dreamllm.generate.guidance import Unconditional
from dreamllm.generate.options import GenerationOptions
from dreamllm.generate.prompts import Prompt, encode_prompts
from dreamllm.generate.rows import Row, RowState, TextRun
from dreamllm.generate.sampling import next_tokens, row_generator
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.encode import SequenceEncoder

DEFAULT_OPTIONS = GenerationOptions()


class InterleavedGenerator:
    """Continues documents with one model.

    It remembers the unconditional side of guidance, so make a new one after the weights have changed.
    """

    def __init__(self, model: DreamLLM, encoder: SequenceEncoder) -> None:
        """The model is used as it is: put it into evaluation mode first."""
        self.model = model
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer
        self.special = encoder.tokenizer.special
        self.unconditional = Unconditional(model, encoder)
        config = model.language_model.config.get_text_config()
        # One position is kept for EOS, so that a finished document can be read again.
        self.max_length = min(encoder.options.max_length, config.max_position_embeddings) - 1
        self._may_say = torch.zeros(config.vocab_size, dtype=torch.bool, device=model.device)
        self._may_say[: self.tokenizer.vocab_size] = True  # further rows only pad the table
        never = {*self.special.suppressed, self.tokenizer.bos_id} - {self.tokenizer.eos_id}
        self._may_say[sorted(never)] = False

    def generate(
        self, documents: Sequence[Document], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> list[Document]:
        """The documents with what the model wrote and drew after them.

        Raises:
            LayoutError: a prompt leaves no room in the model's context.
            ImageError: a picture of a prompt cannot be read.
        """
        events: list[list[Event]] = [[] for _ in documents]
        for index, event in self.stream(documents, options):
            events[index].append(event)
        return [_continued(document, said) for document, said in zip(documents, events, strict=True)]

    def stream(
        self, documents: Sequence[Document], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Event]]:
        """Events as they happen, each with the index of its document. Closing the iterator stops the work.

        Raises:
            LayoutError: a prompt leaves no room in the model's context; no document is begun then.
            ImageError: a picture of a prompt cannot be read.
        """
        queue = deque(encode_prompts(self.encoder, documents, options, max_length=self.max_length))
        free = list(reversed(range(min(options.max_batch_size, len(queue)))))
        reader = self._reader(queue, options, num_rows=len(free))
        rows: list[Row] = []
        while queue or rows:
            while queue and free:
                rows.append(self._admit(queue.popleft(), free.pop(), options))
            waiting = [row for row in rows if row.state is RowState.WAITING]
            readers = [row for row in rows if row.chunk is not None]
            if len(waiting) >= options.draw_batch_size or not readers:
                yield from self._draw(waiting[: options.draw_batch_size], options)
            else:
                self._read(readers, reader, options)
            for row in rows:
                for event in row.collect():
                    yield row.index, event
            for row in [row for row in rows if row.state is RowState.DONE]:
                reader.release(row.cache_row)
                free.append(row.cache_row)
                rows.remove(row)
            free.sort(reverse=True)  # the lowest first, so that rows stay neighbours

    def _reader(self, prompts: Sequence[Prompt], options: GenerationOptions, *, num_rows: int) -> Reader:
        if not options.use_cache:
            return PrefixReader(self.model.language_model)
        sizes = self.encoder.sizes
        pictures = options.max_images * (sizes.dream_length + sizes.image_length)
        longest = max((len(prompt.sequence.input_ids) for prompt in prompts), default=0)
        needed = longest + options.max_new_tokens + pictures
        return CachedReader(
            self.model.language_model, num_rows=num_rows, max_length=min(needed, self.max_length)
        )

    @torch.no_grad()
    def _admit(self, prompt: Prompt, cache_row: int, options: GenerationOptions) -> Row:
        row = Row(
            index=prompt.index,
            cache_row=cache_row,
            name=prompt.name,
            options=options,
            sizes=self.encoder.sizes,
            max_length=self.max_length,
            decode=self.tokenizer.decode,
            text=TextRun(self.tokenizer.decode, prefix=prompt.first_prefix),
            next_prefix=prompt.next_prefix,
            generator=row_generator(options.seed, prompt.name, "text"),
        )
        chunk = sequence_chunk(self.model, prompt.sequence)
        if options.mode == "image":
            row.dream()
            chunk = torch.cat([chunk, dream_chunk(self.model, self.special)])
        row.feed(chunk)
        return row

    @torch.no_grad()
    def _read(self, rows: list[Row], reader: Reader, options: GenerationOptions) -> None:
        """Feed every row its chunk; those that dream get their condition, the others say the next token."""
        hidden = reader.read({row.cache_row: row.take_chunk() for row in rows})
        dreamers = [row for row in rows if row.state is RowState.DREAMING]
        if dreamers:
            queries = slice(-1 - self.encoder.sizes.num_dream_queries, -1)  # <dream_end> comes after them
            states = torch.stack([hidden[row.cache_row][queries] for row in dreamers])
            conditions = self.model.project_conditions(states)
            for number, row in enumerate(dreamers):
                row.wait(conditions[number : number + 1])
        speakers = [row for row in rows if row.state is not RowState.WAITING]
        if speakers:
            self._speak(speakers, torch.stack([hidden[row.cache_row][-1] for row in speakers]), options)

    def _speak(self, rows: list[Row], hidden: Float[Tensor, "B D"], options: GenerationOptions) -> None:
        """Choose the next token of every row and prepare what the row reads next."""
        tokens = next_tokens(
            self.model.logits(hidden),
            self._allowed(rows),
            [row.generator for row in rows],
            temperature=options.temperature,
            top_p=options.top_p,
        )
        embeds = self.model.embed_ids(tokens[:, None])  # (B, 1, D)
        for row, token, embed in zip(rows, tokens.tolist(), embeds, strict=True):
            if token == self.tokenizer.eos_id:
                row.finish("end")
            elif token == self.special.dream_start:
                row.dream()
                row.feed(dream_chunk(self.model, self.special))
            else:
                row.write(token)
                if row.state is not RowState.DONE:
                    row.feed(embed)

    def _allowed(self, rows: list[Row]) -> Bool[Tensor, "B V"]:
        """What each row may say: words, EOS, and `<dream_start>` where a picture is allowed and has room."""
        allowed = self._may_say.repeat(len(rows), 1)
        may_dream = torch.tensor([row.may_dream for row in rows], device=allowed.device)
        allowed[:, self.special.dream_start] = may_dream
        return allowed

    def _draw(self, rows: list[Row], options: GenerationOptions) -> Iterator[tuple[int, Event]]:
        """Draw the pictures of these rows together; each row that goes on will look at its own."""
        loop = draw(
            self.model.image_decoder,
            Condition.cat([row.condition for row in rows if row.condition is not None]),
            None if options.guidance_scale == 1 else self.unconditional(options.negative_prompt),
            generators=[row_generator(options.seed, row.name, "picture", row.num_images) for row in rows],
            options=options,
        )
        with closing(loop):
            for drawing in loop:
                for row, image in zip(rows, drawing.images, strict=True):
                    if drawing.is_finished:
                        row.receive(image)
                    else:
                        preview = ImagePreview(row.num_images, image, drawing.step, drawing.num_steps)
                        yield row.index, preview
        if options.mode != "image":
            self._look(rows, drawing.images)

    @torch.no_grad()
    def _look(self, rows: list[Row], images: list[PILImage.Image]) -> None:
        """Show each row the picture it has drawn."""
        pixels = np.stack([self.encoder.vision_transform(image) for image in images])
        chunks = image_chunks(self.model, self.special, torch.from_numpy(pixels))
        for row, chunk in zip(rows, chunks, strict=True):
            row.feed(chunk)


def _continued(document: Document, events: list[Event]) -> Document:
    role: Role | None = "assistant" if document.is_conversation else None
    return replace(document, parts=document.parts + fold(events, role=role))
