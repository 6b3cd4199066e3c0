"""Every layout of JAM, written out by hand in the short form of `code_sequences.py`."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image as PILImage
from tests.sequence.code_sequences import (
    NUM_CODES,
    document,
    given,
    gray_codes,
    joint_tokenizer,
    joint_tokens,
    make_encoder,
    say,
    sentence,
    show,
    spell,
)
from tests.sequence.stock_families import FAMILIES, sentencepiece_like
from torch import Tensor

from dreamllm.data.transforms import TargetTransform
from dreamllm.document.document import Document, Image
from dreamllm.errors import ConfigError
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.sequence.chat import CHATML, PLAIN_CHAT, VICUNA_V1_1, ChatTemplate
from dreamllm.sequence.cm3 import Cm3Config
from dreamllm.sequence.code_tokens import CodeTokens, add_code_tokens
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer
from dreamllm.world.documents import DOCUMENT_KINDS, make_document

LAYOUTS = {
    "picture, then text": (document(given(1), say("a cat")), "<s> [1] |* a* cat* </s>*"),
    "text, then picture": (document(say("a cat", learn=False), show(1)), "<s> a cat [1*] </s>*"),
    "story": (
        document(say("a cat"), show(1), say("and"), show(5), say("here")),
        "<s> a* cat* [1*] |* and* [5*] |* here* </s>*",
    ),
    "story that ends with a picture": (
        document(say("a"), show(1), say("dog"), show(5)),
        "<s> a* [1*] |* dog* [5*] </s>*",
    ),
    "two pictures in a row, one only read": (
        document(given(1), show(5), say("here")),
        "<s> [1] |* [5*] |* here* </s>*",
    ),
    "pictures alone": (document(show(1), show(5)), "<s> [1*] |* [5*] </s>*"),
    "notes": (
        document(given(1), say("a", learn=False), say("cat"), say("and", learn=False), say("dog")),
        "<s> [1] |* a cat* and dog* </s>*",
    ),
    "nothing is learned": (document(given(1), say("a cat", learn=False)), "<s> [1] | a cat </s>"),
    "an empty text is nothing that follows, and nothing learned": (
        document(given(1), say("")),
        "<s> [1] </s>",
    ),
    "text alone": (document(say("a cat")), "<s> a* cat* </s>*"),
    "nothing": (document(), "<s> </s>"),
    "conversation about a picture": (
        document(given(1, role="user"), say("a ?", role="user"), say("a dog", role="assistant")),
        "<s> USER: [1] | a ? ASSISTANT: a* dog* </s>*",
    ),
    "a user's turn that ends with a picture": (
        document(say("draw", role="user"), given(1, role="user"), say("a dog", role="assistant")),
        "<s> USER: draw [1] | ASSISTANT: a* dog* </s>*",
    ),
    "a user's words and pictures are never learned": (
        document(say("draw", role="user"), show(1, role="user"), say("here", role="assistant")),
        "<s> USER: draw [1] | ASSISTANT: here* </s>*",
    ),
    "an answer that begins with a picture": (
        document(say("draw", role="user"), show(1, role="assistant"), say("here", role="assistant")),
        "<s> USER: draw ASSISTANT: [1*] |* here* </s>*",
    ),
    "an answer that ends with a picture, and another": (
        document(
            say("draw", role="user"),
            say("here", role="assistant"),
            show(1, role="assistant"),
            say("and", role="user"),
            show(5, role="assistant"),
            show(9, role="assistant"),
        ),
        "<s> USER: draw ASSISTANT: here* [1*] </s>* USER: and ASSISTANT: [5*] |* [9*] </s>*",
    ),
    "an answer that is not learned, then one that is": (
        document(
            say("draw", role="user"),
            given(1, role="assistant"),
            say("here", role="assistant", learn=False),
            say("and", role="user"),
            say("a cat", role="assistant"),
        ),
        "<s> USER: draw ASSISTANT: [1] | here </s> USER: and ASSISTANT: a* cat* </s>*",
    ),
    "a conversation that ends with a user's picture": (document(given(1, role="user")), "<s> USER: [1]"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_and_marked_labels(name: str) -> None:
    parts, expected = LAYOUTS[name]

    (sequence,) = make_encoder().encode(parts)

    assert spell(sequence) == sentence(expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_but_the_first_can_be_learned(name: str) -> None:
    parts, _ = LAYOUTS[name]
    (marked,) = make_encoder().encode(parts)

    (sequence,) = make_encoder(learn="all").encode(parts)

    np.testing.assert_array_equal(sequence.input_ids, marked.input_ids)
    assert sequence.is_label.tolist() == [False] + [True] * (len(marked.input_ids) - 1)


PROMPTS = {
    "nothing": (document(), "<s>"),
    "a caption": (document(say("a cat")), "<s> a cat"),
    "a picture at the end is closed": (document(given(1)), "<s> [1] |"),
    "a story so far": (document(say("a"), show(1), say("dog"), show(5)), "<s> a [1] | dog [5] |"),
    "a question": (document(say("a ?", role="user")), "<s> USER: a ? ASSISTANT:"),
    "a user's picture at the end": (
        document(say("a ?", role="user"), given(1, role="user")),
        "<s> USER: a ? [1] | ASSISTANT:",
    ),
    "a history with pictures": (
        document(say("draw", role="user"), show(1, role="assistant"), say("and", role="user")),
        "<s> USER: draw ASSISTANT: [1] </s> USER: and ASSISTANT:",
    ),
    "an unfinished answer": (
        document(say("a", role="user"), say("here", role="assistant")),
        "<s> USER: a ASSISTANT: here",
    ),
    "an unfinished answer with a picture at its end may be over": (
        document(say("a", role="user"), show(1, role="assistant")),
        "<s> USER: a ASSISTANT: [1]",
    ),
}


@pytest.mark.parametrize("learn", ["marked", "all"])
@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_layout(name: str, learn: str) -> None:
    parts, expected = PROMPTS[name]

    sequence = make_encoder(learn=learn).encode_prompt(parts)

    assert spell(sequence) == sentence(expected)


@pytest.fixture(scope="module")
def world_encoder() -> Callable[[ChatTemplate], CodeSequenceEncoder]:
    tokenizer = train_tokenizer(["There is a small red circle at the top left. USER: ASSISTANT:"] * 5, 320)
    add_code_tokens(tokenizer.hf)
    tokenizer = Tokenizer(tokenizer.hf)
    tokens = CodeTokens.of(tokenizer.hf, first_code=400, num_codes=NUM_CODES, codes_per_picture=2)
    return lambda chat: CodeSequenceEncoder(tokenizer, tokens, chat, TargetTransform(8), gray_codes)


@pytest.mark.parametrize("chat", [PLAIN_CHAT, VICUNA_V1_1, CHATML], ids=lambda chat: chat.name)
@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_a_prompt_is_a_prefix_of_the_training_form(
    kind: str, chat: ChatTemplate, world_encoder: Callable[[ChatTemplate], CodeSequenceEncoder]
) -> None:
    encoder = world_encoder(chat)
    whole = make_document(kind, np.random.default_rng(3))
    (full,) = encoder.encode(whole)

    for num_parts in range(len(whole)):
        if whole.is_conversation and whole.parts[num_parts].role == "user":
            continue  # no answer follows
        prompt = encoder.encode_prompt(Document(parts=whole.parts[:num_parts])).input_ids
        if whole.is_conversation and num_parts == 0:
            continue  # a document without parts is a plain one
        np.testing.assert_array_equal(full.input_ids[: len(prompt)], prompt)


def test_words_after_a_picture_are_tokenised_as_words_after_a_break() -> None:
    hf_tokenizer = sentencepiece_like(FAMILIES["vicuna"])
    add_special_tokens(hf_tokenizer)
    add_code_tokens(hf_tokenizer)
    tokenizer = Tokenizer(hf_tokenizer)
    first_code = tokenizer.vocab_size
    tokens = CodeTokens.of(hf_tokenizer, first_code=first_code, num_codes=NUM_CODES, codes_per_picture=2)
    encoder = CodeSequenceEncoder(tokenizer, tokens, CHATML, TargetTransform(8), gray_codes)
    after_break, after_code = (tokenizer.encode("a", after=i) for i in (tokens.break_, first_code))

    (sequence,) = encoder.encode(document(given(1, role="user"), say("a", role="user")))

    assert after_break != after_code  # this tokenizer puts a space before a word that begins a text
    at = int(np.flatnonzero(sequence.input_ids == tokens.break_)[1])
    assert sequence.input_ids[at + 1 :].tolist() == after_break


def test_codes_are_those_of_an_image_tokenizer_asked_once_a_document() -> None:
    torch.manual_seed(0)
    vq_model = VQModel(
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        num_vq_embeddings=16,
        latent_channels=2,
        sample_size=8,
    )
    image_tokenizer = ImageTokenizer(vq_model)
    tokens = CodeTokens.of(joint_tokenizer().hf, first_code=50, num_codes=16, codes_per_picture=4)
    transform = TargetTransform(8)
    asked: list[Tensor] = []

    def picture_codes(pixels: Tensor) -> Tensor:
        asked.append(pixels)
        return image_tokenizer.encode(pixels)

    encoder = CodeSequenceEncoder(joint_tokenizer(), tokens, PLAIN_CHAT, transform, picture_codes)
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pictures = [Image(source=PILImage.fromarray(pixels)) for pixels in noise]

    (sequence,) = encoder.encode(document(pictures[0], say("a cat"), pictures[1]))

    pixels = torch.from_numpy(np.stack([transform(picture.load()) for picture in pictures]))
    expected = image_tokenizer.encode(pixels) + 50
    assert len(set(expected.flatten().tolist())) > 1
    np.testing.assert_array_equal(sequence.input_ids[2:6], expected[0])
    np.testing.assert_array_equal(sequence.input_ids[10:14], expected[1])
    assert [len(pixels) for pixels in asked] == [2]
    torch.testing.assert_close(asked[0], pixels)


def test_the_other_side_of_guidance_is_an_open_picture_after_a_mask() -> None:
    assert spell(make_encoder().unconditional()) == "<s> <mask> <break>"


CREATIONS = {
    "a pair": (document(say("a cat", learn=False), show(1)), "<s> <mask> [1*] </s>*"),
    "two pictures": (document(say("a"), say("cat"), show(1), show(5)), "<s> <mask> [1*] |* [5*] </s>*"),
    "a conversation": (
        document(say("draw", role="user"), show(1, role="assistant")),
        "<s> <mask> [1*] </s>*",
    ),
}
NO_CREATIONS = {
    "a given picture": document(say("a cat"), given(1)),
    "words after it": document(say("a"), show(1), say("cat")),
    "no words": document(say(""), show(1)),
    "no picture": document(say("a cat")),
    "a user's picture": document(say("a", role="user"), show(1, role="user")),
}


@pytest.mark.parametrize("name", CREATIONS)
def test_words_before_pictures_can_become_one_mask(name: str) -> None:
    parts, expected = CREATIONS[name]
    encoder = make_encoder(mask_prompt=1.0, cm3=Cm3Config(probability=1))

    (sequence,) = encoder.encode(parts, rng=np.random.default_rng(0), context=[document(say("a dog"))])

    assert spell(sequence) == sentence(expected)
    np.testing.assert_array_equal(sequence.input_ids[:3], encoder.unconditional().input_ids)


def test_a_masked_prompt_is_never_a_label() -> None:
    parts = document(say("a cat"), show(1))

    (sequence,) = make_encoder(mask_prompt=1.0, learn="all").encode(parts, rng=np.random.default_rng(0))

    assert spell(sequence) == sentence("<s> <mask> [1*] </s>*")


@pytest.mark.parametrize("name", NO_CREATIONS)
def test_other_documents_keep_their_words(name: str) -> None:
    parts = NO_CREATIONS[name]

    (sequence,) = make_encoder(mask_prompt=1.0).encode(parts, rng=np.random.default_rng(0))

    assert spell(sequence) == spell(make_encoder().encode(parts)[0])


def test_prompts_are_masked_at_their_rate() -> None:
    encoder, rng = make_encoder(mask_prompt=0.2), np.random.default_rng(0)
    parts = document(say("a cat"), show(1))

    masked = sum(joint_tokens().mask in encoder.encode(parts, rng=rng)[0].input_ids for _ in range(400))

    assert 56 < masked < 104  # three standard deviations of a binomial


@pytest.mark.parametrize(
    "options", [{"cm3": Cm3Config()}, {"mask_prompt": 0.1}, {"cm3": Cm3Config(), "mask_prompt": 0.1}]
)
def test_what_is_random_needs_a_generator(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="but rng=None"):
        make_encoder(**options).encode(document(say("a cat")))


@pytest.mark.parametrize(
    "options", [{"learn": "none"}, {"max_length": 0}, {"mask_prompt": 1.5}, {"mask_prompt": -1}]
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        CodeEncodeOptions(**options)
