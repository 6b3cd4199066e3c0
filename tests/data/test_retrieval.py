"""Retrieval: what is near and not too near, never the document itself, and the same from disk."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from dreamllm.config import load_config
from dreamllm.data.clip_vectors import ClipDocumentVectors
from dreamllm.data.retrieval import (
    DocumentIndex,
    Retriever,
    build_encoder,
    build_retriever,
    content_of,
)
from dreamllm.data.retrieval_config import ClipVectorsConfig, HashedWordsConfig, RetrievalConfig
from dreamllm.data.retrieval_vectors import HashedWords, document_vectors, unit
from dreamllm.data.sources import JsonlSourceConfig, WorldSourceConfig
from dreamllm.data.transforms import VisionTransform
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import write_documents
from dreamllm.errors import CheckpointError, ConfigError, DocumentError, MissingExtraError
from dreamllm.world.documents import make_document

PAIRS = WorldSourceConfig(documents={"draw_pair": 1.0})


def pairs(num: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    return [make_document("draw_pair", rng, id=f"d{i}") for i in range(num)]


def config(**changes: object) -> RetrievalConfig:
    return RetrievalConfig(**{"source": PAIRS, "num_documents": 60} | changes)  # type: ignore[arg-type]


class Table:
    """Vectors by hand: a text is its own numbers, a picture the color of its corner."""

    name = "table"

    def text(self, texts: list[str]) -> np.ndarray:
        return np.asarray([[float(x) for x in text.split(",")] for text in texts])

    def images(self, images: list[PILImage.Image]) -> np.ndarray:
        return np.asarray([image.getpixel((0, 0)) for image in images], dtype=float)


def told(x: float, y: float, z: float, id: str = "", picture: tuple[int, int, int] | None = None) -> Document:
    parts: list[Text | Image] = [Text(text=f"{x},{y},{z}")]
    if picture is not None:
        parts.append(Image(source=PILImage.new("RGB", (2, 2), picture)))
    return Document(parts=tuple(parts), id=id)


def by_hand(documents: list[Document], **changes: object) -> Retriever:
    table = Table()
    settings = config(**{"by_image": 0, "num_retrieved": (2,)} | changes)
    return Retriever(settings, DocumentIndex.build(documents, table), table)


@settings(deadline=None)  # faiss loads in the first example
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 1000))
def test_an_index_finds_what_comparing_with_every_document_finds(num: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = unit(rng.standard_normal((num, 8))), unit(rng.standard_normal((3, 8)))
    documents = [Document(parts=(Text(text=str(i)),)) for i in range(num)]

    scores, rows = DocumentIndex(documents, vectors, encoder_name="any").search(queries, k)

    brute = queries @ vectors.T
    assert rows.tolist() == np.argsort(-brute, axis=1)[:, : min(num, k)].tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(brute, rows, 1), atol=1e-6)


def test_the_vector_of_a_document_is_the_mean_of_its_text_and_its_pictures() -> None:
    both, words = document_vectors([told(3, 0, 0, picture=(0, 9, 0)), told(0, 0, 2)], Table())

    np.testing.assert_allclose(both.whole, np.asarray([1, 1, 0]) / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(both.image, [0, 1, 0])
    np.testing.assert_allclose(words.whole, [0, 0, 1])
    assert words.image is None


def test_several_pictures_count_alike_whatever_their_lengths() -> None:
    pictures = tuple(Image(source=PILImage.new("RGB", (1, 1), color)) for color in ((200, 0, 0), (0, 1, 0)))

    (vectors,) = document_vectors([Document(parts=pictures)], Table())

    np.testing.assert_allclose(vectors.whole, np.asarray([1, 1, 0]) / np.sqrt(2), atol=1e-6)
    assert vectors.text is None


def test_what_scores_above_the_threshold_is_left_out_and_what_scores_below_is_kept() -> None:
    """Cosines with (1, 0, 0): 0.96, 0.8 and 0.6. The sign is that of RA-CM3: too near, not too far."""
    documents = [told(0.96, 0.28, 0), told(0.8, 0, 0.6), told(0.6, -0.8, 0)]
    query = told(1, 0, 0)

    assert by_hand(documents, max_score=0.9).candidates(query) == [1, 2]
    assert by_hand(documents, max_score=0.97).candidates(query) == [0, 1]
    assert by_hand(documents, max_score=0.7).candidates(query) == [2]
    assert by_hand(documents, max_score=0.5).candidates(query) == []


def test_of_two_candidates_that_are_alike_the_first_is_given() -> None:
    documents = [told(0.8, 0.6, 0), told(0.79, 0.61, 0.1), told(0.6, -0.8, 0)]

    assert by_hand(documents).candidates(told(1, 0, 0)) == [0, 2]


def test_a_document_is_never_retrieved_for_itself_by_id_or_by_content() -> None:
    same_id = told(0.8, 0.6, 0, id="a")
    same_content = told(1, 0, 0, id="b")
    other = told(0, 1, 0, id="c")
    retriever = by_hand([same_id, same_content, other], max_score=1.0)

    found = retriever.retrieve(told(1, 0, 0, id="a"))

    assert [document.id for document in found] == ["c"]


def test_documents_without_ids_are_told_apart_by_content_alone() -> None:
    retriever = by_hand([told(1, 0, 0), told(0.8, 0.6, 0)], max_score=1.0)

    assert len(retriever.retrieve(told(1, 0, 0))) == 1
    assert len(retriever.retrieve(told(0, 0, 1))) == 2


def test_the_content_is_what_is_said_and_shown_whoever_does() -> None:
    picture = PILImage.new("RGB", (2, 3), (1, 2, 3))
    plain = Document(parts=(Text(text="a"), Image(source=picture)), id="x")
    said = Document(
        parts=(Text(text=" a", role="user", learn=False), Image(source=picture, role="assistant")), id="y"
    )
    turned = Document(parts=(Text(text="a"), Image(source=picture.transpose(PILImage.Transpose.ROTATE_90))))
    elsewhere = Document(parts=(Image(source=picture), Text(text="a")))

    assert content_of(plain) == content_of(said)
    assert len({content_of(d) for d in (plain, turned, elsewhere)}) == 3


def test_candidates_come_by_text_and_by_image_in_turn_each_the_best_first() -> None:
    """Text is told along x and y, pictures along z and x: what is near by one is far by the other."""
    documents = [
        told(0.8, 0.6, 0),  # by text first
        told(0.5, -0.8, 0),  # by text second
        told(0, 0.6, 0.8),  # by image first
        told(0, -0.8, 0.6),  # by image second
        told(0, -1, 0),
    ]
    query = told(1, 0, 0, picture=(0, 0, 255))
    both = by_hand(documents, by_text=2, by_image=2, num_retrieved=(4,))

    assert both.candidates(query) == [0, 2, 1, 3]
    assert by_hand(documents, by_text=1, by_image=2).candidates(query) == [0, 2, 3]
    assert by_hand(documents, by_text=0, by_image=1, num_retrieved=(1,)).candidates(query) == [2]
    assert both.candidates(told(1, 0, 0)) == [0, 1]
    assert both.retrieve(query) == tuple(documents[i] for i in (3, 1, 2, 0))  # the best stands last


def test_a_document_that_says_and_shows_nothing_finds_nothing() -> None:
    assert by_hand([told(1, 0, 0)]).retrieve(Document(parts=(Text(text=" "),))) == ()
    assert by_hand([told(1, 0, 0)]).retrieve(Document(parts=())) == ()


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return build_retriever(config(num_documents=150))


def test_in_generation_the_most_are_given_and_nothing_is_random(retriever: Retriever) -> None:
    for document in pairs(10, seed=3):
        found = retriever.retrieve(document)
        assert len(found) == 3
        rows = retriever.candidates(document)
        assert [d.id for d in found] == [retriever.index.documents[row].id for row in rows[:3]][::-1]
        assert [d.id for d in retriever.retrieve(document)] == [d.id for d in found]


def test_in_training_what_is_found_is_a_function_of_the_generator(retriever: Retriever) -> None:
    (document,) = pairs(1, seed=4)

    def ids(seed: int) -> tuple[str, ...]:
        return tuple(d.id for d in retriever.retrieve(document, rng=np.random.default_rng(seed)))

    assert [ids(seed) for seed in range(5)] == [ids(seed) for seed in range(5)]
    assert len({ids(seed) for seed in range(20)}) > 3


def test_numbers_of_documents_are_equally_likely_in_training() -> None:
    retriever = build_retriever(config(num_retrieved=(0, 1, 2)))
    (document,) = pairs(1, seed=4)
    rng = np.random.default_rng(0)

    counts = np.bincount([len(retriever.retrieve(document, rng=rng)) for _ in range(300)], minlength=3)

    assert counts.sum() == 300
    assert len(counts) == 3
    assert np.all(np.abs(counts - 100) < 33)  # four standard deviations of 8.2
    assert len(retriever.retrieve(document)) == 2


class Listening(HashedWords):
    """Keeps the texts it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def text(self, texts: list[str]) -> np.ndarray:
        self.heard += texts
        return super().text(texts)


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.99])
def test_a_share_of_the_words_of_a_training_query_is_dropped_in_order_and_never_all(dropout: float) -> None:
    documents = pairs(20)
    encoder = Listening()
    retriever = Retriever(config(query_dropout=dropout), DocumentIndex.build(documents, encoder), encoder)
    rng = np.random.default_rng(0)
    num_words = num_kept = 0
    for document in pairs(60, seed=1):
        encoder.heard.clear()
        retriever.retrieve(document, rng=rng)
        whole, asked = (text.split() for text in encoder.heard)
        rest = iter(whole)
        assert whole == document.text.split()
        assert asked
        assert all(word in rest for word in asked)
        num_words, num_kept = num_words + len(whole), num_kept + len(asked)
        encoder.heard.clear()
        retriever.retrieve(document)
        assert encoder.heard == [document.text]

    deviation = (dropout * (1 - dropout) / num_words) ** 0.5
    if dropout < 0.9:
        assert abs(num_kept / num_words - (1 - dropout)) <= 4 * deviation


