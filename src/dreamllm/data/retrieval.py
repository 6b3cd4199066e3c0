"""Documents to lay before a document: found as in CM3Leon (arXiv:2309.02591) and RA-CM3 (arXiv:2211.12561).

An index holds plain documents with their vectors; a retriever asks it twice, with the text and with the
pictures of a document, and gives some of what is near but not too near. In training, words of the text that
is asked with are dropped, so that what is found is less alike and less certain. Scores are cosines.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from dreamllm.data.retrieval_config import ClipVectorsConfig, EncoderConfig, RetrievalConfig
from dreamllm.data.retrieval_vectors import (
    DocumentEncoderForRetrieval,
    DocumentVectors,
    HashedWords,
    document_vectors,
    text_of,
    unit,
)
from dreamllm.data.sources import JsonlSourceConfig, SourceConfig, build_source
from dreamllm.document.atomic import write_bytes
from dreamllm.document.document import Document, Text
from dreamllm.document.jsonl import JsonlDocuments, json_bytes, read_documents, read_json, write_documents
from dreamllm.errors import ConfigError, DocumentError, MissingExtraError

Documents = Sequence[Document] | JsonlDocuments
_FORMAT = 1
_BATCH = 256
_FIRST_SEARCH = 16


class DocumentIndex:
    """Plain documents and their vectors, in a flat index of inner products."""

    def __init__(
        self,
        documents: Documents,
        vectors: Float[np.ndarray, "n w"],
        *,
        encoder_name: str,
        contents: Sequence[str] | None = None,
    ) -> None:
        """Index documents by their vectors, which have length one (or zero, and are then found last).

        Args:
            documents: read when they are retrieved.
            vectors: one a document.
            encoder_name: of what made the vectors.
            contents: `content_of` each document, if it is known.

        Raises:
            DocumentError: a document is a conversation, or numbers or lengths of vectors are not right.
            MissingExtraError: faiss is not installed.
        """
        lengths = np.linalg.norm(vectors, axis=-1) if vectors.ndim == 2 else np.zeros(0)
        if len(lengths) != len(documents) or not len(documents):
            raise DocumentError(
                f"{len(documents)} documents have vectors of shape {vectors.shape}; expected one a document, "
                "and at least one document; give both from the same source"
            )
        if not np.all((np.abs(lengths - 1) < 1e-3) | (lengths == 0)):
            raise DocumentError(
                f"vectors have lengths from {lengths.min():.3f} to {lengths.max():.3f}; expected length one; "
                "divide each by its length"
            )
        self.documents = documents
        self.encoder_name = encoder_name
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        """(n, w), float32."""
        self.contents = list(map(content_of, documents)) if contents is None else list(contents)
        """A digest of what each document says and shows."""
        self._faiss = _faiss().IndexFlatIP(vectors.shape[1])
        self._faiss.add(self.vectors)

    @classmethod
    def build(cls, documents: Documents, encoder: DocumentEncoderForRetrieval) -> Self:
        """Index documents by the vectors of an encoder.

        Raises:
            DocumentError: there is none, or one is a conversation or empty.
            ImageError: a picture cannot be read.
            MissingExtraError: faiss is not installed.
        """
        for document in documents:
            if document.is_conversation or _is_empty(document):
                raise DocumentError(
                    f"document {document.id!r} of {len(document)} parts is "
                    f"{'a conversation' if document.is_conversation else 'empty'}; expected plain documents "
                    "with words or pictures, which alone are laid before others; leave it out of the index"
                )
        rows = [
            found.whole
            for start in range(0, len(documents), _BATCH)
            for found in document_vectors(
                [documents[i] for i in range(start, min(start + _BATCH, len(documents)))], encoder
            )
        ]
        vectors = np.stack(rows) if rows else np.zeros((0, 1), dtype=np.float32)
        return cls(documents, vectors, encoder_name=encoder.name)

    def __len__(self) -> int:
        return len(self.documents)

    def search(
        self, queries: Float[np.ndarray, "m w"], num: int
    ) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        """Scores and rows of the `num` best documents, or of all, for each query, best first."""
        if queries.shape[-1] != self.vectors.shape[1]:
            raise ConfigError(
                f"queries have width {queries.shape[-1]} and the index {self.vectors.shape[1]}; expected the "
                "encoder that the index was made with; use it, or index the documents again"
            )
        scores, rows = self._faiss.search(
            np.ascontiguousarray(queries, dtype=np.float32), min(num, len(self))
        )
        return scores, rows

    def save(self, folder: str | Path) -> Path:
        """Write index.faiss, documents.jsonl with its pictures, and index.json, which comes last.

        Raises:
            DocumentError: a document cannot be written.
            DiskError: a file cannot be written.
        """
        folder = Path(folder)
        write_documents(self.documents, folder / "documents.jsonl")
        write_bytes(folder / "index.faiss", _faiss().serialize_index(self._faiss).tobytes())
        about = {"format": _FORMAT, "encoder": self.encoder_name, "contents": self.contents}
        write_bytes(folder / "index.json", json_bytes(about, name="the index") + b"\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The index that `save` wrote; its documents are read from disk when they are needed.

        Raises:
            DocumentError: a file is missing or damaged, or the files do not belong together.
            MissingExtraError: faiss is not installed.
        """
        folder = Path(folder)
        faiss = _faiss()
        try:
            about = read_json((folder / "index.json").read_bytes(), name=str(folder / "index.json"))
            stored = (folder / "index.faiss").read_bytes()
        except OSError as error:
            raise DocumentError(
                f"{folder} holds no whole index: {error.strerror or error}; expected index.json, index.faiss "
                "and documents.jsonl; check the path, or save the index again"
            ) from error
        documents = read_documents(folder / "documents.jsonl")
        try:
            index = faiss.deserialize_index(np.frombuffer(stored, dtype=np.uint8))
            vectors = index.reconstruct_n(0, index.ntotal)
            format_, name, contents = about["format"], about["encoder"], about["contents"]
        except (RuntimeError, KeyError, TypeError) as error:
            raise DocumentError(
                f"{folder} is damaged: {str(error).splitlines()[0]}; expected the files of "
                "DocumentIndex.save; save the index again"
            ) from error
        if format_ != _FORMAT or not len(documents) == len(vectors) == len(contents):
            raise DocumentError(
                f"{folder} has format {format_}, {len(documents)} documents, {len(vectors)} vectors and "
                f"{len(contents)} digests; expected format {_FORMAT} and equal numbers; save the index again"
            )
        return cls(documents, vectors, encoder_name=name, contents=contents)


