"""What a document of a run is on the average: counted where its data is at hand, else as its corpus is known.

A path `data/CORPUS/KIND.jsonl` names a corpus. The numbers below are means: those of MMC4 from its own
statistics, the others estimates for captions and conversations of that kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from dreamllm.data.sources import JsonlSourceConfig, PhaseConfig, SourceConfig, build_source
from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import ConfigError
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig

CHARACTERS_PER_TOKEN: Final = 4
"""Of English text in a vocabulary of 32 thousand or more; documents are counted without a tokenizer."""
COUNTED_DOCUMENTS: Final = 64
"""Of each source."""

Origin = Literal["counted", "corpus", "assumed", "given"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentShape:
    """A document, on the average."""

    text_tokens: float
    images_read: float
    """Image slots; a drawn picture that is fed back counts here too."""
    images_drawn: float
    """Dream slots."""

    def __post_init__(self) -> None:
        sizes = (self.text_tokens, self.images_read, self.images_drawn)
        if min(sizes) < 0 or max(sizes) == 0:
            raise ConfigError(
                f"a document has {self.text_tokens} text tokens, {self.images_read} pictures read and "
                f"{self.images_drawn} drawn; expected 0 or more of each, and not 0 of all; correct them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceShape:
    """What the documents of one source are, and how that is known."""

    source: str
    share: float
    """Of all documents of the run."""
    document: DocumentShape
    origin: Origin


READ_PAIR: Final = DocumentShape(text_tokens=20, images_read=1, images_drawn=0)
DRAW_PAIR: Final = DocumentShape(text_tokens=20, images_read=0, images_drawn=1)
# 29.9 million pictures and 2.4 billion tokens in 7.3 million documents (github.com/allenai/mmc4, core).
MMC4_CORE: Final = DocumentShape(text_tokens=330, images_read=4.1, images_drawn=4.1)
KINDS: Final[Mapping[str, DocumentShape]] = {
    "read": READ_PAIR,
    "draw": DRAW_PAIR,
    "mmc4_core/documents": MMC4_CORE,
    "instruct_mmc4/conversations": DocumentShape(text_tokens=430, images_read=4.1, images_drawn=4.1),
    "instruct_blip_laion/conversations": DocumentShape(text_tokens=100, images_read=1, images_drawn=1),
    "llava_instruct/conversations": DocumentShape(text_tokens=300, images_read=1, images_drawn=0),
}
"""By `KIND`, or by `CORPUS/KIND`, which goes first."""
ASSUMED: Final = DocumentShape(text_tokens=20, images_read=0.5, images_drawn=0.5)
"""Pairs, half of them read and half drawn."""


def source_shapes(objective: DreamLLMObjectiveConfig, *, seed: int) -> tuple[SourceShape, ...]:
    """Every source of a run, phase by phase, with its share of all documents.

    Raises:
        ConfigError: there is no source.
    """
    shapes: list[SourceShape] = []
    begins = 0.0
    for phase in objective.phases:
        shapes += _phase_shapes(phase, phase.until - begins, objective, seed)
        begins = phase.until
    if not shapes:
        raise ConfigError(
            "a run has no source of documents; expected at least one; add it to objective.phases"
        )
    return tuple(shapes)


def mean_document(sources: tuple[SourceShape, ...]) -> DocumentShape:
    """Over all documents of the run."""
    return DocumentShape(
        text_tokens=sum(each.share * each.document.text_tokens for each in sources),
        images_read=sum(each.share * each.document.images_read for each in sources),
        images_drawn=sum(each.share * each.document.images_drawn for each in sources),
    )


def count_document(document: Document, objective: DreamLLMObjectiveConfig) -> DocumentShape:
    """Text and slots of a document, by the rules of `sequence/encode.py`."""
    parts = tuple(document)
    drawn = [
        isinstance(part, Image)
        and part.learn
        and part.role in (None, "assistant")
        and objective.mode != "comprehension"
        for part in parts
    ]
    learns_text = any(isinstance(part, Text) and part.learn and part.text for part in parts)
    ends_drawn = not document.is_conversation and not learns_text and drawn[-1]
    fed_back = 0 if objective.mode == "creation" else sum(drawn) - ends_drawn
    characters = sum(len(part.text) for part in parts if isinstance(part, Text))
    return DocumentShape(
        text_tokens=max(1, characters / CHARACTERS_PER_TOKEN),
        images_read=len(document.images) - sum(drawn) + fed_back,
        images_drawn=sum(drawn),
    )


def _in_mode(document: DocumentShape, mode: Literal["joint", "comprehension", "creation"]) -> DocumentShape:
    """What is left of a document where pictures are only read, or only drawn and not fed back."""
    if mode == "joint":
        return document
    read, drawn = document.images_read, document.images_drawn
    if mode == "comprehension":
        return replace(document, images_read=max(read, drawn), images_drawn=0)
    return replace(document, images_read=max(read - drawn, 0))


def _phase_shapes(
    phase: PhaseConfig, share: float, objective: DreamLLMObjectiveConfig, seed: int
) -> list[SourceShape]:
    weight = sum(source.weight for source in phase.sources)
    return [_source_shape(each, share * each.weight / weight, objective, seed) for each in phase.sources]


def _source_shape(
    source: SourceConfig, share: float, objective: DreamLLMObjectiveConfig, seed: int
) -> SourceShape:
    name = str(source.path) if isinstance(source, JsonlSourceConfig) else source.kind
    if isinstance(source, JsonlSourceConfig) and not source.path.is_file():
        kind = source.path.stem
        known = KINDS.get(f"{source.path.parent.name}/{kind}", KINDS.get(kind))
        origin: Origin = "assumed" if known is None else "corpus"
        document = _in_mode(known or ASSUMED, objective.mode)
        return SourceShape(source=name, share=share, document=document, origin=origin)
    documents = build_source(source, seed)
    counted = [count_document(documents[index], objective) for index in range(COUNTED_DOCUMENTS)]
    equal = tuple(
        SourceShape(source=name, share=1 / len(counted), document=each, origin="counted") for each in counted
    )
    return SourceShape(source=name, share=share, document=mean_document(equal), origin="counted")
