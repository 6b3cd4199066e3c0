from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from torch.testing import assert_close

from dreamllm.document.document import Document, Image, Text
from dreamllm.document.events import Finished, ImagePreview, ImageReady, ImageStarted, TextDelta, fold
from dreamllm.errors import LayoutError
from dreamllm.generate.options import GenerationOptions
from dreamllm.models.splice import read_slots
from dreamllm.sequence.packing import collate

# numpy 2 warns of a call inside the stock DPM-Solver.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OPTIONS = GenerationOptions(
    max_new_tokens=24, max_images=3, temperature=1.0, num_inference_steps=2, guidance_scale=2.0, seed=3
)
CONTEXT = 100  # of the tiny model
DREAM_AND_IMAGE = (3 + 2) + (4 + 2)  # Q + 2 and P + 2 of the tiny model


def picture(seed):
    values = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return PILImage.fromarray(values)


def plain(*texts, id=""):
    return Document(parts=tuple(Text(text=text) for text in texts), id=id)


def asked(*parts):
    return Document(
        parts=tuple(
            Text(text=p, role="user") if isinstance(p, str) else Image(source=p, role="user") for p in parts
        )
    )


def prompts():
    """Five documents of different length and kind."""
    return [
        plain("once"),
        plain("a much longer beginning of a story"),
        asked("what is this", picture(1)),
        Document(parts=(Text(text="see "), Image(source=picture(2), learn=False), Text(text=" so"))),
        Document(parts=(Text(text="drawn "), Image(source=picture(3)), Text(text=" then"))),
    ]


def assert_same(left, right):
    """Equal words in equal places, equal pictures up to one rounding step of a channel."""
    assert [type(part) for part in left] == [type(part) for part in right]
    for one, other in zip(left, right, strict=True):
        assert one.role == other.role
        if isinstance(one, Text):
            assert one.text == other.text
        else:
            difference = np.asarray(one.load(), dtype=int) - np.asarray(other.load(), dtype=int)
            assert np.abs(difference).max() <= 1


def finish_reasons(generator, documents, options):
    return {index: e.reason for index, e in generator.stream(documents, options) if isinstance(e, Finished)}


def test_documents_of_words_and_pictures_come_out_behind_their_prompts(make_generator, chatty):
    documents = make_generator(chatty).generate(prompts(), OPTIONS)

    assert sum(len(d.images) for d in documents) - 3 >= 4  # three were in the prompts
    for prompt, document in zip(prompts(), documents, strict=True):
        assert len(document.parts) > len(prompt.parts)
        assert_same(document.parts[: len(prompt.parts)], prompt.parts)
        role = "assistant" if prompt.is_conversation else None
        assert all(part.role == role and part.learn for part in document.parts[len(prompt.parts) :])
        assert all(image.load().size == (16, 16) for image in document.images)