def test_words_are_dropped_from_what_is_asked_with_not_from_what_is_too_near() -> None:
    """However its words are dropped, a document like the query never comes."""
    (original,) = pairs(1, seed=9)
    twin = Document(parts=(Text(text=f"{original.text} Indeed."), *original.images), id="twin")
    encoder = HashedWords()
    retriever = Retriever(
        config(query_dropout=0.5), DocumentIndex.build([twin, *pairs(30)], encoder), encoder
    )

    for seed in range(20):
        found = retriever.retrieve(original, rng=np.random.default_rng(seed))
        assert "twin" not in {document.id for document in found}
    kept = Retriever(retriever.config, DocumentIndex.build([twin], encoder), encoder)
    assert kept.retrieve(pairs(1, seed=8)[0], rng=np.random.default_rng(0)) == (twin,)


def test_an_index_is_the_same_from_disk(tmp_path: Path, retriever: Retriever) -> None:
    retriever.index.save(tmp_path / "index")
    loaded = build_retriever(config(source=None, index=tmp_path / "index"))

    assert len(loaded.index) == len(retriever.index) == 150
    np.testing.assert_array_equal(loaded.index.vectors, retriever.index.vectors)
    assert loaded.index.contents == retriever.index.contents
    for document in pairs(10, seed=5):
        for seed in (None, 0):
            found, again = (
                side.retrieve(document, rng=None if seed is None else np.random.default_rng(seed))
                for side in (retriever, loaded)
            )
            assert [d.id for d in found] == [d.id for d in again]
            assert [content_of(d) for d in found] == [content_of(d) for d in again]
    assert loaded.index.save(tmp_path / "index") == tmp_path / "index"
    assert DocumentIndex.load(tmp_path / "index").contents == retriever.index.contents


