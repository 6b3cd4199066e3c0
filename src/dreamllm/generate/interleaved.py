"""The interleaved generator: documents in, words and pictures out, in the order the model decides.

The course of one document (DreamLLM, arXiv:2309.11499, section 3.2; `dream_row.py` keeps its state):

    1. read the prompt; pictures in it stand in image slots
    2. sample words; EOS ends the document
    3. on `<dream_start>` feed the dream queries and `<dream_end>`; their states are the condition
    4. draw the picture under classifier-free guidance
    5. feed `<im_start>`, the drawn picture as the vision encoder sees it, `<im_end>`; go on at 2

Only the decision to dream is the model's: all other structural tokens are fed, never sampled. Documents share
their language-model steps whatever state they are in, and pictures that wait share a denoising loop. The loop
around a step stands in `engine.py`.
"""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.document.events import Event, ImagePreview
from dreamllm.generate.cache import Reader
from dreamllm.generate.chunks import dream_chunk, image_chunks, sequence_chunk
from dreamllm.generate.draw_diffusion import draw
from dreamllm.generate.dream_row import DreamRow, DreamState
from dreamllm.generate.engine import Engine, ReaderRows
from dreamllm.generate.guidance import Unconditional
from dreamllm.generate.options import CODE_FIELDS, GenerationOptions
from dreamllm.generate.prompts import Prompt
from dreamllm.generate.sampling import next_tokens, row_generator
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.encode import SequenceEncoder


class InterleavedGenerator(Engine[DreamRow]):
    """Continues documents with one model.

    It remembers the unconditional side of guidance, so make a new one after the weights have changed.
    """

    def __init__(self, model: DreamLLM, encoder: SequenceEncoder) -> None:
        """The model is used as it is: put it into evaluation mode first."""
        super().__init__(model.language_model, encoder, max_encoded_length=encoder.options.max_length)
        self.model = model
        self.encoder = encoder
        self.special = encoder.tokenizer.special
        self.unconditional = Unconditional(model, encoder)
        self._words = self._may_say()

    def _check(self, options: GenerationOptions) -> None:
        options.refuse(CODE_FIELDS, "a model that draws by diffusion")

    def _picture_length(self) -> int:
        return self.encoder.sizes.dream_length

    def _room_for_pictures(self, options: GenerationOptions) -> int:
        sizes = self.encoder.sizes
        return options.max_images * (sizes.dream_length + sizes.image_length)

    def _step(
        self, rows: list[DreamRow], free: ReaderRows, options: GenerationOptions
    ) -> Iterator[tuple[int, Event]]:
        """Draw if enough pictures wait or nothing else is to do; read and speak otherwise."""
        waiting = [row for row in rows if row.state is DreamState.WAITING]
        readers = [row for row in rows if row.chunk is not None]
        if len(waiting) >= options.draw_batch_size or not readers:
            yield from self._draw(waiting[: options.draw_batch_size], options)
        else:
            self._read(readers, free.reader, options)

    @torch.no_grad()
    def _admit(self, prompt: Prompt, free: ReaderRows, options: GenerationOptions) -> DreamRow:
        row = DreamRow(
            prompt=prompt,
            cache_row=free.take(),
            options=options,
            max_length=self.max_length,
            decode=self.tokenizer.decode,
            sizes=self.encoder.sizes,
        )
        chunk = sequence_chunk(self.model, prompt.sequence)
        if options.mode == "image":
            row.start_picture()
            chunk = torch.cat([chunk, dream_chunk(self.model, self.special)])
        row.feed(chunk)
        return row

    @torch.no_grad()
    def _read(self, rows: list[DreamRow], reader: Reader, options: GenerationOptions) -> None:
        """Feed every row its chunk; those that dream get their condition, the others say the next token."""
        hidden = reader.read({row.cache_row: row.take_chunk() for row in rows})
        dreamers = [row for row in rows if row.state is DreamState.DREAMING]
        if dreamers:
            queries = slice(-1 - self.encoder.sizes.num_dream_queries, -1)  # <dream_end> comes after them
            states = torch.stack([hidden[row.cache_row][queries] for row in dreamers])
            conditions = self.model.project_conditions(states)
            for number, row in enumerate(dreamers):
                row.wait(conditions[number : number + 1])
        speakers = [row for row in rows if row.state is not DreamState.WAITING]
        if speakers:
            self._speak(speakers, torch.stack([hidden[row.cache_row][-1] for row in speakers]), options)

    def _speak(self, rows: list[DreamRow], hidden: Float[Tensor, "B D"], options: GenerationOptions) -> None:
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
                row.start_picture()
                row.feed(dream_chunk(self.model, self.special))
            else:
                row.write(token)
                if not row.is_done:
                    row.feed(embed)

    def _allowed(self, rows: list[DreamRow]) -> Bool[Tensor, "B V"]:
        """What each row may say: words, EOS, and `<dream_start>` where a picture is allowed and has room."""
        allowed = self._words.repeat(len(rows), 1)
        may_dream = torch.tensor([row.may_dream for row in rows], device=allowed.device)
        allowed[:, self.special.dream_start] = may_dream
        return allowed

    def _draw(self, rows: list[DreamRow], options: GenerationOptions) -> Iterator[tuple[int, Event]]:
        """Draw the pictures of these rows together; each row that goes on will look at its own."""
        loop = draw(
            self.model.image_decoder,
            Condition.cat([row.condition for row in rows if row.condition is not None]),
            None if options.guidance_scale == 1 else self.unconditional(options.negative_prompt),
            generators=[
                row_generator(options.seed, row.prompt.name, "picture", row.num_images) for row in rows
            ],
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
    def _look(self, rows: list[DreamRow], images: list[PILImage.Image]) -> None:
        """Show each row the picture it has drawn."""
        pixels = np.stack([self.encoder.vision_transform(image) for image in images])
        chunks = image_chunks(self.model, self.special, torch.from_numpy(pixels))
        for row, chunk in zip(rows, chunks, strict=True):
            row.feed(chunk)
