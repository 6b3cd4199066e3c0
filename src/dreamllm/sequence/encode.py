"""A document becomes a sequence: ids, labels, slots and pixels (DreamLLM, arXiv:2309.11499, section 3.2).

    comprehension pair      BOS [image slot] caption* EOS*
    creation pair           BOS caption [dream slot] EOS
    interleaved document    BOS text* [dream slot, <dream_start>*] [image slot] text* .. EOS*
    conversation            BOS USER: [image slot] question ASSISTANT: answer* [dream slot] [image slot] EOS*

The star marks what the language model learns to write. Brackets and slot fillers are never labels, except
`<dream_start>`: it is the decision to draw. A drawn picture is fed back in an image slot right after its
dream slot.
"""

from array import array
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

import numpy as np

from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import ConfigError, LayoutError
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.chat import ChatTemplate, EndOfTurn, Markup, Piece
from dreamllm.sequence.layout import Slots, SlotSizes
from dreamllm.sequence.picture_caches import NO_CACHES, PictureCaches, PictureReader, PictureView
from dreamllm.sequence.tokenizer import Tokenizer

_Record = TypeVar("_Record", "SlotSizes", "ChatTemplate", "EncodeOptions")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """What a document becomes, where there is a choice."""

    max_length: int = 2048
    """Positions of the longest sequence; a longer document is an error, it is never cut."""
    learn_dream_start_in_conversations: bool = False
    """Whether `<dream_start>` of a drawn picture is a label in an answer, as it is in a plain document.
    Without it a model learns when to draw from plain documents only, which is what the paper's data does."""
    condition_dropout: float = 0.0
    """Probability that a drawn picture is learned from the unconditional sequence instead of its document,
    for classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)."""
    mode: Literal["joint", "comprehension", "creation"] = "joint"
    """`comprehension`: drawn pictures are only read, in an image slot. `creation`: they are only drawn, in a
    dream slot. Given pictures are read in every mode. For the ablation of the paper's Table 3."""

    def __post_init__(self) -> None:
        if self.mode not in ("joint", "comprehension", "creation"):
            raise ConfigError(
                f"mode={self.mode!r} is unknown; expected joint, comprehension or creation; correct it"
            )
        if self.max_length < 1 or not 0 <= self.condition_dropout <= 1:
            raise ConfigError(
                f"max_length={self.max_length}, condition_dropout={self.condition_dropout} cannot be meant; "
                "expected max_length of at least 1 and a probability in [0, 1]; correct them"
            )