def test_damaged_and_foreign_indexes_are_refused(tmp_path: Path) -> None:
    folder = DocumentIndex.build(pairs(5), HashedWords()).save(tmp_path / "index")

    with pytest.raises(ConfigError, match=r"made with encoder 'hashed_words 512' and .* 'hashed_words 64'"):
        build_retriever(config(source=None, index=folder, encoder=HashedWordsConfig(width=64)))
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(about | {"contents": []}))
    with pytest.raises(DocumentError, match="5 documents, 5 vectors and 0 digests; expected format 1"):
        DocumentIndex.load(folder)
    (folder / "index.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DocumentError, match="is damaged: 'encoder'; expected the files"):
        DocumentIndex.load(folder)
    (folder / "index.faiss").write_bytes(b"not an index")
    with pytest.raises(DocumentError, match=r"is damaged: .*not recognized"):
        DocumentIndex.load(folder)
    (folder / "index.faiss").unlink()
    with pytest.raises(DocumentError, match="holds no whole index: No such file"):
        DocumentIndex.load(folder)


def test_an_index_takes_plain_documents_with_unit_vectors_alone() -> None:
    chat = make_document("draw", np.random.default_rng(0), id="chat")

    with pytest.raises(DocumentError, match="'chat' of 2 parts is a conversation; expected plain documents"):
        DocumentIndex.build([*pairs(1), chat], HashedWords())
    with pytest.raises(DocumentError, match="of 1 parts is empty"):
        DocumentIndex.build([Document(parts=(Text(text=""),))], HashedWords())
    with pytest.raises(DocumentError, match="expected one a document, and at least one"):
        DocumentIndex.build([], HashedWords())
    with pytest.raises(DocumentError, match=r"lengths from 2\.000 to 2\.000; expected length one"):
        DocumentIndex([told(1, 0, 0)], np.asarray([[2.0, 0]]), encoder_name="any")
    with pytest.raises(ConfigError, match="queries have width 3 and the index 2"):
        DocumentIndex([told(1, 0, 0)], np.asarray([[1.0, 0]]), encoder_name="any").search(np.ones((1, 3)), 1)


def test_without_faiss_the_error_holds_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "faiss" else find(name, *rest)
    )

    with pytest.raises(MissingExtraError, match=r"faiss.*pip install 'dreamllm\[retrieval\]'"):
        build_retriever(config())


