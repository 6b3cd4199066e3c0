"""A document becomes a sequence of JAM (arXiv:2309.15564): words and picture codes in one row of ids.

    picture, then text      BOS <break> codes <break> text EOS
    text, then picture      BOS text <break> codes EOS
    story                   BOS text <break> codes <break> text <break> codes <break> text EOS
    two pictures in a row   BOS <break> codes <break> <break> codes EOS
    conversation            BOS USER: <break> codes <break> question ASSISTANT: answer <break> codes EOS
    retrieved document      BOS text <break> codes <break> | text <break> codes EOS

`<break>` stands before every picture, and after one that something follows. A `<break>` right after a code
closes a picture; every other one opens one. Sequences have no slots, so packing and batches are DreamLLM's.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamllm.data.feature_cache import FeatureCache
from dreamllm.data.transforms import TargetTransform
from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import ConfigError, DocumentError, LayoutError
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.chat import ChatTemplate, EndOfTurn, Markup, Piece
from dreamllm.sequence.cm3 import SENTINELS_PER_SPAN, Cm3Config, Ids, Labels, transform
from dreamllm.sequence.code_draft import CodeDraft, joined
from dreamllm.sequence.code_tokens import CodeTokens
from dreamllm.sequence.layout import Slots, SlotSizes
from dreamllm.sequence.picture_caches import OnMiss, PictureReader, PictureView
from dreamllm.sequence.pixels import Pixels
from dreamllm.sequence.tokenizer import Tokenizer

PictureCodes = Callable[[Float[Tensor, "M 3 H W"]], Int[Tensor, "M G"]]
_NO_SLOTS = SlotSizes(num_visual_tokens=1, num_dream_queries=1)  # sizes are asked for, and never used


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeEncodeOptions:
    """What a document becomes, where there is a choice."""

    max_length: int = 2048
    """Positions of the longest sequence; a longer document is an error, it is never cut."""
    learn: Literal["marked", "all"] = "marked"
    """`marked`: what the `learn` flags and roles of a document say. `all`: every token but BOS, templates and
    retrieved documents too; for pre-training, as CM3 (arXiv:2201.07520) does."""
    cm3: Cm3Config | None = None
    """The CM3 transform of plain documents, and with `learn: all` of conversations too; None for none."""
    mask_prompt: float = 0.0
    """Probability that all words before the pictures of a creation document become one `<mask>`, and are not
    filled in at the end: the sequence that the other side of guidance begins with, learned as it is used. Our
    choice; in CM3 only infilling teaches it."""

    def __post_init__(self) -> None:
        if self.learn not in ("marked", "all"):
            raise ConfigError(f"learn={self.learn!r} is unknown; expected marked or all; correct it")
        if self.max_length < 1 or not 0 <= self.mask_prompt <= 1:
            raise ConfigError(
                f"max_length={self.max_length}, mask_prompt={self.mask_prompt} cannot be meant; "
                "expected max_length of at least 1 and a probability in [0, 1]; correct them"
            )

    @property
    def is_random(self) -> bool:
        """Whether a document can become different sequences."""
        return self.mask_prompt > 0 or (self.cm3 is not None and self.cm3.probability > 0)


@dataclass(frozen=True, slots=True)
class CodeSequenceEncoder:
    """Turns documents into sequences of one model.

    Labels with `learn: marked`. Of a plain document: text with `learn`; codes of pictures with `learn`, and
    the `<break>` that opens them; if there is any of these, also every `<break>` that closes a picture, and
    EOS. Of a conversation the same, turn by turn, in what the assistant says; nothing else.
    """

    tokenizer: Tokenizer
    tokens: CodeTokens
    chat: ChatTemplate
    target_transform: TargetTransform
    picture_codes: PictureCodes | None
    """Pictures in [-1, 1] on the CPU -> codes from 0 on; None for a model that knows words alone."""
    options: CodeEncodeOptions = CodeEncodeOptions()
    code_cache: FeatureCache | None = None
    """Codes of pictures, which are then neither decoded nor encoded."""
    on_cache_miss: OnMiss = "raise"
    """What becomes of a picture that the cache does not know."""

    def encode(
        self,
        document: Document,
        *,
        rng: np.random.Generator | None = None,
        context: SequenceOf[Document] = (),
    ) -> list[Sequence]:
        """The document as one training sequence, after what was retrieved for it.

        Retrieved documents stand in the given order before the document, as in CM3Leon (arXiv:2309.02591).
        The `<break>` after a picture separates one that ends with it from the next, as there; after one that
        ends with words stands EOS, for `<break>` would open a picture. The CM3 transform moves nothing of
        them, and `mask_prompt` takes them away with the words.

        Args:
            document: what to encode.
            rng: decides on masking and the CM3 transform.
            context: plain documents; `context_that_fits` says which of them find room.

        Raises:
            LayoutError: the document is longer than `options.max_length`, or pictures do not become codes.
            DocumentError: there are pictures but no image tokenizer, or a retrieved conversation.
            ImageError: a picture cannot be read.
            ConfigError: there is something to decide but no rng.
        """
        options = self.options
        if options.is_random and rng is None:
            raise ConfigError(
                f"cm3={options.cm3} and mask_prompt={options.mask_prompt} but rng=None; expected a generator "
                "that decides what is masked; "
                "pass rng, or set cm3 to null and mask_prompt to 0 for evaluation"
            )
        draft = self._draft(document, supervise=True, prompt=False)
        if rng is not None and _is_creation(document) and rng.random() < options.mask_prompt:
            return [self._sequence(document.id, *self._finish(self._masked(draft)))]
        before = self._context(draft, context, room=self._sentinel_room, learn=options.learn == "all")
        ids, is_label = self._finish(joined(draft, before))
        config = None if document.is_conversation and options.learn == "marked" else options.cm3
        if rng is not None and config is not None:
            ids, is_label = transform(
                ids,
                is_label,
                tokens=self.tokens,
                eos_id=self.tokenizer.eos_id,
                config=config,
                rng=rng,
                start=1 + sum(len(part.ids) for part in before),
                max_length=options.max_length,
            )
        return [self._sequence(document.id, ids, is_label)]

    def encode_prompt(
        self, document: Document, *, context: SequenceOf[Document] = (), room: int = 0
    ) -> Sequence:
        """The document as a prefix to continue: nothing is supervised, and no EOS closes it.

        A conversation ends with the assistant prefix, or with an unfinished answer if its last part is the
        assistant's; after a picture there the model itself decides between `<break>` and EOS. A plain
        document that ends with a picture is closed by `<break>`: it is given to be continued, so something
        follows.

        Args:
            document: what to continue.
            context: retrieved documents, as in `encode`.
            room: positions that retrieved documents leave free for what will be written.

        Raises:
            LayoutError: the document is longer than `options.max_length`, or pictures do not become codes.
            DocumentError: there are pictures but no image tokenizer, or a retrieved conversation.
            ImageError: a picture cannot be read.
        """
        draft = self._draft(document, supervise=False, prompt=True)
        ids, _ = self._finish(joined(draft, self._context(draft, context, room=room)))
        return self._sequence(document.id, ids, np.zeros(len(ids), dtype=np.bool_))

    def pictures(self, document: Document) -> list[Image]:
        """The pictures that become codes; nothing is opened."""
        return self._draft(document, supervise=True, prompt=False).images

    def context_that_fits(
        self, document: Document, context: SequenceOf[Document], *, prompt: bool = False, room: int = 0
    ) -> tuple[Document, ...]:
        """The retrieved documents that `encode` (or, with `prompt`, `encode_prompt`) lays before a document.

        Those at the front are left out first. Training leaves room for the sentinels of the CM3 transform.

        Raises:
            DocumentError: a retrieved document is a conversation.
        """
        draft = self._draft(document, supervise=not prompt, prompt=prompt)
        kept = self._context(draft, context, room=room if prompt else self._sentinel_room)
        return tuple(context[len(context) - len(kept) :])

    def unconditional(self) -> Sequence:
        """What guidance moves away from: BOS, a `<mask>` in the place of all words, and an open picture."""
        ids = np.asarray([self.tokenizer.bos_id, self.tokens.mask, self.tokens.break_], dtype=np.int64)
        return self._sequence("unconditional", ids, np.zeros(len(ids), dtype=np.bool_))

    @property
    def _sentinel_room(self) -> int:
        return 0 if self.options.cm3 is None else SENTINELS_PER_SPAN * self.options.cm3.max_spans

    def _draft(self, document: Document, *, supervise: bool, prompt: bool) -> CodeDraft:
        draft = CodeDraft(tokens=self.tokens, document_id=document.id)
        draft.write([self.tokenizer.bos_id])
        if document.is_conversation:
            self._write_conversation(draft, self.chat.render(document, prompt=prompt), supervise=supervise)
        else:
            self._write_plain(draft, document, supervise=supervise)
            if prompt:
                draft.close_picture()
            else:
                draft.end(self.tokenizer.eos_id, is_label=supervise and _learns(document.parts))
        if supervise and self.options.learn == "all":
            draft.is_label = [False] + [True] * (len(draft.ids) - 1)
        self._check_length(draft)
        return draft

    def _check_length(self, draft: CodeDraft) -> None:
        if len(draft.ids) > self.options.max_length:  # before any picture is opened
            raise LayoutError(
                f"document {draft.document_id!r} has {len(draft.ids)} positions with {len(draft.images)} "
                f"pictures of {self.tokens.codes_per_picture} codes; at most {self.options.max_length} are "
                "expected; shorten it, leave it out, or raise max_length"
            )

    def _write_plain(self, draft: CodeDraft, document: Document, *, supervise: bool) -> None:
        learns = supervise and _learns(document.parts)
        for part in document:
            if isinstance(part, Text):
                draft.write(self.tokenizer.encode(part.text), is_label=supervise and part.learn)
            else:
                draft.write_picture(part, is_label=supervise and part.learn, closing_is_label=learns)

    def _write_conversation(self, draft: CodeDraft, pieces: list[Piece], *, supervise: bool) -> None:
        for speaker, turn in groupby(pieces, key=_speaker):
            said = list(turn)  # with the EOS of an answer
            learns = supervise and speaker == "assistant" and _learns(said)
            for piece in said:
                if isinstance(piece, Markup):
                    draft.write(self.tokenizer.encode_markup(piece.text, after=draft.next_follows))
                elif isinstance(piece, EndOfTurn):
                    draft.end(self.tokenizer.eos_id, is_label=learns)
                elif isinstance(piece, Text):
                    ids = self.tokenizer.encode(piece.text, after=draft.next_follows)
                    draft.write(ids, is_label=learns and piece.learn)
                else:
                    draft.write_picture(piece, is_label=learns and piece.learn, closing_is_label=learns)

    def _context(
        self, draft: CodeDraft, context: SequenceOf[Document], *, room: int, learn: bool = False
    ) -> list[CodeDraft]:
        """Drafts of the last retrieved documents that fit before a document, in order."""
        for document in context:
            if document.is_conversation:
                raise DocumentError(
                    f"document {document.id!r}, retrieved for {draft.document_id!r}, is a conversation of "
                    f"{len(document)} parts; expected a plain document, which has no roles; "
                    "retrieve from plain documents"
                )
        free = self.options.max_length - room - len(draft.ids)
        kept: list[CodeDraft] = []
        for document in reversed(context):
            retrieved = CodeDraft(tokens=self.tokens, document_id=document.id)
            self._write_plain(retrieved, document, supervise=False)
            if retrieved.is_picture_open:
                retrieved.close_picture()
            else:
                retrieved.end(self.tokenizer.eos_id, is_label=False)
            retrieved.is_label = [learn] * len(retrieved.ids)
            free -= len(retrieved.ids)
            if free < 0:
                break
            kept.append(retrieved)
        return kept[::-1]

    def _masked(self, draft: CodeDraft) -> CodeDraft:
        """The pictures after `BOS <mask>`, which is how `unconditional` begins."""
        masked = CodeDraft(tokens=self.tokens, document_id=draft.document_id)
        masked.write([self.tokenizer.bos_id, self.tokens.mask])
        masked.extend(draft, first=draft.picture_starts[0] - 1)
        return masked

    def _finish(self, draft: CodeDraft) -> tuple[Ids, Labels]:
        """Ids with the codes of the pictures in their places, and the labels among them."""
        ids = np.asarray(draft.ids, dtype=np.int64)
        if draft.images:
            places = np.asarray(draft.picture_starts)[:, None] + np.arange(self.tokens.codes_per_picture)
            ids[places] = self.tokens.first_code + self._codes(draft)
        return ids, np.asarray(draft.is_label, dtype=np.bool_)

    def _codes(self, draft: CodeDraft) -> Int[np.ndarray, "M G"]:
        if self.picture_codes is None:
            raise DocumentError(
                f"document {draft.document_id!r} has {len(draft.images)} pictures, but the model has no "
                "image tokenizer; expected text alone; leave the pictures out, or use a model that has one"
            )
        reader = PictureReader(draft.document_id, self.on_cache_miss)
        view = PictureView(images=draft.images, transform=self.target_transform, cache=self.code_cache)
        [(pixels, cached)] = reader.read([view])
        nothing = torch.empty(0, self.tokens.codes_per_picture, dtype=torch.int64)
        computed = self.picture_codes(pixels.scaled()).cpu() if len(pixels) else nothing
        codes: np.ndarray = (computed if cached is None else cached.fill(computed)).numpy()
        expected = (len(draft.images), self.tokens.codes_per_picture)
        if codes.shape != expected:
            raise LayoutError(
                f"the pictures of document {draft.document_id!r} became codes of shape {codes.shape}; "
                f"expected {expected}, pictures by codes; "
                "use the image tokenizer that the vocabulary was made for"
            )
        if codes.min() < 0 or codes.max() >= self.tokens.num_codes:
            raise LayoutError(
                f"the pictures of document {draft.document_id!r} became codes from {codes.min()} to "
                f"{codes.max()}; expected 0 to {self.tokens.num_codes - 1}; "
                "use the image tokenizer that the vocabulary was made for"
            )
        return codes

    def _sequence(self, document_id: str, ids: Ids, is_label: Labels) -> Sequence:
        return Sequence(
            document_id=document_id,
            input_ids=ids,
            is_label=is_label,
            slots=Slots(sizes=_NO_SLOTS, length=len(ids), image_starts=(), dream_starts=()),
            vision_pixels=Pixels.of([], image_px=1),
            target_pixels=Pixels.of([], image_px=1),
            target_dreams=(),
        )


def _learns(pieces: SequenceOf[Piece]) -> bool:
    """Whether something of it is marked to be learned."""
    return any(
        piece.learn and (isinstance(piece, Image) or piece.text != "")
        for piece in pieces
        if isinstance(piece, Text | Image)
    )


def _speaker(piece: Piece) -> str | None:
    """Who says a piece, EOS included; nobody says markup."""
    if isinstance(piece, EndOfTurn):
        return "assistant"
    return None if isinstance(piece, Markup) else piece.role


def _is_creation(document: Document) -> bool:
    """Whether words stand before, and only before, pictures that are all drawn by the model."""
    is_image = [isinstance(part, Image) for part in document if isinstance(part, Image) or part.text]
    are_drawn = all(image.learn and image.role in (None, "assistant") for image in document.images)
    return are_drawn and len(set(is_image)) == 2 and is_image == sorted(is_image)
