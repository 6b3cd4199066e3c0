"""Every layout, written out by hand. A star marks a label; `[IM]` and `[DREAM]` are short for whole slots."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Document, Image, Part, Role, Text
from dreamllm.errors import ConfigError, LayoutError
from dreamllm.sequence.batch import Sequence
from dreamllm.sequence.chat import CHATML, VICUNA_V1_1
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.layout import SlotSizes
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

MakeEncoder = Callable[..., SequenceEncoder]
Spell = Callable[[Sequence], str]

IM = "<im_start> <im_patch> <im_patch> <im_end>"
DREAM = "<dream_start> <im_patch> <im_patch> <im_patch> <dream_end>"
DREAM_STAR = "<dream_start>* <im_patch> <im_patch> <im_patch> <dream_end>"


def sentence(text: str) -> str:
    return text.replace("[IM]", IM).replace("[DREAM*]", DREAM_STAR).replace("[DREAM]", DREAM)


def say(text: str, *, role: Role | None = None, learn: bool = True) -> Text:
    return Text(text=text, role=role, learn=learn)


def show(level: int = 0, *, role: Role | None = None, learn: bool = True) -> Image:
    return Image(source=PILImage.new("RGB", (8, 8), (level,) * 3), role=role, learn=learn)


def document(*parts: Part) -> Document:
    return Document(parts=parts, id="d")


PLAIN_LAYOUTS = {
    "comprehension pair": (document(show(learn=False), say("a cat")), "<s> [IM] a* cat* </s>*"),
    "creation pair": (document(say("a cat", learn=False), show()), "<s> a cat [DREAM] </s>"),
    "interleaved": (
        document(say("a cat"), show(), say("and"), show()),
        "<s> a* cat* [DREAM*] [IM] and* [DREAM*] [IM] </s>*",
    ),
    "interleaved, two pictures in a row, one only read": (
        document(say("a cat"), show(), show(learn=False), say("here")),
        "<s> a* cat* [DREAM*] [IM] [IM] here* </s>*",
    ),
    "interleaved, a text that is not learned": (
        document(say("draw", learn=False), say("a cat"), show()),
        "<s> draw a* cat* [DREAM*] [IM] </s>*",
    ),
    "image to image": (document(show(learn=False), show()), "<s> [IM] [DREAM] </s>"),
    "pictures of given texts": (
        document(say("a", learn=False), show(), say("dog", learn=False), show()),
        "<s> a [DREAM] [IM] dog [DREAM] </s>",
    ),
    "text alone": (document(say("a cat")), "<s> a* cat* </s>*"),
    "an empty text teaches nothing": (document(say(""), show()), "<s> [DREAM] </s>"),
    "nothing": (document(), "<s> </s>"),
}


@pytest.mark.parametrize("name", PLAIN_LAYOUTS)
def test_plain_layout(name: str, make_encoder: MakeEncoder, spell: Spell) -> None:
    parts, expected = PLAIN_LAYOUTS[name]

    (sequence,) = make_encoder().encode(parts)

    assert spell(sequence) == sentence(expected)


def test_ids_and_slots_of_a_small_document_in_numbers(make_encoder: MakeEncoder) -> None:
    (sequence,) = make_encoder().encode(document(say("a cat"), show()))

    # 13 words come first, then [PAD] 13, <image> 14, <im_patch> 15, <im_start> 16, <im_end> 17, <dream> 18,
    # <dream_start> 19, <dream_end> 20
    assert sequence.input_ids.tolist() == [0, 3, 5, 19, 15, 15, 15, 20, 16, 15, 15, 17, 1]
    assert np.flatnonzero(sequence.is_label).tolist() == [1, 2, 3, 12]
    assert sequence.slots.dream_starts == (4,)
    assert sequence.slots.image_starts == (9,)
    assert sequence.target_dreams == (0,)
    assert sequence.document_id == "d"


QUESTION = (say("a cat ?", role="user"),)
CHAT_LAYOUTS = {
    "question and answer": (
        document(say("a cat", role="user"), say("red", role="assistant")),
        "<s> USER: a cat ASSISTANT: red* </s>*",
    ),
    "a user's words and pictures are never learned": (
        document(show(role="user"), say("and", role="user"), show(role="user"), say("red", role="assistant")),
        "<s> USER: [IM] and [IM] ASSISTANT: red* </s>*",
    ),
    "an answer with a picture": (
        document(say("draw", role="user"), say("here", role="assistant"), show(role="assistant")),
        "<s> USER: draw ASSISTANT: here* [DREAM] [IM] </s>*",
    ),
    "an answer that is a picture": (
        document(say("draw", role="user"), show(role="assistant")),
        "<s> USER: draw ASSISTANT: [DREAM] [IM] </s>*",
    ),
    "a picture the assistant shows but does not learn": (
        document(say("draw", role="user"), show(role="assistant", learn=False), say("red", role="assistant")),
        "<s> USER: draw ASSISTANT: [IM] red* </s>*",
    ),
    "a turn that is not learned has an end that is not learned": (
        document(
            say("a", role="user"),
            say("red", role="assistant", learn=False),
            say("and", role="user"),
            say("blue", role="assistant"),
        ),
        "<s> USER: a ASSISTANT: red </s> USER: and ASSISTANT: blue* </s>*",
    ),
    "a system part": (
        document(say("here", role="system"), say("a", role="user"), say("red", role="assistant")),
        "<s> here USER: a ASSISTANT: red* </s>*",
    ),
}


@pytest.mark.parametrize("name", CHAT_LAYOUTS)
def test_conversation_layout(name: str, make_encoder: MakeEncoder, spell: Spell) -> None:
    parts, expected = CHAT_LAYOUTS[name]

    (sequence,) = make_encoder().encode(parts)

    assert spell(sequence) == sentence(expected)


def test_the_decision_to_draw_is_learned_in_a_conversation_when_asked_for(
    make_encoder: MakeEncoder, spell: Spell
) -> None:
    parts = document(
        show(role="user"), say("draw", role="user"), say("here", role="assistant"), show(role="assistant")
    )

    (sequence,) = make_encoder(learn_dream_start_in_conversations=True).encode(parts)

    assert spell(sequence) == sentence("<s> USER: [IM] draw ASSISTANT: here* [DREAM*] [IM] </s>*")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("comprehension", "<s> a* cat* [IM] [IM] and* [IM] </s>*"),
        ("creation", "<s> a* cat* [IM] [DREAM*] and* [DREAM*] </s>*"),
    ],
)
def test_ablation_modes(mode: str, expected: str, make_encoder: MakeEncoder, spell: Spell) -> None:
    parts = document(say("a cat"), show(learn=False), show(), say("and"), show())

    (sequence,) = make_encoder(mode=mode).encode(parts)

    assert spell(sequence) == sentence(expected)


def test_a_picture_turn_teaches_nothing_in_comprehension_mode(
    make_encoder: MakeEncoder, spell: Spell
) -> None:
    parts = document(say("draw", role="user"), show(role="assistant"))

    (sequence,) = make_encoder(mode="comprehension").encode(parts)

    assert spell(sequence) == sentence("<s> USER: draw ASSISTANT: [IM] </s>")


def test_pictures_go_to_their_own_slots_in_reading_order(make_encoder: MakeEncoder) -> None:
    parts = document(say("a"), show(10, learn=False), show(20), say("and"), show(30))
    vision, target = VisionTransform(4), TargetTransform(8)

    (sequence,) = make_encoder().encode(parts)

    pictures = [image.load() for image in parts.images]
    np.testing.assert_array_equal(sequence.vision_pixels.scaled(), [vision(p) for p in pictures])
    np.testing.assert_array_equal(sequence.target_pixels.scaled(), [target(p) for p in pictures[1:]])
    assert sequence.target_dreams == (0, 1)


def test_a_document_without_pictures_has_empty_pixels_of_full_shape(make_encoder: MakeEncoder) -> None:
    (sequence,) = make_encoder().encode(document(say("a cat")))

    assert sequence.vision_pixels.levels.shape == (0, 3, 4, 4)
    assert sequence.target_pixels.levels.shape == (0, 3, 8, 8)


PROMPTS = {
    "nothing": (document(), "<s>"),
    "a caption": (document(say("a cat")), "<s> a cat"),
    "a drawn picture at the end is fed back": (
        document(say("a cat", learn=False), show()),
        "<s> a cat [DREAM] [IM]",
    ),
    "a given picture": (document(show(learn=False)), "<s> [IM]"),
    "a question": (document(*QUESTION), "<s> USER: a cat ? ASSISTANT:"),
    "a history with pictures": (
        document(
            show(role="user"), say("draw", role="user"), show(role="assistant"), say("and", role="user")
        ),
        "<s> USER: [IM] draw ASSISTANT: [DREAM] [IM] </s> USER: and ASSISTANT:",
    ),
    "an unfinished answer": (
        document(say("a", role="user"), say("here", role="assistant")),
        "<s> USER: a ASSISTANT: here",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_layout(name: str, make_encoder: MakeEncoder, spell: Spell) -> None:
    parts, expected = PROMPTS[name]

    sequence = make_encoder(learn_dream_start_in_conversations=True).encode_prompt(parts)

    assert spell(sequence) == sentence(expected)
    assert sequence.target_pixels.levels.shape == (0, 3, 8, 8)
    assert sequence.target_dreams == ()


@pytest.mark.parametrize("template", [VICUNA_V1_1, CHATML])
def test_a_prompt_is_a_token_prefix_of_the_training_form(template: object) -> None:
    tokenizer = train_tokenizer(["What is red? A red circle. USER: ASSISTANT:"] * 5, 300)
    sizes = SlotSizes(num_visual_tokens=2, num_dream_queries=3)
    encoder = SequenceEncoder(tokenizer, sizes, template, VisionTransform(4), TargetTransform(8))
    parts = (
        show(role="user"),
        say("What is red?", role="user"),
        say("red", role="assistant"),
        show(role="assistant"),
        say(" draw! ", role="user"),
        say("<dream_start> is red", role="assistant"),
    )
    (full,) = encoder.encode(document(*parts))

    for num_parts, answer in ((2, "red"), (5, "<dream_start> is red")):
        prompt = encoder.encode_prompt(document(*parts[:num_parts])).input_ids
        answer_ids = tokenizer.encode(template.content_prefix + answer)

        np.testing.assert_array_equal(full.input_ids[: len(prompt)], prompt)
        np.testing.assert_array_equal(full.input_ids[len(prompt) :][: len(answer_ids)], answer_ids)


def test_tokenising_piece_by_piece_gives_the_ids_of_the_whole_string() -> None:
    tokenizer: Tokenizer = train_tokenizer([VICUNA_V1_1.system + " USER: red ASSISTANT: blue."] * 5, 320)
    sizes = SlotSizes(num_visual_tokens=2, num_dream_queries=3)
    encoder = SequenceEncoder(tokenizer, sizes, VICUNA_V1_1, VisionTransform(4), TargetTransform(8))

    (sequence,) = encoder.encode(
        document(say("(red) or blue?", role="user"), say("It's blue.", role="assistant"))
    )

    whole = tokenizer.encode(VICUNA_V1_1.system + " USER: (red) or blue? ASSISTANT: It's blue.")
    assert sequence.input_ids.tolist() == [tokenizer.bos_id, *whole, tokenizer.eos_id]


def test_dropout_moves_the_target_to_the_unconditional_sequence(
    make_encoder: MakeEncoder, spell: Spell
) -> None:
    parts = document(say("a cat"), show(10), say("and"), show(20))
    encoder = make_encoder(condition_dropout=1.0)

    conditional, first, second = encoder.encode(parts, rng=np.random.default_rng(0))

    assert spell(conditional) == sentence("<s> a* cat* [DREAM*] [IM] and* [DREAM*] [IM] </s>*")
    assert conditional.target_dreams == ()
    assert conditional.target_pixels.levels.shape == (0, 3, 8, 8)
    for moved, image in zip((first, second), parts.images, strict=True):
        assert spell(moved) == sentence("<s> [DREAM]")
        np.testing.assert_array_equal(moved.input_ids, encoder.unconditional().input_ids)
        np.testing.assert_array_equal(moved.target_pixels.scaled(), TargetTransform(8)(image.load())[None])
        assert moved.target_dreams == (0,)


def test_dropout_keeps_every_target_exactly_once_and_has_its_rate(make_encoder: MakeEncoder) -> None:
    parts = document(say("a cat"), *(show(level) for level in range(0, 200, 10)))
    encoder = make_encoder(condition_dropout=0.3)
    plain = make_encoder().encode(parts)[0].target_pixels.levels
    num_moved = 0

    for seed in range(20):
        document_sequence, *moved = encoder.encode(parts, rng=np.random.default_rng(seed))
        stayed = {
            dream: pixels[0, 0, 0]
            for dream, pixels in zip(
                document_sequence.target_dreams, document_sequence.target_pixels.levels, strict=True
            )
        }
        levels = [*stayed.values(), *(sequence.target_pixels.levels[0, 0, 0, 0] for sequence in moved)]

        assert sorted(levels) == sorted(plain[:, 0, 0, 0])
        assert all(level == plain[dream, 0, 0, 0] for dream, level in stayed.items())
        num_moved += len(moved)

    assert 0.23 < num_moved / 400 < 0.37  # three standard deviations of a binomial


def test_dropout_is_decided_by_the_generator_alone(make_encoder: MakeEncoder) -> None:
    parts = document(*(show(level) for level in range(10)))
    encoder = make_encoder(condition_dropout=0.5)

    first, second = (encoder.encode(parts, rng=np.random.default_rng(3))[0] for _ in range(2))

    assert first.target_dreams == second.target_dreams


def test_dropout_without_a_generator_is_refused(make_encoder: MakeEncoder) -> None:
    with pytest.raises(ConfigError, match=r"condition_dropout=0\.5 but rng=None"):
        make_encoder(condition_dropout=0.5).encode(document(show()))


def test_a_negative_prompt_stands_before_the_unconditional_slot(
    make_encoder: MakeEncoder, spell: Spell
) -> None:
    encoder = make_encoder()

    assert spell(encoder.unconditional()) == sentence("<s> [DREAM]")
    assert spell(encoder.unconditional("a dog")) == sentence("<s> a dog [DREAM]")


def test_a_document_that_does_not_fit_is_refused_before_its_pictures_are_opened(
    make_encoder: MakeEncoder,
) -> None:
    broken = Image(source=b"not a picture", learn=False)
    parts = Document(parts=(broken, say("a cat")), id="seven")

    with pytest.raises(LayoutError, match=r"'seven' has 8 positions with 1 image slots .* at most 7"):
        make_encoder(max_length=7).encode(parts)

    (fits,) = make_encoder(max_length=8).encode(document(show(learn=False), say("a cat")))
    assert len(fits.input_ids) == 8


def test_an_encoder_survives_json(words: Tokenizer) -> None:
    encoder = SequenceEncoder(
        words,
        SlotSizes(num_visual_tokens=5, num_dream_queries=7),
        CHATML,
        VisionTransform(4, (0.1, 0.2, 0.3)),
        TargetTransform(8),
        EncodeOptions(max_length=99, mode="creation", condition_dropout=0.1),
    )

    value = json.loads(json.dumps(encoder.to_dict()))

    assert SequenceEncoder.from_dict(value, words) == encoder
    with pytest.raises(ConfigError, match="SlotSizes cannot be read from keys"):
        SequenceEncoder.from_dict(value | {"sizes": {"queries": 7}}, words)
    with pytest.raises(ConfigError, match="an encoder cannot be read from keys"):
        SequenceEncoder.from_dict(value | {"flip": True}, words)


@pytest.mark.parametrize("options", [{"mode": "both"}, {"max_length": 0}, {"condition_dropout": 1.5}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        EncodeOptions(**options)