def test_documents_come_from_a_file_or_from_the_world(tmp_path: Path) -> None:
    write_documents(pairs(7), tmp_path / "pairs.jsonl")

    file = build_retriever(config(source=JsonlSourceConfig(path=tmp_path / "pairs.jsonl")))
    world, again, other = (build_retriever(config(seed=seed)) for seed in (0, 0, 1))

    assert [document.id for document in file.index.documents] == [f"d{i}" for i in range(7)]
    assert len(world.index) == 60
    assert world.index.documents[3].id == "retrieved-draw_pair-3"
    assert world.index.contents == again.index.contents != other.index.contents


def test_hashed_words_know_the_same_words_and_the_same_pictures() -> None:
    encoder = HashedWords()
    red, same, blue = unit(encoder.text(["A red circle.", "a RED circle", "A blue square."]))
    pictures = [image.load() for document in pairs(2) for image in document.images]
    first, again, second = unit(encoder.images([pictures[0], pictures[0].copy(), pictures[1]]))

    np.testing.assert_array_equal(red, same)
    assert red @ blue == pytest.approx(1 / 5)  # of five terms each, words and pairs, they share "a"
    np.testing.assert_array_equal(first, again)
    assert first @ second < 0.9
    assert not encoder.images([PILImage.new("RGB", (9, 9), (3, 3, 3))]).any()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    words = {"<s>": 0, "</s>": 1, "<unk>": 3, "A": 4, "red": 5, "circle": 6, "blue": 7, ".": 8}
    rust = RustTokenizer(WordLevel(words, unk_token="<unk>"))
    rust.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shared = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {**shared, "vocab_size": 9, "max_position_embeddings": 5, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**shared, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    transform = VisionTransform(image_px=16)
    (folder / "preprocessor_config.json").write_text(json.dumps(transform.to_preprocessor()))
    return folder


def test_the_vectors_of_a_stock_clip_are_those_that_it_gives_itself(clip_folder: Path) -> None:
    encoder = build_encoder(ClipVectorsConfig(path=clip_folder))
    stock = CLIPModel.from_pretrained(clip_folder).eval()
    images = [document.images[0].load() for document in pairs(3)]
    ids = torch.tensor([[0, 4, 5, 6, 1], [0, 7, 1, 1, 1]])  # the first loses its end, the second is filled

    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([VisionTransform(image_px=16)(image) for image in images]))
        expected = stock(input_ids=ids, pixel_values=pixels)

    texts = unit(encoder.text(["A red circle.", "blue"]))
    np.testing.assert_allclose(texts, expected.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(unit(encoder.images(images)), expected.image_embeds.numpy(), atol=1e-5)


def test_a_clip_retrieves_and_is_known_by_its_projections(clip_folder: Path, tmp_path: Path) -> None:
    chosen = ClipVectorsConfig(path=clip_folder)
    retriever = build_retriever(config(encoder=chosen, num_documents=12, max_score=1.0))
    retriever.index.save(tmp_path / "index")
    other = CLIPModel.from_pretrained(clip_folder)
    torch.nn.init.normal_(other.text_projection.weight)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "preprocessor_config.json").write_text(
        (clip_folder / "preprocessor_config.json").read_text()
    )

    assert len(retriever.retrieve(pairs(1)[0])) == 3
    elsewhere = ClipVectorsConfig(path=tmp_path / "other", tokenizer=clip_folder)
    with pytest.raises(ConfigError, match="the index was made with encoder 'clip "):
        build_retriever(config(source=None, index=tmp_path / "index", encoder=elsewhere))


