from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.generate.tiny_jam import (
    CHATTY,
    CONTEXT,
    DRAWS,
    FIRST_CODE,
    LETTERS,
    NUM_CODES,
    OPTIONS,
    TOKENIZER,
    TOKENS,
    VOCAB,
    G,
    decoded,
    generator_that,
    make_towers,
    plain,
    prompts,
    shown,
    watch,
    watch_codes,
)
from tests.generate.tiny_jam import make_generator as make

from dreamllm.document.document import Document, Image, Text
from dreamllm.document.events import Finished, ImagePreview, ImageReady, ImageStarted, TextDelta, fold
from dreamllm.errors import ConfigError, LayoutError
from dreamllm.generate.draw_codes import contrast, guide, without_words
from dreamllm.generate.engine import passes

BREAK, EOS = TOKENS.break_, TOKENIZER.eos_id
GREEDY = replace(OPTIONS, temperature=0.0, image_temperature=0.0)


def fed_ids(generator, prompt, options):
    """All ids that the language model reads for one document, the codes of its pictures, and the document."""
    embeddings = generator.model.language_model.get_input_embeddings()
    with watch(embeddings) as ids, watch_codes(generator) as codes:
        (document,) = generator.generate([prompt], replace(options, guidance_scale=1.0))
    return [token for each in ids for token in each.flatten().tolist()], decoded(codes), document


def test_documents_of_words_and_pictures_come_out_behind_their_prompts():
    documents = generator_that(CHATTY).generate(prompts(), OPTIONS)

    assert sum(len(d.images) for d in documents) - 5 >= 4  # five were in the prompts
    for prompt, document in zip(prompts(), documents, strict=True):
        assert shown(document.parts[: len(prompt)]) == shown(prompt.parts)
        role = "assistant" if prompt.is_conversation else None
        assert all(part.role == role for part in document.parts[len(prompt) :])
        assert all(image.load().size == (4, 4) for image in document.images)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0, "image_temperature": 0.0},
        {"guidance_scale": 1.0, "image_top_p": 0.8, "image_temperature": 0.7},
        {"guidance_keeps_pictures": True},
        {"contrastive_k": 3},
        {"num_candidates": 3},
    ],
)
def test_neither_the_cache_nor_the_company_changes_a_document(changes):
    generator = generator_that(CHATTY)
    options = replace(OPTIONS, max_new_tokens=10, max_images=2, **changes)

    together = generator.generate(prompts(), options)
    reread = generator.generate(prompts(), replace(options, use_cache=False))
    crowded = generator.generate(prompts(), replace(options, max_batch_size=2, draw_batch_size=1))
    alone = [generator.generate([prompt], options)[0] for prompt in prompts()]

    assert sum(len(document.images) for document in together) > 5
    for documents in (reread, crowded, alone):
        assert [shown(d.parts) for d in documents] == [shown(d.parts) for d in together]


@pytest.mark.parametrize("text_skips_images", [False, True])
@pytest.mark.parametrize("changes", [{"mode": "image", "num_candidates": 2}, {"max_new_tokens": 8}])
def test_two_towers_write_the_same_with_and_without_a_cache_and_alone(text_skips_images, changes):
    generator = make(language_model=make_towers(text_skips_images=text_skips_images))
    options = replace(OPTIONS, **changes)

    together = generator.generate(prompts(), options)
    reread = generator.generate(prompts(), replace(options, use_cache=False))
    alone = [generator.generate([prompt], options)[0] for prompt in prompts()]

    for documents in (reread, alone):
        assert [shown(d.parts) for d in documents] == [shown(d.parts) for d in together]


