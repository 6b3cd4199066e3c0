from dataclasses import fields

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image as PILImage
from tests.checkpoint.tiny_hub import TOKEN, tiny_hub

from dreamllm.checkpoint.card import Stage
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.checkpoint.pretrained import read_index
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.events import fold
from dreamllm.errors import CheckpointError, ConfigError, DocumentError
from dreamllm.generate.options import DrawOptions, GenerationOptions, OptionFields, WriteOptions
from dreamllm.generate.pipeline import DreamLLM

# numpy 2 warns of a call inside the stock DPM-Solver.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PICTURE = PILImage.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
SHORT = {"max_new_tokens": 6, "max_images": 1, "temperature": 1.0, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def model(make_generator, chatty):
    generator = make_generator(chatty)
    return DreamLLM(generator.model, generator.encoder)


def test_words_and_pictures_are_what_a_user_says(model):
    told = model.generate("hi", **SHORT)
    shown = model.generate(["look", PICTURE, "what"], **SHORT)

    assert [(part.role, part.text) for part in told.parts[:1]] == [("user", "hi")]
    assert [part.role for part in shown.parts[:3]] == ["user"] * 3
    assert shown.parts[1].source is PICTURE
    assert {part.role for part in (*told.parts[1:], *shown.parts[3:])} == {"assistant"}


def test_a_document_is_taken_as_it_is_and_a_list_of_them_is_a_batch(model):
    document = Document(parts=(Text(text="once"),), id="story")

    alone = model.generate(document, **SHORT)
    (listed,) = model.generate([document], **SHORT)

    assert alone.id == listed.id == "story"
    assert alone.text == listed.text
    assert alone.text.startswith("once")
    assert model.generate([], **SHORT) == []


def test_a_stream_tells_what_generate_returns(model):
    events = list(model.stream("hi", **SHORT))

    parts = fold(events, role="assistant")
    generated = model.generate("hi", **SHORT).parts[1:]
    assert [getattr(p, "text", None) for p in parts] == [getattr(p, "text", None) for p in generated]


def test_draw_gives_one_picture_for_each_text(model):
    one, other, again = (
        np.asarray(image)
        for image in model.draw(["red", "blue"], num_inference_steps=2)
        + model.draw(["red"], num_inference_steps=2)
    )

    assert one.shape == (16, 16, 3)
    assert (one != other).any()
    assert np.abs(one.astype(int) - again).max() <= 1


def test_ask_answers_in_words_alone(make_generator, letters, tokenizer):
    generator = make_generator(letters | {tokenizer.special.dream_start: 90.0})

    answer = DreamLLM(generator.model, generator.encoder).ask(PICTURE, "what", max_new_tokens=6)

    assert len(answer) == 6
    assert answer.isalpha()


SOURCES = {"language_model": PartSource(source="owner/words", revision="a" * 40, license="mit")}
STAGE = Stage(name="stage1", steps=3, trained=("dream_queries",), documents=("until 100%: 100% world",))


@pytest.fixture(scope="module")
def plain(make_generator, letters):
    """A model that can be saved: the head's bias of these tests is no part of a stock Llama."""
    generator = make_generator(letters)
    generator.model.language_model.lm_head.bias = None
    return DreamLLM(generator.model, generator.encoder, sources=SOURCES)


def assert_same(loaded, model):
    """Both write the same words and draw the same picture."""
    assert loaded.encoder.sizes == model.encoder.sizes
    assert loaded.sources == model.sources
    story = Document(parts=(Image(source=PICTURE, learn=False), Text(text="once")))
    told, written = (each.generate(story, mode="text", max_new_tokens=8) for each in (loaded, model))
    assert told.text == written.text
    assert len(told.text) == len("once") + 8
    drawn, expected = (np.asarray(each.draw(["red"], num_inference_steps=2)[0]) for each in (loaded, model))
    assert np.array_equal(drawn, expected)


def test_a_saved_model_answers_as_the_one_in_memory(plain, tmp_path):
    assert plain.save_pretrained(tmp_path / "m", stages=[STAGE]) == tmp_path / "m"

    assert_same(DreamLLM.from_pretrained(tmp_path / "m", device="cpu"), plain)
    assert read_index(tmp_path / "m").sources == SOURCES
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.base_model == ["owner/words"]
    assert "| stage1 | 3 | dream_queries |" in card.content
    assert 'from_pretrained("./m")' in card.content


def test_a_saved_folder_holds_no_pickle_and_no_code(plain, tmp_path):
    folder = plain.save_pretrained(tmp_path / "m")

    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert {".safetensors", ".json", ".md"} <= suffixes <= {".safetensors", ".json", ".md", ".jinja", ".txt"}


def test_a_pushed_model_answers_as_the_one_in_memory(plain, tmp_path, monkeypatch):
    with tiny_hub(monkeypatch, tmp_path) as hub:
        address = plain.push_to_hub("owner/m", revision="v1", private=True, token=TOKEN, commit_message="one")

        assert_same(DreamLLM.from_pretrained("owner/m@v1", device="cpu"), plain)
        assert_same(DreamLLM.from_pretrained("owner/m", revision="v1", device="cpu"), plain)

    assert "/owner/m/commit/" in address
    assert hub.private == {"owner/m"}
    assert hub.messages == ["one"]
    assert hub.repositories["owner/m"]["main"] == {}
    assert 'from_pretrained("owner/m@v1")' in hub.repositories["owner/m"]["v1"]["README.md"].decode()
    assert_same(DreamLLM.from_pretrained("owner/m@v1", device="cpu", local_files_only=True), plain)


def test_an_unknown_model_is_one_line_that_names_the_shipped_ones(tmp_path):
    with pytest.raises(CheckpointError, match=r"'no-such' is neither a model folder nor a model that ships"):
        DreamLLM.from_pretrained("no-such")
    with pytest.raises(CheckpointError, match="'tiny' ships with the package and has no revision 'v1'"):
        DreamLLM.from_pretrained("tiny", revision="v1")
    with pytest.raises(
        CheckpointError, match="'owner/name': local_files_only is set; the cache holds no whole"
    ):
        DreamLLM.from_pretrained("owner/name", local_files_only=True)


def test_a_prompt_of_something_else_is_refused(model):
    with pytest.raises(DocumentError, match="a prompt holds a int; expected words and PIL pictures"):
        model.generate(["hi", 3])
    with pytest.raises(DocumentError, match="a prompt holds a Document"):
        model.generate(["hi", Document(parts=(Image(source=PICTURE),))])


def test_the_keyword_options_are_the_fields_of_the_options():
    names = {f.name for f in fields(GenerationOptions)}

    assert set(OptionFields.__annotations__) == names
    assert set(WriteOptions.__annotations__) <= names
    assert set(DrawOptions.__annotations__) <= names


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": -1.0}, r"temperature is -1\.0; it must be 0 or more"),
        ({"top_p": 0.0}, r"top_p is 0\.0; it must lie in \(0, 1\]"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_images": -1}, "max_images is -1; it must be 0 or more"),
        ({"preview_every": 0}, "preview_every is 0; it must be at least 1"),
        ({"mode": "song"}, "mode is 'song'; it must be one of interleaved, text, image"),
        ({"scheduler": "heun"}, "scheduler is 'heun'; it must be one of dpm, ddpm, ddim, euler"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(**option)
