"""The generator of JAM: documents in, words and pictures out, every one of them a token.

The course of one document (JAM, arXiv:2309.15564; `code_row.py` keeps its state):

    1. read the prompt
    2. sample words; EOS ends the document
    3. on `<break>` sample exactly G codes, under guidance if asked for; the image tokenizer makes the picture
    4. sample `<break>`, after which the document goes on at 2, or EOS

Which ids may be sampled follows from the state of a row, so what is written is always well formed. Documents
share their language-model steps whatever state they are in; the other side of guidance and further
candidates of a picture are rows of the same reader, and pictures finished in the same step are decoded
together.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.document.document import Document
from dreamllm.document.events import Event, ImagePreview
from dreamllm.errors import ConfigError
from dreamllm.generate.cache import Reader
from dreamllm.generate.code_row import CodeRow, CodeState
from dreamllm.generate.draw_codes import (
    Picture,
    code_scores,
    decode_pictures,
    has_other_side,
    preview_pictures,
    without_words,
)
from dreamllm.generate.engine import Engine, ReaderRows, passes
from dreamllm.generate.options import DIFFUSION_FIELDS, GenerationOptions
from dreamllm.generate.prompts import Prompt
from dreamllm.generate.sampling import next_tokens, pick
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.jam import JAM
from dreamllm.sequence.encode_codes import CodeSequenceEncoder
from dreamllm.sequence.retrieving import RetrievingEncoder

Scorer = Callable[[Document, Sequence[PILImage.Image]], Sequence[float]]
"""How good each picture would be as the next one of a document; higher is better."""


class CodeGenerator(Engine[CodeRow]):
    """Continues documents with one model.

    Of several candidates that picture is kept whose codes are likeliest under the model without guidance, or
    the one that a scorer prefers. A scorer that knows the truth makes an oracle: say so with its results.
    """

    def __init__(
        self, model: JAM, encoder: CodeSequenceEncoder | RetrievingEncoder, *, scorer: Scorer | None = None
    ) -> None:
        """The model is used as it is: put it into evaluation mode first."""
        super().__init__(model.language_model, encoder, max_encoded_length=encoder.options.max_length)
        self.model = model
        self.encoder = encoder
        self.tokens = encoder.tokens
        self.scorer = scorer
        self._allowed = self._allowed_by_kind()

    def _check(self, options: GenerationOptions) -> None:
        options.refuse(DIFFUSION_FIELDS, "a model that draws by codes")
        if options.mode == "image" and self.model.image_tokenizer is None:
            raise ConfigError(
                "mode is 'image', but this model has no image tokenizer, as a parent that only writes; "
                "expected one that makes pictures of codes; choose mode 'text', or another model"
            )

    def _picture_length(self) -> int:
        return self.tokens.picture_length

    def _room_for_pictures(self, options: GenerationOptions) -> int:
        return max(options.max_images, 1) * self.tokens.picture_length

    def _rows_per_document(self, options: GenerationOptions) -> int:
        may_draw = options.mode == "image" or (options.mode == "interleaved" and options.max_images > 0)
        if not may_draw or self.model.image_tokenizer is None:
            return 1
        return options.num_candidates * (1 + has_other_side(options))

    def _admit(self, prompt: Prompt, free: ReaderRows, options: GenerationOptions) -> CodeRow:
        row = CodeRow(
            prompt=prompt,
            cache_row=free.take(),
            options=options,
            max_length=self.max_length,
            decode=self.tokenizer.decode,
            tokens=self.tokens,
            has_tokenizer=self.model.image_tokenizer is not None,
        )
        row.read_prompt()
        if options.mode == "image":
            is_open = row.state is CodeState.CLOSING
            row.feed([self.tokens.break_] * (1 + is_open))
            row.chunks = {row.cache_row: list(row.ids)}
            self._begin_picture(row, free)
        return row

    @torch.no_grad()
    def _step(
        self, rows: list[CodeRow], free: ReaderRows, options: GenerationOptions
    ) -> Iterator[tuple[int, Event]]:
        logits, places = self._read(rows, free.reader)
        artists = [row for row in rows if row.state is CodeState.DRAWING]
        writers = [row for row in rows if row.state is not CodeState.DRAWING]
        if artists:
            self._draw(artists, logits, places, options)
            self._show(artists, options)
            self._finish_pictures(artists, free, options)
        if writers:
            self._speak(writers, logits[[places[row.cache_row] for row in writers]], free, options)
        return iter(())

    def _read(self, rows: list[CodeRow], reader: Reader) -> tuple[Float[Tensor, "B V"], dict[int, int]]:
        """Feed every row its ids; the logits of what follows, and at which of them a cache row is found."""
        chunks = {cache_row: ids for row in rows for cache_row, ids in row.chunks.items()}
        ids = torch.tensor([token for chunk in chunks.values() for token in chunk], device=self.model.device)
        embeds = self.model.embed_ids(ids[None])[0].split([len(chunk) for chunk in chunks.values()])
        fed = dict(zip(chunks, embeds, strict=True))
        hidden: dict[int, Tensor] = {}
        for together in passes({cache_row: len(chunk) for cache_row, chunk in chunks.items()}):
            hidden |= reader.read({cache_row: fed[cache_row] for cache_row in together})
        logits = self.model.logits(torch.stack([hidden[cache_row][-1] for cache_row in chunks]))
        return logits, {cache_row: place for place, cache_row in enumerate(chunks)}

    def _speak(
        self, rows: list[CodeRow], logits: Float[Tensor, "B V"], free: ReaderRows, options: GenerationOptions
    ) -> None:
        """Choose the next word, `<break>` or EOS of every row."""
        tokens = next_tokens(
            logits,
            self._allowed[[_kind(row) for row in rows]],
            [row.generator for row in rows],
            temperature=options.temperature,
            top_p=options.top_p,
        )
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row.state is CodeState.CLOSING and not row.may_go_on:
                row.finish("length")
            elif token == self.tokenizer.eos_id:
                row.finish("end")
            elif token != self.tokens.break_:
                row.write(token)
            else:
                is_closing = row.state is CodeState.CLOSING
                row.feed([token])
                if is_closing:
                    row.state = CodeState.CLOSED
                else:
                    self._begin_picture(row, free)

    def _begin_picture(self, row: CodeRow, free: ReaderRows) -> None:
        """The opening `<break>` is the last id of the row."""
        options = row.options
        picture = Picture.begin(
            [row.cache_row, *(free.take() for _ in range(options.num_candidates - 1))],
            [free.take() for _ in range(options.num_candidates)] if has_other_side(options) else [],
            name=row.prompt.name,
            number=row.num_images,
            codes_per_picture=self.tokens.codes_per_picture,
            seed=options.seed,
        )
        if options.guidance_keeps_pictures:
            other_side = without_words(row.ids, self.tokens)
        else:
            other_side = self.encoder.unconditional().input_ids.tolist()
        row.begin_picture(picture, other_side)

    def _draw(
        self,
        rows: list[CodeRow],
        logits: Float[Tensor, "B V"],
        places: dict[int, int],
        options: GenerationOptions,
    ) -> None:
        """Choose the next code of every candidate."""
        pictures = [row.picture for row in rows if row.picture is not None]
        first = self.tokens.first_code
        codes_only = logits[:, first : first + self.tokens.num_codes].float()
        conditional = codes_only[[places[r] for picture in pictures for r in picture.conditional]]
        other = [places[r] for picture in pictures for r in picture.unconditional]
        points = [each[picture.num_drawn] for picture in pictures for each in picture.points]
        chosen = pick(
            code_scores(conditional, codes_only[other] if other else None, options),
            torch.tensor(points, dtype=torch.float64),
            temperature=options.image_temperature,
            top_p=options.image_top_p,
        )
        codes = iter(chosen.tolist())
        if options.num_candidates > 1:
            gains = iter(conditional.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0].tolist())
            for picture in pictures:
                picture.log_likelihoods = [old + next(gains) for old in picture.log_likelihoods]
        for row, picture in zip(rows, pictures, strict=True):
            row.draw([next(codes) for _ in picture.conditional])

    def _show(self, rows: list[CodeRow], options: GenerationOptions) -> None:
        """Preview the pictures that are due. Of several candidates it is not known which will be kept."""
        if options.preview_every is None or options.num_candidates > 1:
            return
        shown = [
            (row, row.picture.codes[0])
            for row in rows
            if row.picture is not None
            and not row.picture.is_complete
            and row.picture.num_drawn % options.preview_every == 0
        ]
        images = preview_pictures(
            self._image_tokenizer, [codes for _, codes in shown], batch_size=options.draw_batch_size
        )
        for (row, codes), image in zip(shown, images, strict=True):
            total = self.tokens.codes_per_picture
            row.events.append(ImagePreview(row.num_images, image, len(codes), total))

    def _finish_pictures(self, rows: list[CodeRow], free: ReaderRows, options: GenerationOptions) -> None:
        """Decode the pictures that are complete, and keep one candidate of each."""
        done = [(row, row.picture) for row in rows if row.picture is not None and row.picture.is_complete]
        if not done:
            return
        if self.scorer is None or options.num_candidates == 1:
            best = [picture.likeliest for _, picture in done]
            codes = [picture.codes[number] for (_, picture), number in zip(done, best, strict=True)]
            images = decode_pictures(self._image_tokenizer, codes, batch_size=options.draw_batch_size)
        else:
            codes = [candidate for _, picture in done for candidate in picture.codes]
            decoded = decode_pictures(self._image_tokenizer, codes, batch_size=options.draw_batch_size)
            num = options.num_candidates
            groups = [decoded[start : start + num] for start in range(0, len(decoded), num)]
            best = [self._preferred(row, group) for (row, _), group in zip(done, groups, strict=True)]
            images = [group[number] for group, number in zip(groups, best, strict=True)]
        for (row, _), number, image in zip(done, best, images, strict=True):
            for cache_row in row.end_picture(number, image):
                free.release(cache_row)

    @property
    def _image_tokenizer(self) -> ImageTokenizer:
        assert self.model.image_tokenizer is not None, "only a model with an image tokenizer draws"
        return self.model.image_tokenizer

    def _preferred(self, row: CodeRow, images: list[PILImage.Image]) -> int:
        """The number of the candidate that the scorer likes best."""
        assert self.scorer is not None
        scores = list(self.scorer(row.document, images))
        if len(scores) != len(images):
            raise ConfigError(
                f"the scorer gave {len(scores)} scores for {len(images)} pictures; expected one for "
                "each; correct it"
            )
        return scores.index(max(scores))

    def _allowed_by_kind(self) -> Bool[Tensor, "5 V"]:
        """What may be said, by `_kind`."""
        words = self._may_say()
        words[[self.tokens.break_, self.tokens.mask, self.tokens.infill]] = False
        words[[self.tokenizer.special.dream_start, self.tokenizer.eos_id]] = False
        table = words.repeat(5, 1)
        table[_CLOSING] = False
        table[[1, 3, _CLOSING], self.tokenizer.eos_id] = True
        table[[2, 3, _CLOSING], self.tokens.break_] = True
        return table


_CLOSING = 4


def _kind(row: CodeRow) -> int:
    """Words alone, with EOS 1 more, with `<break>` 2 more; after a picture EOS and `<break>`."""
    if row.state is CodeState.CLOSING:
        return _CLOSING
    return (row.state is not CodeState.CLOSED) + 2 * row.may_draw
