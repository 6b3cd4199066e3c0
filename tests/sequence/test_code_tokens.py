"""The joint vocabulary: words first, codes behind them, three tokens between."""

import numpy as np
import pytest

from dreamllm.errors import ConfigError
from dreamllm.sequence.code_tokens import CodeTokens, add_code_tokens
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

SIZES = {"num_codes": 8, "codes_per_picture": 4}


@pytest.fixture
def trained() -> Tokenizer:
    return train_tokenizer(["a red circle"], 280)


def test_three_tokens_are_added_once(trained: Tokenizer) -> None:
    before = len(trained.hf)

    assert add_code_tokens(trained.hf) == 3
    assert add_code_tokens(trained.hf) == 0
    assert trained.hf.convert_ids_to_tokens([before, before + 1, before + 2]) == [
        "<break>",
        "<mask>",
        "<infill>",
    ]


def test_ids_are_those_of_the_tokenizer_and_codes_stand_where_they_are_told_to(trained: Tokenizer) -> None:
    before = len(trained.hf)
    add_code_tokens(trained.hf)

    tokens = CodeTokens.of(trained.hf, first_code=before + 10, **SIZES)

    assert (tokens.break_, tokens.mask, tokens.infill) == (before, before + 1, before + 2)
    assert tokens.vocab_size == before + 18
    assert tokens.picture_length == 6
    ids = before + np.asarray([0, 9, 10, 17, 18])
    assert tokens.is_code(ids).tolist() == [False, False, True, True, False]


def test_names_of_the_tokens_are_letters_in_text(trained: Tokenizer) -> None:
    add_code_tokens(trained.hf)
    tokenizer = Tokenizer(trained.hf)
    tokens = CodeTokens.of(trained.hf, first_code=tokenizer.vocab_size, **SIZES)

    ids = tokenizer.encode("a <break> <mask> <infill>")

    assert not {tokens.break_, tokens.mask, tokens.infill} & set(ids)
    assert tokenizer.decode(ids) == "a <break> <mask> <infill>"


def test_a_tokenizer_without_the_tokens_is_refused(trained: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="has no <break>, <mask>, <infill>"):
        CodeTokens.of(trained.hf, first_code=400, **SIZES)


def test_codes_may_not_have_ids_of_tokens(trained: Tokenizer) -> None:
    add_code_tokens(trained.hf)
    highest = len(trained.hf) - 1

    with pytest.raises(ConfigError, match=f"code 0 has id {highest}.* at least {highest + 1}"):
        CodeTokens.of(trained.hf, first_code=highest, **SIZES)
    assert CodeTokens.of(trained.hf, first_code=highest + 1, **SIZES).first_code == highest + 1


@pytest.mark.parametrize(
    "change", [{"first_code": 2}, {"mask": 0}, {"num_codes": 0}, {"codes_per_picture": 0}]
)
def test_an_impossible_vocabulary_is_refused(change: dict[str, int]) -> None:
    sizes = {"break_": 0, "mask": 1, "infill": 2, "first_code": 3, **SIZES}

    CodeTokens(**sizes)
    with pytest.raises(ConfigError, match="add_code_tokens"):
        CodeTokens(**sizes | change)
