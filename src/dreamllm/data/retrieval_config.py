"""How documents are retrieved, as a config: read and checked without torch and faiss."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dreamllm.data.sources import SourceConfig
from dreamllm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedWordsConfig:
    """Vectors from counts of words and from small pictures: nothing is learned or read from disk."""

    kind: Literal["hashed_words"] = "hashed_words"
    width: int = 512
    """Of a vector. Words that share a place in it are taken for each other."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width is {self.width}; expected at least 1, better some hundreds; raise it")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipVectorsConfig:
    """Vectors of a stock CLIP, as RA-CM3 (ViT-L/14) and CM3Leon (ViT-B/32) use them."""

    kind: Literal["clip"] = "clip"
    path: Path
    """Folder of a CLIPModel and its preprocessor_config.json."""
    tokenizer: Path | None = None
    """Folder of its tokenizer; null: the same folder."""
    device: str = "cpu"
    """Where it runs."""


EncoderConfig = HashedWordsConfig | ClipVectorsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    """What is retrieved for a document (CM3Leon, arXiv:2309.02591, after RA-CM3, arXiv:2211.12561).

    Documents come from `index`, a folder that `DocumentIndex.save` wrote, or from `source`.
    """

    index: Path | None = None
    """Folder of a saved index."""
    source: SourceConfig | None = None
    """Plain documents for a new index: all of a file, or `num_documents` of the world."""
    num_documents: int = 1000
    """How many documents of the world are made; a file gives all of its own."""
    encoder: EncoderConfig = field(default_factory=HashedWordsConfig)
    """What turns words and pictures into vectors; for a saved index, the one that it was made with."""
    by_text: int = 2
    """Candidates nearest to the text of the document."""
    by_image: int = 2
    """Candidates nearest to its pictures."""
    num_retrieved: tuple[int, ...] = (3,)
    """How many of the candidates are given, equally likely in training (RA-CM3: 0, 1, 2); the most of them
    in generation. Fewer where fewer candidates are left."""
    max_score: float = 0.9
    """A document with a higher score is too much alike, and left out."""
    query_dropout: float = 0.2
    """Share of the words of the text that is asked with that are left out in training."""
    seed: int = 0
    """Of the documents of the world."""

    def __post_init__(self) -> None:
        if (self.index is None) == (self.source is None):
            raise ConfigError(
                f"index is {self.index} and source is {self.source}; expected one of them, where documents "
                "are retrieved from; name a saved index or a source, and set the other to null"
            )
        if min(self.by_text, self.by_image) < 0 or self.by_text + self.by_image == 0:
            raise ConfigError(
                f"by_text={self.by_text} and by_image={self.by_image} ask for no candidates; expected "
                "numbers from 0 on, one of them above 0; raise one, or set retrieval to null"
            )
        most = self.by_text + self.by_image
        if not self.num_retrieved or not 0 <= min(self.num_retrieved) <= max(self.num_retrieved) <= most:
            raise ConfigError(
                f"num_retrieved is {self.num_retrieved}; expected one or more numbers from 0 to {most}, the "
                "candidates by text and by image; lower it or raise by_text or by_image"
            )
        if not 0 <= self.query_dropout < 1:
            raise ConfigError(
                f"query_dropout is {self.query_dropout}; expected a share from 0 on and below 1; correct it"
            )
        if not -1 <= self.max_score <= 1:
            raise ConfigError(
                f"max_score is {self.max_score}; expected a cosine, 1 to leave out none; correct it"
            )
        if self.num_documents < 1:
            raise ConfigError(f"num_documents is {self.num_documents}; expected at least 1; raise it")
