from dataclasses import fields

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.checkpoint.encoder import transforms_of
from dreamllm.checkpoint.pretrained import save_model
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


def test_a_saved_model_answers_as_the_one_in_memory(model, make_generator, letters, tokenizer, tmp_path):
    # The head's bias of these tests is no part of a stock Llama, so it goes before the model is saved.
    generator = make_generator(letters)
    generator.model.language_model.lm_head.bias = None
    save_model(
        generator.model, tmp_path / "m", tokenizer=tokenizer, transforms=transforms_of(generator.encoder)
    )

    loaded = DreamLLM.from_pretrained(tmp_path / "m", device="cpu")

    assert loaded.encoder.sizes == generator.encoder.sizes
    drawn = np.asarray(loaded.draw(["red"], num_inference_steps=2)[0]).astype(int)
    expected = DreamLLM(generator.model, generator.encoder).draw(["red"], num_inference_steps=2)[0]
    assert np.abs(drawn - np.asarray(expected)).max() <= 1


def test_an_unknown_model_is_one_line_that_names_the_shipped_ones(tmp_path):
    with pytest.raises(CheckpointError, match=r"'no-such' is neither a model folder nor a model that ships"):
        DreamLLM.from_pretrained("no-such")


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
        ({"scheduler": "euler"}, "scheduler is 'euler'; it must be one of dpm, ddpm, ddim"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(**option)
