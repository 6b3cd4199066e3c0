"""Where documents come from. A source is endless and indexed: item `index` is a pure function of the index,
so the only state of the data is a number.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dreamllm.data.archive import DocumentArchive, GroupedArchive, SizedArchive, open_documents
from dreamllm.data.shuffle import GroupedOrder
from dreamllm.document.document import Document
from dreamllm.document.jsonl import read_documents
from dreamllm.errors import ConfigError, DocumentError
from dreamllm.runtime.seeding import derive_seed
from dreamllm.world.documents import ALL_DOCUMENT_KINDS, DocumentKind, make_document
from dreamllm.world.language import QUESTION_KINDS, CaptionStyle, QuestionKind
from dreamllm.world.nouns import NounGroup
from dreamllm.world.splits import Split

OnFault = Literal["raise", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSourceConfig:
    """Documents of the procedural world, made as they are asked for."""

    kind: Literal["world"] = "world"
    documents: dict[str, float]
    """Weight of each document kind; see `world/documents.py` for the kinds."""
    num_objects: tuple[int, ...] = (1, 2, 3)
    """Object counts of a scene, equally likely."""
    questions_per_image: int = 6
    """Questions in a conversation about one picture."""
    question_kinds: tuple[QuestionKind, ...] = QUESTION_KINDS
    """What they may ask."""
    nouns: NounGroup | None = None
    """Invented nouns they may use; null: all in text alone, and in pictures those that the split allows."""
    caption_styles: tuple[CaptionStyle, ...] | None = None
    """Styles of the captions of pairs and requests, equally likely; null: all, full ones most often."""
    split: Split = "train"
    """Scenes the documents may hold."""
    weight: float = 1.0
    """Share of this source among its neighbours."""
    name: str = ""
    """What it is called in metrics, `world` if left out; sources of one name are counted together."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.documents) - set(ALL_DOCUMENT_KINDS))
        if unknown or not self.documents or min(self.documents.values()) <= 0:
            raise ConfigError(
                f"documents is {self.documents}; expected positive weights of kinds out of "
                f"{', '.join(ALL_DOCUMENT_KINDS)}; correct {', '.join(unknown) or 'the weights'}"
            )
        drawn = sorted({"draw_noun", "draw_noun_directly"} & set(self.documents))
        if drawn and self.nouns == "untaught" and self.split == "train":
            raise ConfigError(
                f"documents are {', '.join(drawn)} with nouns 'untaught' and split 'train'; "
                "expected nouns 'taught' or null there, since no training picture may show an untaught noun; "
                "change nouns or split"
            )
        if not set(self.question_kinds) - {"place", "relation"}:
            raise ConfigError(
                f"question_kinds is {self.question_kinds}; expected at least one kind that every scene "
                "allows, which place and relation are not; add another, such as color"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonlSourceConfig:
    """Documents on disk, one JSON object a line; shuffled anew in every epoch."""

    kind: Literal["jsonl"] = "jsonl"
    path: Path
    """The file; picture paths in it are relative to its folder."""
    on_fault: OnFault = "raise"
    """Lines that cannot be read end the run, or are counted and reported at the start; documents that do not
    fit into a sequence end it, or are left out of their step, counted and named in the log."""
    weight: float = 1.0
    """Share of this source among its neighbours."""
    name: str = ""
    """What it is called in metrics, after its path if left out; sources of one name are counted together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveSourceConfig:
    """Documents on disk in any format of `data/archive.py`; shuffled anew in every epoch."""

    kind: Literal["archive"] = "archive"
    path: Path
    """File, folder, or pattern such as `data/*.tar`."""
    format: str = "auto"
    """How the documents are stored; auto finds out."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the format."""
    on_fault: OnFault = "raise"
    """A document that cannot be used ends the run, or is left out of its step, and counted."""
    shuffle_window: int = 16
    """Shards, files or row groups whose documents are mixed at a time: more mix better, fewer read nearby."""
    weight: float = 1.0
    """Share of this source among its neighbours."""
    name: str = ""
    """What it is called in metrics, after its path if left out; sources of one name are counted together."""

    def __post_init__(self) -> None:
        if self.shuffle_window < 1:
            raise ConfigError(
                f"shuffle_window is {self.shuffle_window}; expected at least 1 group at a time; raise it"
            )


SourceConfig = WorldSourceConfig | JsonlSourceConfig | ArchiveSourceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseConfig:
    """A part of a run with its own mixture of sources: a curriculum is a list of phases."""

    until: float = 1.0
    """Where the phase ends, as a share of the run."""
    sources: tuple[SourceConfig, ...] = field(default=())
    """What it reads."""


class DocumentSource(Protocol):
    """An endless, indexed source of documents."""

    name: str
    """What it is called in metrics."""
    on_fault: OnFault
    """What is to be done with a document that cannot be used."""

    def __getitem__(self, index: int) -> Document:
        """The document at an index; a pure function of it."""
        ...

    def size(self, index: int) -> int:
        """How long it is, in a unit of the source's own, without reading it; 0 where that is not known."""
        ...


class WorldSource:
    """Documents of the world; every index is a new one."""

    on_fault: OnFault = "raise"

    def __init__(self, config: WorldSourceConfig, seed: int) -> None:
        self.name = config.name or "world"
        self._config = config
        self._seed = seed
        self._kinds: list[DocumentKind] = [kind for kind in ALL_DOCUMENT_KINDS if kind in config.documents]
        weights = np.asarray([config.documents[kind] for kind in self._kinds])
        self._shares = weights / weights.sum()

    def __getitem__(self, index: int) -> Document:
        """Document `index`; its id names the kind and the number."""
        rng = np.random.default_rng([self._seed, index])
        kind = self._kinds[int(rng.choice(len(self._kinds), p=self._shares))]
        return make_document(
            kind,
            rng,
            split=self._config.split,
            num_objects=self._config.num_objects,
            questions_per_image=self._config.questions_per_image,
            question_kinds=self._config.question_kinds,
            nouns=self._config.nouns,
            caption_styles=self._config.caption_styles,
            id=f"{kind}-{index}",
        )

    def size(self, index: int) -> int:
        """Not known."""
        return 0


class JsonlSource:
    """Documents of a file, epoch after epoch, each epoch in its own order."""

    def __init__(self, config: JsonlSourceConfig, seed: int) -> None:
        self.name = config.name or config.path.stem
        self.on_fault: OnFault = config.on_fault
        self._documents = read_documents(config.path, on_fault=config.on_fault)
        self._seed = seed
        if len(self._documents) == 0:
            raise ConfigError(f"{config.path} holds no documents; expected at least one line; check the path")

    def __getitem__(self, index: int) -> Document:
        """Document `index`, counted over epochs."""
        epoch, place = divmod(index, len(self._documents))
        return self._documents[int(_order(self._seed, epoch, len(self._documents))[place])]

    def size(self, index: int) -> int:
        """Not known."""
        return 0


class ArchiveSource:
    """Documents of an archive, epoch after epoch, each epoch in its own order.

    An order is shuffled at two levels (`data/shuffle.py`): it costs memory by the shard and not by the
    document, and a reader stays near the place it read before.
    """

    def __init__(self, config: ArchiveSourceConfig, seed: int) -> None:
        self.name = config.name or config.path.stem
        self.on_fault: OnFault = config.on_fault
        """What whoever reads this source does about a FaultError; the source itself always raises it."""
        self._archive: DocumentArchive = open_documents(config.path, config.format, config.options)
        self._window = config.shuffle_window
        self._seed = seed
        if len(self._archive) == 0:
            raise ConfigError(
                f"{config.path} holds no documents; expected at least one; check the path and the format"
            )
        whole = np.asarray([0, len(self._archive)], dtype=np.int64)
        self._bounds = self._archive.bounds if isinstance(self._archive, GroupedArchive) else whole
        self._orders: dict[int, GroupedOrder] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_orders": {}}

    def __len__(self) -> int:
        """Documents of one epoch; indices go on beyond."""
        return len(self._archive)

    def __getitem__(self, index: int) -> Document:
        """Document `index`, counted over epochs.

        Raises:
            FaultError: it cannot be used.
        """
        return self._archive[self._find(index)]

    def size(self, index: int) -> int:
        """As the archive says; 0 where it does not know, or is damaged, which reading will tell."""
        if not isinstance(self._archive, SizedArchive):
            return 0
        try:
            return self._archive.size(self._find(index))
        except (DocumentError, IndexError, ValueError):
            return 0

    def _find(self, index: int) -> int:
        """The document's place in the archive."""
        epoch, place = divmod(index, len(self))
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a step may reach into the next epoch
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = GroupedOrder(self._bounds, self._seed, epoch, window=self._window)
        return self._orders[epoch][place]


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def build_source(config: SourceConfig, seed: int) -> DocumentSource:
    """The source a config describes."""
    if isinstance(config, WorldSourceConfig):
        return WorldSource(config, derive_seed(seed, "world") % 2**32)
    if isinstance(config, ArchiveSourceConfig):
        return ArchiveSource(config, derive_seed(seed, str(config.path)) % 2**32)
    return JsonlSource(config, derive_seed(seed, str(config.path)) % 2**32)