def _is_empty(document: Document) -> bool:
    return not document.images and not text_of(document)


def content_of(document: Document) -> str:
    """A digest of what a document says and shows, whoever says it and whatever is learned of it."""
    digest = hashlib.sha256()
    for part in document:
        if isinstance(part, Text):
            data, kind = part.text.strip().encode("utf-8", "surrogatepass"), "text"
        else:
            image = part.load()
            data, kind = image.tobytes(), f"image {image.size}"
        digest.update(f"{kind} {len(data)} ".encode() + data)
    return digest.hexdigest()[:32]


class Retriever:
    """Finds documents to lay before a document."""

    def __init__(
        self, config: RetrievalConfig, index: DocumentIndex, encoder: DocumentEncoderForRetrieval
    ) -> None:
        """Raises ConfigError if the encoder is not the one that the index was made with."""
        if encoder.name != index.encoder_name:
            raise ConfigError(
                f"the index was made with encoder {index.encoder_name!r} and is to be searched with "
                f"{encoder.name!r}; expected the same; name its encoder, or index the documents again"
            )
        self.config = config
        self.index = index
        self._encoder = encoder

    def retrieve(self, document: Document, *, rng: np.random.Generator | None = None) -> tuple[Document, ...]:
        """Documents for a document, the nearest last, next to where the document will stand.

        With a generator, as in training, words of the query are dropped and the candidates are sampled;
        without one, as in generation, nothing is dropped and the best are given. The document itself is never
        among them, by id or by content.

        Raises:
            ImageError: a picture of the document cannot be read.
        """
        candidates = self.candidates(document, rng=rng)
        numbers = self.config.num_retrieved
        if rng is None:
            chosen = list(range(min(max(numbers), len(candidates))))
        else:
            num = numbers[int(rng.integers(len(numbers)))]
            chosen = sorted(int(i) for i in rng.permutation(len(candidates))[:num])
        return tuple(self.index.documents[candidates[i]] for i in reversed(chosen))

    def candidates(self, document: Document, *, rng: np.random.Generator | None = None) -> list[int]:
        """Rows of the index: by text and by image in turn, each the best first.

        A row is left out if its score, its likeness to the whole document before words were dropped, or its
        likeness to a candidate before it is above `max_score`.
        """
        if _is_empty(document):
            return []
        (vectors,) = document_vectors([document], self._encoder)
        text = self._text_query(document, vectors, rng)
        taken: list[int] = []
        walks = [
            (self._near(query), count)
            for query, count in ((text, self.config.by_text), (vectors.image, self.config.by_image))
            if query is not None
        ]
        content = content_of(document)
        for turn in range(max((count for _, count in walks), default=0)):
            for walk, count in walks:
                if turn < count:
                    taken += self._next(walk, document.id, content, vectors, taken)
        return taken

    def _text_query(
        self, document: Document, vectors: DocumentVectors, rng: np.random.Generator | None
    ) -> Float[np.ndarray, " w"] | None:
        """The vector of the text, some of its words left out in training; at least one stays."""
        if vectors.text is None or rng is None:
            return vectors.text
        words = text_of(document).split()
        kept = rng.random(len(words)) >= self.config.query_dropout
        kept[int(rng.integers(len(words)))] |= not kept.any()
        text = " ".join(word for word, is_kept in zip(words, kept, strict=True) if is_kept)
        return unit(self._encoder.text([text]))[0]

    def _near(self, query: Float[np.ndarray, " w"]) -> Iterator[tuple[int, float]]:
        """Every row of the index with its score, the best first; equal scores in the order of rows."""
        num, seen = _FIRST_SEARCH, 0
        while seen < len(self.index):
            scores, rows = (found[0] for found in self.index.search(query[None], num))
            order = np.lexsort((rows, -scores))
            yield from ((int(rows[i]), float(scores[i])) for i in order[seen:])
            seen, num = len(rows), 4 * num

    def _next(
        self,
        walk: Iterator[tuple[int, float]],
        id: str,
        content: str,
        vectors: DocumentVectors,
        taken: list[int],
    ) -> list[int]:
        """The next row of a walk that may be taken, if there is one."""
        most = self.config.max_score
        for row, score in walk:
            own = self.index.vectors[row]
            likeness = [score, float(own @ vectors.whole), *(self.index.vectors[taken] @ own).tolist()]
            if row in taken or max(likeness) > most or self.index.contents[row] == content:
                continue
            if id and self.index.documents[row].id == id:
                continue
            return [row]
        return []