def test_the_cache_does_not_change_the_documents(make_generator, chatty):
    generator = make_generator(chatty)

    cached = generator.generate(prompts(), OPTIONS)
    recomputed = generator.generate(prompts(), replace(OPTIONS, use_cache=False))

    for one, other in zip(cached, recomputed, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("limits", [{}, {"draw_batch_size": 1}, {"max_batch_size": 2}])
def test_a_document_is_the_same_alone_and_in_any_company(make_generator, chatty, limits):
    generator = make_generator(chatty)

    together = generator.generate(prompts(), replace(OPTIONS, **limits))

    for prompt, document in zip(prompts(), together, strict=True):
        (alone,) = generator.generate([prompt], OPTIONS)
        assert_same(alone, document)


@pytest.mark.parametrize("scheduler", ["dpm", "ddpm", "ddim"])
def test_the_seed_decides_the_document(make_generator, chatty, scheduler):
    generator = make_generator(chatty)
    options = replace(OPTIONS, scheduler=scheduler)

    first, again = (generator.generate([plain("once")], options)[0] for _ in range(2))
    other = generator.generate([plain("once")], replace(options, seed=4))[0]

    assert_same(first, again)
    assert first.text != other.text


def test_equal_prompts_in_one_call_give_different_documents(make_generator, chatty):
    one, other = make_generator(chatty).generate([plain("once"), plain("once")], OPTIONS)

    assert one.text != other.text


def test_the_condition_of_each_picture_is_that_of_a_full_forward_over_the_finished_document(
    make_generator, letters, tokenizer
):
    generator = make_generator(letters | {tokenizer.special.dream_start: 15.0})
    model, encoder = generator.model, generator.encoder
    seen = []
    hook = model.condition_projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    options = replace(OPTIONS, guidance_scale=1.0, max_new_tokens=40)

    for prompt in [p for p in prompts() if not p.is_conversation]:
        seen.clear()
        (document,) = generator.generate([prompt], options)
        (sequence,) = encoder.encode(document)
        batch = collate([[sequence]], encoder.tokenizer.pad_id)
        with torch.no_grad():
            states = read_slots(model.hidden_states(batch), batch.dream_slots)

        assert len(seen) == 3
        assert_close(torch.cat(seen), states[len(states) - len(seen) :], atol=1e-5, rtol=1e-5)
    hook.remove()


def test_a_stream_folds_into_the_generated_document(make_generator, chatty):
    generator = make_generator(chatty)
    options = replace(OPTIONS, preview_every=1)
    events = [[] for _ in prompts()]

    for index, event in generator.stream(prompts(), options):
        events[index].append(event)

    for prompt, said, document in zip(prompts(), events, generator.generate(prompts(), OPTIONS), strict=True):
        role = "assistant" if prompt.is_conversation else None
        assert_same(fold(said, role=role), document.parts[len(prompt.parts) :])
        assert isinstance(said[-1], Finished)
        kinds = [type(event) for event in said if not isinstance(event, TextDelta)][:-1]
        assert kinds == [ImageStarted, ImagePreview, ImageReady] * (len(kinds) // 3)
        assert {(e.step, e.num_steps) for e in said if isinstance(e, ImagePreview)} <= {(1, 2)}


def test_structural_tokens_are_never_said_however_likely(make_generator, chatty, tokenizer):
    unsayable = [*tokenizer.special.suppressed, tokenizer.bos_id, *range(266, 272)]
    shy = make_generator(chatty)
    loud = make_generator(chatty | dict.fromkeys(unsayable, 90.0))

    for one, other in zip(shy.generate(prompts(), OPTIONS), loud.generate(prompts(), OPTIONS), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("changes", "num_images"), [({"max_images": 2}, 2), ({"max_images": 0}, 0), ({"mode": "text"}, 0)]
)
def test_pictures_stop_at_the_cap_and_words_go_on(make_generator, letters, tokenizer, changes, num_images):
    generator = make_generator(letters | {tokenizer.special.dream_start: 90.0})

    (document,) = generator.generate([plain("x")], replace(OPTIONS, **changes))

    assert len(document.images) == num_images
    assert len(document.parts[-1].text) == 24  # max_new_tokens letters


def test_the_image_mode_draws_one_picture_at_once_and_stops(make_generator, letters):
    generator = make_generator(letters)  # would not draw by itself
    options = replace(OPTIONS, mode="image")

    events = [event for _, event in generator.stream([plain("a cat")], options)]

    assert [type(event) for event in events] == [ImageStarted, ImageReady, Finished]
    assert events[-1].reason == "image_limit"


def test_end_length_and_context_finish_a_document(make_generator, letters, tokenizer):
    silent = make_generator(letters | {tokenizer.eos_id: 90.0})
    endless = make_generator(letters)

    assert finish_reasons(silent, [plain("x")], OPTIONS) == {0: "end"}
    assert finish_reasons(endless, [plain("x")], OPTIONS) == {0: "length"}
    (document,) = endless.generate([plain("x")], replace(OPTIONS, max_new_tokens=1000))
    # BOS, "x", the letters and EOS fill the context to the last position
    assert len(document.parts[-1].text) == CONTEXT - 3
    assert len(endless.encoder.encode(document)[0].input_ids) == CONTEXT


@pytest.mark.parametrize(("spare", "num_images"), [(0, 1), (-1, 0)])
def test_a_picture_is_begun_only_if_it_can_be_seen_and_followed_by_a_word(
    make_generator, letters, tokenizer, spare, num_images
):
    # BOS + 4 letters, the picture's two slots, one word, EOS
    context = 5 + DREAM_AND_IMAGE + 1 + 1 + spare
    generator = make_generator(letters | {tokenizer.special.dream_start: 90.0}, context=context)

    (document,) = generator.generate([plain("four")], OPTIONS)

    assert len(document.images) == num_images
    assert len(generator.encoder.encode(document)[0].input_ids) == context


def test_a_prompt_without_room_is_one_line_that_says_so(make_generator, letters):
    generator = make_generator(letters, context=20)

    with pytest.raises(LayoutError, match=r"'long' has 19 positions; at most 18 leave room"):
        generator.generate([plain("x"), plain("y" * 18, id="long")], OPTIONS)
    with pytest.raises(LayoutError, match=r"at most 14 leave room for what mode 'image' adds"):
        generator.generate([plain("y" * 14)], replace(OPTIONS, mode="image"))


def test_an_answer_loses_the_space_of_the_template_and_a_plain_text_keeps_its_own(make_generator, tokenizer):
    space = tokenizer.encode(" ")[0]
    generator = make_generator({space: 90.0})
    options = replace(OPTIONS, max_new_tokens=5)

    chat, story, prefilled = generator.generate(
        [
            asked("hello"),
            plain("x"),
            Document(parts=(*asked("hello").parts, Text(text="It is", role="assistant"))),
        ],
        options,
    )

    assert chat.parts[-1].text == " " * 4
    assert story.parts[-1].text == " " * 5
    assert prefilled.parts[-1].text == " " * 5


def test_a_picture_in_the_prompt_changes_the_answer(make_generator, letters):
    generator = make_generator(letters)

    one, other = generator.generate(
        [asked("what", picture(1)), asked("what", picture(2))], replace(OPTIONS, temperature=0.0)
    )

    assert one.parts[-1].text != other.parts[-1].text


def test_the_negative_prompt_is_encoded_once_and_moves_the_picture(make_generator, letters):
    generator = make_generator(letters)
    options = replace(OPTIONS, mode="image", guidance_scale=5.0)
    forwards = []
    hook = generator.model.condition_projector.register_forward_hook(lambda *_: forwards.append(1))

    blank, again, ugly = (
        np.asarray(generator.generate([plain("a cat")], o)[0].images[0].load(), dtype=int)
        for o in (options, options, replace(options, negative_prompt="ugly"))
    )
    hook.remove()

    assert (blank == again).all()
    assert np.abs(blank - ugly).max() > 1
    assert len(forwards) == 3 + 2  # three pictures, two negative prompts


def test_closing_a_stream_stops_the_drawing(make_generator, letters):
    generator = make_generator(letters)
    steps = []
    hook = generator.model.image_decoder.unet.register_forward_hook(lambda *_: steps.append(1))
    options = replace(OPTIONS, mode="image", preview_every=1, num_inference_steps=50, guidance_scale=1.0)

    stream = generator.stream([plain("a cat")], options)
    while not isinstance(next(stream)[1], ImagePreview):
        pass
    stream.close()
    hook.remove()

    assert 1 <= len(steps) < 50


def test_no_documents_give_no_documents(make_generator, letters):
    assert make_generator(letters).generate([], OPTIONS) == []