@dataclass(frozen=True, slots=True)
class SequenceEncoder:
    """Turns documents into sequences of one model."""

    tokenizer: Tokenizer
    sizes: SlotSizes
    chat: ChatTemplate
    vision_transform: VisionTransform
    target_transform: TargetTransform
    options: EncodeOptions = EncodeOptions()
    caches: PictureCaches = NO_CACHES
    """What is known of pictures in training sequences; prompts do without."""

    def encode(self, document: Document, *, rng: np.random.Generator | None = None) -> list[Sequence]:
        """The document as a training sequence, then one unconditional sequence a moved picture.

        A moved picture keeps its dream slot in the document, without a target; its target is learned in
        `[BOS, <dream_start>, queries, <dream_end>]`, exactly what inference uses as the other side of
        guidance.

        Args:
            document: what to encode.
            rng: draws the dropout; one number a learned picture, in reading order.

        Raises:
            LayoutError: the sequence is longer than `options.max_length`.
            ImageError: a picture cannot be read.
            DocumentError: a picture is not in a cache that is to know it.
            ConfigError: there is dropout but no rng.
        """
        draft = self._draft(document, supervise=True, prompt=False)
        moved: list[Image] = []
        if self.options.condition_dropout > 0:
            if rng is None:
                raise ConfigError(
                    f"condition_dropout={self.options.condition_dropout} but rng=None; expected a generator "
                    "that decides which pictures are moved; "
                    "pass rng, or set condition_dropout to 0 for evaluation"
                )
            for dream, number in enumerate(rng.random(len(draft.targets))):
                target = draft.targets[dream]
                if number < self.options.condition_dropout and target is not None:
                    moved.append(target)
                    draft.targets[dream] = None
        drafts = [draft, *(self._unconditional_draft(document.id, "", target) for target in moved)]
        return [self._finish(each, self.caches) for each in drafts]

    def pictures(self, document: Document) -> tuple[list[Image], list[Image]]:
        """The pictures that training on a document reads, and those it draws; nothing is opened."""
        draft = self._draft(document, supervise=True, prompt=False)
        return draft.images, [target for target in draft.targets if target is not None]

    def encode_prompt(self, document: Document) -> Sequence:
        """The document as a prefix to continue: nothing is supervised, and no EOS closes it.

        A conversation ends with the assistant prefix, or with an unfinished answer if its last part is the
        assistant's. Drawn pictures of the past stand in their dream slot and image slot, as in training.

        Raises:
            LayoutError: the sequence is longer than `options.max_length`.
            ImageError: a picture cannot be read.
        """
        return self._finish(self._draft(document, supervise=False, prompt=True))

    def unconditional(self, negative_prompt: str = "") -> Sequence:
        """What guidance moves away from: BOS, the negative prompt if any, a dream slot."""
        return self._finish(self._unconditional_draft("unconditional", negative_prompt, None))

    def to_dict(self) -> dict[str, Any]:
        """A JSON value with everything but tokenizer and caches; `from_dict` is its inverse."""
        return {
            "sizes": asdict(self.sizes),
            "chat": asdict(self.chat),
            "vision_transform": self.vision_transform.to_dict(),
            "target_transform": self.target_transform.to_dict(),
            "options": asdict(self.options),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any], tokenizer: Tokenizer) -> "SequenceEncoder":
        """The encoder that `to_dict` wrote.

        Raises:
            ConfigError: a key is missing or unknown.
        """
        expected = {f.name for f in fields(cls)} - {"tokenizer", "caches"}
        if value.keys() != expected:
            raise ConfigError(
                f"an encoder cannot be read from keys {sorted(value)}; expected {sorted(expected)}; "
                "check the configuration it was saved in"
            )
        return cls(
            tokenizer,
            _record(SlotSizes, value["sizes"]),
            _record(ChatTemplate, value["chat"]),
            VisionTransform.from_dict(value["vision_transform"]),
            TargetTransform.from_dict(value["target_transform"]),
            _record(EncodeOptions, value["options"]),
        )

    def _unconditional_draft(self, document_id: str, negative_prompt: str, target: Image | None) -> "_Draft":
        draft = _Draft(document_id=document_id)
        draft.write([self.tokenizer.bos_id, *self.tokenizer.encode(negative_prompt)])
        self._write_dream_slot(draft, target, is_label=False)
        return draft

    def _draft(self, document: Document, *, supervise: bool, prompt: bool) -> "_Draft":
        draft = _Draft(document_id=document.id)
        draft.write([self.tokenizer.bos_id])
        if document.is_conversation:
            self._write_conversation(draft, self.chat.render(document, prompt=prompt), supervise)
        else:
            self._write_plain(draft, document, supervise=supervise, prompt=prompt)
        return draft

    def _write_plain(self, draft: "_Draft", document: Document, *, supervise: bool, prompt: bool) -> None:
        learns_text = supervise and any(isinstance(p, Text) and p.learn and p.text for p in document)
        for number, part in enumerate(document, start=1):
            if isinstance(part, Text):
                draft.write(self.tokenizer.encode(part.text), is_label=supervise and part.learn)
                continue
            # The picture of a creation pair is not fed back: nothing after it would look at it.
            is_last_word = not prompt and not learns_text and number == len(document)
            self._write_picture(
                draft, part, supervise=supervise, label_start=learns_text, feed_back=not is_last_word
            )
        if not prompt:
            draft.write([self.tokenizer.eos_id], is_label=learns_text)

    def _write_conversation(self, draft: "_Draft", pieces: list[Piece], supervise: bool) -> None:
        label_start = supervise and self.options.learn_dream_start_in_conversations
        turn_learns = False
        for piece in pieces:
            if isinstance(piece, Markup):
                draft.write(self.tokenizer.encode_markup(piece.text, after=draft.ids[-1]))
            elif isinstance(piece, EndOfTurn):
                draft.write([self.tokenizer.eos_id], is_label=turn_learns)
                turn_learns = False
            elif isinstance(piece, Text):
                is_label = supervise and piece.learn and piece.role == "assistant"
                draft.write(self.tokenizer.encode(piece.text, after=draft.ids[-1]), is_label=is_label)
                turn_learns |= is_label
            else:
                self._write_picture(
                    draft, piece, supervise=supervise, label_start=label_start, feed_back=True
                )
                turn_learns |= supervise and self._is_drawn(piece)

    def _is_drawn(self, image: Image) -> bool:
        said_by_model = image.role in (None, "assistant")
        return image.learn and said_by_model and self.options.mode != "comprehension"

    def _write_picture(
        self, draft: "_Draft", image: Image, *, supervise: bool, label_start: bool, feed_back: bool
    ) -> None:
        is_drawn = self._is_drawn(image)
        if is_drawn:
            self._write_dream_slot(draft, image if supervise else None, is_label=label_start)
        if not is_drawn or (feed_back and self.options.mode != "creation"):
            self._write_image_slot(draft, image)

    def _write_image_slot(self, draft: "_Draft", image: Image) -> None:
        special = self.tokenizer.special
        draft.write([special.im_start])
        draft.image_starts.append(len(draft.ids))
        draft.images.append(image)
        draft.write([special.im_patch] * self.sizes.num_visual_tokens)
        draft.write([special.im_end])

    def _write_dream_slot(self, draft: "_Draft", target: Image | None, *, is_label: bool) -> None:
        special = self.tokenizer.special
        draft.write([special.dream_start], is_label=is_label)
        draft.dream_starts.append(len(draft.ids))
        draft.targets.append(target)
        draft.write([special.im_patch] * self.sizes.num_dream_queries)
        draft.write([special.dream_end])

    def _finish(self, draft: "_Draft", caches: PictureCaches = NO_CACHES) -> Sequence:
        length = len(draft.ids)
        if length > self.options.max_length:  # before any picture is opened
            raise LayoutError(
                f"document {draft.document_id!r} has {length} positions with {len(draft.images)} image "
                f"slots and {len(draft.dream_starts)} dream slots; at most {self.options.max_length} are "
                "expected; shorten it, leave it out, or raise max_length"
            )
        targets = {index: target for index, target in enumerate(draft.targets) if target is not None}
        reader = PictureReader(draft.document_id, caches.on_miss)
        (vision_pixels, cached_images), (target_pixels, cached_targets) = reader.read(
            [
                PictureView(images=draft.images, transform=self.vision_transform, cache=caches.vision),
                PictureView(
                    images=list(targets.values()), transform=self.target_transform, cache=caches.latents
                ),
            ]
        )
        return Sequence(
            document_id=draft.document_id,
            input_ids=np.frombuffer(draft.ids, dtype=np.int64),
            is_label=np.frombuffer(draft.is_label, dtype=np.bool_),
            slots=Slots(
                sizes=self.sizes,
                length=length,
                image_starts=tuple(draft.image_starts),
                dream_starts=tuple(draft.dream_starts),
            ),
            vision_pixels=vision_pixels,
            target_pixels=target_pixels,
            target_dreams=tuple(targets),
            cached_images=cached_images,
            cached_targets=cached_targets,
        )


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A sequence while it is written."""

    document_id: str
    ids: "array[int]" = field(default_factory=lambda: array("q"))
    is_label: bytearray = field(default_factory=bytearray)
    image_starts: list[int] = field(default_factory=list)
    dream_starts: list[int] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    targets: list[Image | None] = field(default_factory=list)
    """One entry a dream slot; None where the picture is not learned here."""

    def write(self, ids: list[int], *, is_label: bool = False) -> None:
        """Append ids that are all labels, or none of them."""
        self.ids.extend(ids)
        self.is_label += bytes((is_label,)) * len(ids)


def _record(cls: type[_Record], value: dict[str, Any]) -> _Record:
    expected = {f.name for f in fields(cls)}
    if value.keys() != expected:
        raise ConfigError(
            f"{cls.__name__} cannot be read from keys {sorted(value)}; expected {sorted(expected)}; "
            "check the configuration it was saved in"
        )
    return cls(**value)