def build_encoder(config: EncoderConfig) -> DocumentEncoderForRetrieval:
    """The encoder that a config describes."""
    if not isinstance(config, ClipVectorsConfig):
        return HashedWords(config.width)
    from dreamllm.data.clip_vectors import ClipDocumentVectors  # late: torch and transformers are heavy

    return ClipDocumentVectors(config.path, tokenizer=config.tokenizer, device=config.device)


def build_retriever(config: RetrievalConfig) -> Retriever:
    """The retriever that a config describes, its index read or made.

    Raises:
        ConfigError: the index was made with another encoder.
        DocumentError: documents or the index cannot be read, or cannot be laid before others.
        CheckpointError: the CLIP cannot be read.
        MissingExtraError: faiss is not installed.
    """
    encoder = build_encoder(config.encoder)
    if config.index is not None:
        return Retriever(config, DocumentIndex.load(config.index), encoder)
    assert config.source is not None  # a config has one or the other
    return Retriever(config, DocumentIndex.build(_documents(config.source, config), encoder), encoder)


def _documents(source: SourceConfig, config: RetrievalConfig) -> Documents:
    """All documents of a file, or new ones of the world, whose ids are those of no training document."""
    if isinstance(source, JsonlSourceConfig):
        return read_documents(source.path, on_fault=source.on_fault)
    world = build_source(source, config.seed)
    made = (world[index] for index in range(config.num_documents))
    return [Document(parts=d.parts, id=f"retrieved-{d.id}", metadata=d.metadata) for d in made]


def _faiss() -> Any:
    """The library, or the pip line that installs it."""
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError(
            "retrieval needs faiss, which is not installed; run `pip install 'dreamllm[retrieval]'`, or set "
            "retrieval to null"
        )
    return importlib.import_module("faiss")