def test_the_seed_decides_the_words_and_the_pictures():
    generator = generator_that(DRAWS)

    first, again = (generator.generate([plain("once")], OPTIONS)[0] for _ in range(2))
    other = generator.generate([plain("once")], replace(OPTIONS, seed=4))[0]

    assert shown(first.parts) == shown(again.parts)
    assert shown(first.images) != shown(other.images)
    assert first.text != other.text
    assert len(set(shown(first.images))) > 1  # every picture has its own codes


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    model=st.integers(0, 3),
    seed=st.integers(0, 1000),
    prompt=st.integers(0, 5),
    eos=st.sampled_from([0.0, 14.0]),
    break_=st.sampled_from([0.0, 14.0, 90.0]),
    context=st.sampled_from([60, 75, CONTEXT]),
)
def test_what_is_written_is_always_well_formed(model, seed, prompt, eos, break_, context):
    generator = generator_that(LETTERS | {EOS: eos, BREAK: break_}, seed=model, context=context)
    options = replace(OPTIONS, seed=seed)
    prompt = prompts()[prompt]
    start = len(generator.encoder.encode_prompt(prompt).input_ids)

    ids, codes, document = fed_ids(generator, prompt, options)

    assert len(ids) < context
    drawn, position, num_words = [], start, 0
    is_picture_last = ids[start - 1] >= FIRST_CODE
    while position < len(ids):
        if ids[position] != BREAK:
            assert not is_picture_last
            assert ids[position] < TOKENIZER.vocab_size
            assert ids[position] not in {TOKENS.mask, TOKENS.infill, TOKENIZER.bos_id, EOS}
            position, num_words = position + 1, num_words + 1
        elif is_picture_last:  # it closes the picture
            position, is_picture_last = position + 1, False
            # The last word that may be said is said, and not read any more.
            assert position < len(ids) or isinstance(document.parts[-1], Text)
        else:
            block = [token - FIRST_CODE for token in ids[position + 1 : position + 1 + G]]
            assert len(block) == G
            assert all(0 <= code < NUM_CODES for code in block)
            drawn.append(block)
            position, is_picture_last = position + 1 + G, True
    assert codes == drawn  # the pictures are of these codes
    assert len(drawn) == len(document.images) - len(prompt.images) <= 3
    assert num_words <= 20
    # A template puts a space before every run of words, which a random model need not have written.
    if not document.is_conversation:
        again = generator.encoder.encode(document)[0].input_ids  # whose pictures become other codes
        assert len(again) <= context


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "guidance_keeps_pictures": True},
        {"contrastive_k": 4, "contrastive_alpha": 0.5},
    ],
)
@pytest.mark.parametrize("number", [1, 3, 4])
def test_each_code_is_the_one_that_two_full_forward_passes_choose(changes, number):
    generator = generator_that(DRAWS)
    model, prompt = generator.model, prompts()[number]
    options = replace(GREEDY, mode="image", **changes)

    with watch_codes(generator) as seen:
        generator.generate([prompt], options)

    (codes,) = decoded(seen)
    before = [*generator.encoder.encode_prompt(prompt).input_ids.tolist(), BREAK]
    other = generator.encoder.unconditional().input_ids.tolist()
    if options.guidance_keeps_pictures:
        other = without_words(before, TOKENS)
    ids = [FIRST_CODE + code for code in codes]

    def logits(start):
        with torch.no_grad():
            all_logits = model.language_model(input_ids=torch.tensor([start + ids])).logits[0]
        return all_logits[len(start) - 1 : -1, FIRST_CODE : FIRST_CODE + NUM_CODES]

    conditional, unconditional = logits(before), logits(other)
    if options.contrastive_k is not None:
        scores = contrast(conditional, unconditional, k=4, alpha=0.5)
    else:
        scores = guide(conditional, unconditional, scale=options.guidance_scale)
    assert codes == scores.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("changes", "num_images"), [({"max_images": 2}, 2), ({"max_images": 0}, 0), ({"mode": "text"}, 0)]
)
def test_pictures_stop_at_the_cap_and_words_go_on(changes, num_images):
    (document,) = generator_that(DRAWS).generate([plain("x")], replace(OPTIONS, **changes))

    kinds = [type(part) for part in document.parts]
    assert kinds == [Text] + [Image] * num_images + [Text]
    assert len(document.parts[-1].text) == 20  # max_new_tokens letters


@pytest.mark.parametrize("number", range(6))
def test_the_image_mode_draws_one_picture_at_once_and_stops(number):
    prompt = prompts()[number]
    generator = generator_that(LETTERS)  # would not draw by itself
    options = replace(OPTIONS, mode="image", max_images=0)

    events = [event for _, event in generator.stream([prompt], options)]
    ids, codes, document = fed_ids(generator, prompt, options)

    assert [type(event) for event in events] == [ImageStarted, ImageReady, Finished]
    assert events[-1].reason == "image_limit"
    closing = [BREAK] if number == 5 else []  # the answer that it goes on with ends with a picture
    before = [*generator.encoder.encode_prompt(prompt).input_ids, *closing, BREAK]
    assert ids == [*before, *(FIRST_CODE + code for code in codes[-1][:-1])]
    assert len(document) == len(prompt) + 1


def test_a_document_ends_where_the_model_or_a_limit_ends_it():
    def reasons(likes, prompt, **changes):
        events = generator_that(likes).stream([prompt], replace(GREEDY, **changes))
        return [event.reason for _, event in events if isinstance(event, Finished)]

    silent = LETTERS | {EOS: 90.0}
    assert reasons(silent, plain("x")) == ["end"]
    assert reasons(LETTERS, plain("x")) == ["length"]
    # After a picture that something follows there is a word before EOS.
    (document,) = generator_that(silent).generate([prompts()[3]], GREEDY)
    assert len(document.parts[-1].text) == 1
    assert len(document) == 3
    # After an answer's picture the model may end it there.
    assert len(generator_that(silent).generate([prompts()[5]], GREEDY)[0]) == 2
    (document,) = generator_that(LETTERS).generate([plain("x")], replace(GREEDY, max_new_tokens=1000))
    # BOS, "x", the letters and EOS fill the context to the last position
    assert len(document.parts[-1].text) == CONTEXT - 3