def test_folders_that_hold_no_clip_or_no_tokenizer_are_errors(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a CLIP to retrieve with; expected config\.json"):
        ClipDocumentVectors(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read as a CLIP with its tokenizer"):
        ClipDocumentVectors(clip_folder, tokenizer=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "index is None and source is None; expected one of them"),
        ({"index": Path("x")}, "expected one of them, where documents are retrieved from"),
        ({"by_text": 0, "by_image": 0}, "by_text=0 and by_image=0 ask for no candidates"),
        ({"by_text": -1}, "by_text=-1"),
        ({"num_retrieved": ()}, r"num_retrieved is \(\)"),
        ({"num_retrieved": (5,)}, "expected one or more numbers from 0 to 4"),
        ({"query_dropout": 1.0}, r"query_dropout is 1\.0; expected a share"),
        ({"max_score": 1.5}, r"max_score is 1\.5; expected a cosine"),
        ({"num_documents": 0}, "num_documents is 0; expected at least 1"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_recipe_names_source_and_encoder_by_their_kinds() -> None:
    read = load_config(
        RetrievalConfig,
        {
            "source": {"kind": "world", "documents": {"draw_pair": 1.0}},
            "encoder": {"kind": "clip", "path": "../clip/model/clip", "tokenizer": "../clip/model/tokenizer"},
            "num_retrieved": [0, 1, 2],
        },
    )

    assert isinstance(read.source, WorldSourceConfig)
    assert read.encoder == ClipVectorsConfig(
        path=Path("../clip/model/clip"), tokenizer=Path("../clip/model/tokenizer")
    )
    assert (read.num_retrieved, read.by_text, read.by_image, read.max_score) == ((0, 1, 2), 2, 2, 0.9)
