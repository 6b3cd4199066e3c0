import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dreamllm.errors import ConfigError
from dreamllm.sequence.special_tokens import SpecialTokens, add_special_tokens

NAMES = [
    "[PAD]",
    "<image>",
    "<im_patch>",
    "<im_start>",
    "<im_end>",
    "<dream>",
    "<dream_start>",
    "<dream_end>",
]


def bare_tokenizer() -> PreTrainedTokenizerFast:
    backend = Backend(models.BPE({letter: i for i, letter in enumerate("<>[]_abcdeghimnprstPAD/")}, []))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_eight_tokens_are_added_once() -> None:
    tokenizer = bare_tokenizer()
    before = len(tokenizer)

    assert add_special_tokens(tokenizer) == 8
    assert add_special_tokens(tokenizer) == 0
    assert tokenizer.convert_tokens_to_ids(NAMES) == list(range(before, before + 8))
    assert tokenizer.pad_token == "[PAD]"


def test_all_but_the_decision_to_draw_are_suppressed() -> None:
    tokenizer = bare_tokenizer()
    add_special_tokens(tokenizer)

    special = SpecialTokens.of(tokenizer)

    expected = [tokenizer.convert_tokens_to_ids(name) for name in NAMES if name != "<dream_start>"]
    assert sorted(special.suppressed) == sorted(expected)


def test_ids_are_read_from_the_tokenizer_and_not_assumed() -> None:
    tokenizer = bare_tokenizer()
    tokenizer.add_tokens(list(reversed(NAMES)), special_tokens=True)

    special = SpecialTokens.of(tokenizer)

    assert special.pad == len(tokenizer) - 1
    assert special.dream_end == len(tokenizer) - 8


def test_a_missing_token_is_named() -> None:
    tokenizer = bare_tokenizer()
    tokenizer.add_tokens([name for name in NAMES if name != "<im_end>"], special_tokens=True)

    with pytest.raises(ConfigError, match=r"has no <im_end>; .*call add_special_tokens"):
        SpecialTokens.of(tokenizer)


def test_a_token_that_a_user_could_type_is_refused_and_add_special_tokens_mends_it() -> None:
    tokenizer = bare_tokenizer()
    tokenizer.add_tokens(NAMES, special_tokens=False)

    with pytest.raises(ConfigError, match=r"\[PAD\] has id \d+, but encodes to .*add_special_tokens"):
        SpecialTokens.of(tokenizer)

    assert add_special_tokens(tokenizer) == 0
    assert SpecialTokens.of(tokenizer).dream == tokenizer.convert_tokens_to_ids("<dream>")


def test_an_ordinary_word_of_the_same_name_stays_a_word_and_the_token_is_spelled_otherwise() -> None:
    words = {word: i for i, word in enumerate(["?", "see", "<image>", "[PAD]"])}
    backend = Backend(models.WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

    assert add_special_tokens(tokenizer) == 8
    assert add_special_tokens(tokenizer) == 0

    special = SpecialTokens.of(tokenizer)
    assert tokenizer.convert_ids_to_tokens([special.pad, special.image, special.dream]) == [
        "<dreamllm:pad>",
        "<dreamllm:image>",
        "<dream>",
    ]
    assert tokenizer.pad_token_id == special.pad
    assert words.items() <= tokenizer.get_vocab().items()
    assert tokenizer.encode("see <image>", add_special_tokens=False) == [1, 2]


def test_a_token_of_a_vocabulary_that_no_text_reaches_is_used_as_it_is() -> None:
    vocabulary = {token: i for i, token in enumerate([*"<>[]_abcdeghimnprstPAD/", *NAMES])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Backend(models.BPE(dict(vocabulary), [])))

    assert add_special_tokens(tokenizer) == 0

    assert SpecialTokens.of(tokenizer).dream_end == vocabulary["<dream_end>"]


def test_a_token_in_the_vocabulary_that_is_split_into_pieces_is_refused() -> None:
    vocabulary = {token: i for i, token in enumerate([*"<>[]_abcdeghimnprstPAD/", *NAMES])}
    backend = Backend(models.BPE(vocabulary, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)

    with pytest.raises(ConfigError, match="expected to be one token"):
        SpecialTokens.of(tokenizer)