@pytest.mark.parametrize(("spare", "num_images", "num_letters"), [(1, 1, 1), (0, 1, 0), (-1, 0, G + 1)])
def test_a_picture_is_begun_only_if_it_has_room_and_closes(spare, num_images, num_letters):
    # BOS + 4 letters, the picture and its two breaks, EOS
    context = 5 + (G + 2) + 1 + spare
    generator = generator_that(DRAWS, context=context)

    events = [event for _, event in generator.stream([plain("four")], OPTIONS)]
    document = Document(parts=(Text(text="four"), *fold(events)))

    assert len(document.images) == num_images
    assert sum(len(part.text) for part in document if isinstance(part, Text)) - 4 == num_letters
    assert events[-1] == Finished("length")
    assert len(generator.encoder.encode(document)[0].input_ids) <= context


def test_a_prompt_without_room_is_one_line_that_says_so():
    generator = generator_that(LETTERS, context=20)

    with pytest.raises(LayoutError, match=r"'long' has 19 positions; at most 18 leave room"):
        generator.generate([plain("x"), plain("y" * 18, id="long")], OPTIONS)
    with pytest.raises(LayoutError, match=r"at most 13 leave room for what mode 'image' adds"):
        generator.generate([plain("y" * 13)], replace(OPTIONS, mode="image"))


def test_only_words_break_and_eos_are_said_however_likely_the_rest():
    unsayable = {*TOKENIZER.special.suppressed, TOKENIZER.special.dream_start, TOKENIZER.bos_id}
    unsayable |= {TOKENS.mask, TOKENS.infill, *range(TOKENIZER.vocab_size, FIRST_CODE)}
    unsayable |= set(range(FIRST_CODE + NUM_CODES, VOCAB))
    # Codes all become likelier together, which changes nothing among them.
    loud = CHATTY | dict.fromkeys([*unsayable, *range(FIRST_CODE, FIRST_CODE + NUM_CODES)], 90.0)

    one, other = (generator_that(likes).generate(prompts(), OPTIONS) for likes in (CHATTY, loud))

    assert [shown(d.parts) for d in one] == [shown(d.parts) for d in other]


def test_a_stream_folds_into_the_document_and_previews_every_few_codes():
    generator, options = generator_that(CHATTY), replace(OPTIONS, preview_every=2)
    events = [[] for _ in prompts()]

    for index, event in generator.stream(prompts(), options):
        events[index].append(event)

    for prompt, said, document in zip(prompts(), events, generator.generate(prompts(), OPTIONS), strict=True):
        role = "assistant" if prompt.is_conversation else None
        assert shown(fold(said, role=role)) == shown(document.parts[len(prompt) :])
        assert isinstance(said[-1], Finished)
        kinds = [type(event) for event in said if not isinstance(event, TextDelta)][:-1]
        assert kinds == [ImageStarted, ImagePreview, ImageReady] * (len(kinds) // 3)
        assert {(e.step, e.num_steps) for e in said if isinstance(e, ImagePreview)} <= {(2, G)}


def test_a_parent_of_words_alone_never_draws():
    generator = make(DRAWS, draws=False)

    (document,) = generator.generate([plain("x")], OPTIONS)

    assert len(document.parts[-1].text) == 20
    with pytest.raises(ConfigError, match="this model has no image tokenizer"):
        generator.generate([plain("x")], replace(OPTIONS, mode="image"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_inference_steps": 5},
            "num_inference_steps is 5, which a model that draws by codes cannot obey",
        ),
        ({"negative_prompt": "ugly"}, "it must be ''; leave it out"),
        ({"scheduler": "ddim"}, "scheduler is 'ddim'"),
    ],
)
def test_options_of_denoising_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        generator_that(CHATTY).generate([], replace(OPTIONS, **changes))


def test_no_documents_give_no_documents():
    assert generator_that(CHATTY).generate([], OPTIONS) == []


def test_a_prompt_among_single_tokens_is_read_apart_and_equals_are_read_together():
    # 30 rows of 1 beside one of 20: 31 x 20 positions together, 30 + 20 and a pass apart
    lengths = dict.fromkeys(range(30), 1) | {30: 20}

    assert passes(lengths) == [list(range(30)), [30]]
    assert passes({0: 1, 1: 3}) == [[0, 1]]  # 6 positions together, 4 and a pass apart
    assert passes({4: 50, 2: 50}) == [[4, 2]]
    assert passes({7: 5}) == [[7]]
