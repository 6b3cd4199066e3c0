"""The handle of a JAM, and the one that is whichever a folder holds."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image as PILImage
from tests.checkpoint.tiny_hub import TOKEN, tiny_hub
from tests.checkpoint.tiny_jam import PICTURE_PX, save_tiny_jam
from tests.cli.small_model import save_small_model

from dreamllm import JAM, DreamLLM, load
from dreamllm.checkpoint.jam import read_jam_index
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.data.retrieval_config import RetrievalConfig
from dreamllm.data.sources import JsonlSourceConfig
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.events import fold
from dreamllm.document.jsonl import write_documents
from dreamllm.errors import CheckpointError, ConfigError

PICTURE = PILImage.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
SHORT = {"max_new_tokens": 6, "max_images": 1, "temperature": 1.0}
SOURCES = {"language_model": PartSource(source="owner/words", revision="a" * 40, license="mit")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_jam(tmp_path_factory.mktemp("handles") / "jam", sources=SOURCES)


@pytest.fixture(scope="module")
def model(folder: Path) -> JAM:
    return JAM.from_pretrained(folder, device="cpu")


def assert_same(loaded: JAM, model: JAM) -> None:
    """Both write the same words and draw the same picture."""
    story = Document(parts=(Image(source=PICTURE, learn=False), Text(text="once")))
    told, written = (each.generate(story, mode="text", max_new_tokens=8) for each in (loaded, model))
    assert told.text == written.text
    drawn, expected = (np.asarray(each.draw(["red"])[0]) for each in (loaded, model))
    assert np.array_equal(drawn, expected)
    assert loaded.sources == model.sources == SOURCES


def test_words_and_pictures_are_what_a_user_says(model: JAM) -> None:
    shown = model.generate(["look", PICTURE, "what"], **SHORT)
    events = list(model.stream(["look", PICTURE, "what"], **SHORT))

    assert [part.role for part in shown.parts[:3]] == ["user"] * 3
    assert shown.parts[1].source is PICTURE  # type: ignore[union-attr]
    parts = fold(events, role="assistant")
    assert [getattr(p, "text", None) for p in parts] == [getattr(p, "text", None) for p in shown.parts[3:]]


def test_pictures_are_drawn_from_captions_as_the_options_say(model: JAM) -> None:
    one, other = model.draw(["red", "blue"], guidance_scale=1.0)
    (again,) = model.draw(["red"], guidance_scale=1.0)
    (greedy,) = model.draw(["red"], guidance_scale=1.0, image_temperature=0.0, seed=4)
    (greedy_too,) = model.draw(["red"], guidance_scale=1.0, image_temperature=0.0, seed=5)

    assert one.size == other.size == (PICTURE_PX, PICTURE_PX)
    assert one.tobytes() == again.tobytes()
    assert greedy.tobytes() == greedy_too.tobytes()


def test_ask_answers_in_words_alone(model: JAM) -> None:
    answer = model.ask(PICTURE, "what", max_new_tokens=6, temperature=1.0, seed=3)

    said = model.generate([PICTURE, "what"], mode="text", max_new_tokens=6, temperature=1.0, seed=3)
    assert answer == "".join(part.text for part in said.parts[2:] if isinstance(part, Text)) != ""


def test_an_option_of_the_other_family_is_refused(model: JAM) -> None:
    with pytest.raises(
        ConfigError, match="num_inference_steps is 3, which a model that draws by codes cannot"
    ):
        model.draw(["red"], num_inference_steps=3)
    with pytest.raises(ConfigError, match=r"image_temperature is 0\.5, which .* cannot obey"):
        DreamLLM.from_pretrained("tiny", device="cpu").draw(["red"], image_temperature=0.5)


def test_a_saved_model_answers_as_the_one_in_memory(model: JAM, tmp_path: Path) -> None:
    assert model.save_pretrained(tmp_path / "m") == tmp_path / "m"

    assert_same(JAM.from_pretrained(tmp_path / "m", device="cpu"), model)
    assert read_jam_index(tmp_path / "m").sources == SOURCES
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.tags == ["any-to-any", "jam", "interleaved-generation"]
    assert 'JAM.from_pretrained("./m")' in card.content


def test_a_pushed_model_answers_as_the_one_in_memory(
    model: JAM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_hub(monkeypatch, tmp_path) as hub:
        model.push_to_hub("owner/jam", token=TOKEN)

        assert_same(JAM.from_pretrained("owner/jam", device="cpu"), model)
        found = load("owner/jam", device="cpu")

    assert isinstance(found, JAM)
    assert {
        path.suffix if (path := Path(name)).suffix else name for name in hub.repositories["owner/jam"]["main"]
    } <= {
        ".json",
        ".safetensors",
        ".md",
    }


def test_load_gives_whichever_a_folder_holds(folder: Path, tmp_path: Path) -> None:
    assert isinstance(load(folder, device="cpu"), JAM)
    assert isinstance(load(save_small_model(tmp_path / "dream"), device="cpu"), DreamLLM)
    with pytest.raises(CheckpointError, match="holds a JAM, expected a DreamLLM"):
        DreamLLM.from_pretrained(folder, device="cpu")
    with pytest.raises(CheckpointError, match="holds a DreamLLM, expected a JAM"):
        JAM.from_pretrained("tiny", device="cpu")
    with pytest.raises(CheckpointError, match="'no-such' is neither a model folder"):
        load("no-such")


def test_a_model_of_eight_bits_draws(folder: Path) -> None:
    pytest.importorskip("torchao")

    (picture,) = JAM.from_pretrained(folder, device="cpu", quantize="int8").draw(["red"])

    assert picture.size == (PICTURE_PX, PICTURE_PX)


def test_a_parent_of_words_alone_writes_and_does_not_draw(tmp_path: Path) -> None:
    words = JAM.from_pretrained(save_tiny_jam(tmp_path / "words", has_pictures=False), device="cpu")

    document = words.generate(Document(parts=(Text(text="a"),)), max_new_tokens=4, temperature=1.0)

    assert document.images == ()
    assert document.text.startswith("a")
    with pytest.raises(ConfigError, match="no image tokenizer"):
        words.draw(["red"])


def write_facts(path: Path) -> Path:
    documents = [
        Document(parts=(Text(text=text),), id=text) for text in ("a red square", "a blue star", "a red star")
    ]
    return write_documents(documents, path)


def test_retrieved_documents_are_read_before_the_prompt(model: JAM, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    source = JsonlSourceConfig(path=write_facts(tmp_path / "facts.jsonl"))
    retrieval = RetrievalConfig(source=source, by_text=1, by_image=0, num_retrieved=(1,))

    reading = model.with_retrieval(retrieval)
    prompt = Document(parts=(Text(text="a blue circle"),))

    words = model.encoder.tokenizer.decode(reading.generator.encoder.encode_prompt(prompt).input_ids.tolist())
    assert words.index("a blue star") < words.index("a blue circle")
    assert "square" not in words
    told = [each.generate(prompt, mode="text", max_new_tokens=8).text for each in (reading, model, reading)]
    assert told[0] == told[2] != told[1]


def test_what_is_retrieved_leaves_room_to_write(model: JAM, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    source = JsonlSourceConfig(path=write_facts(tmp_path / "facts.jsonl"))
    retrieval = RetrievalConfig(source=source, by_text=3, by_image=0, num_retrieved=(3,))
    prompt = Document(parts=(Text(text="red"),))
    alone = len(model.encoder.encode_prompt(prompt).input_ids)
    context = model.encoder.options.max_length

    everything, half, nothing = (
        len(model.with_retrieval(retrieval, room=room).generator.encoder.encode_prompt(prompt).input_ids)
        for room in (0, None, context - alone)
    )

    assert alone == nothing < half <= context // 2 <= context
    assert half <= everything <= context
