from hypothesis import given
from hypothesis import strategies as st

from dreamllm.generate.rows import TextRun


def run(tokenizer, ids, prefix):
    text = TextRun(tokenizer.decode, prefix=prefix)
    return [*(text.push(token) for token in ids), text.close()]


def test_a_character_of_several_tokens_comes_out_whole(tokenizer):
    ids = tokenizer.encode("aé☂b")
    assert len(ids) == 1 + 2 + 3 + 1

    assert run(tokenizer, ids, "") == ["a", "", "é", "", "", "☂", "b", ""]


def test_a_broken_character_comes_out_once_it_is_certain(tokenizer):
    first_byte = tokenizer.encode("é")[0]

    assert run(tokenizer, [first_byte, *tokenizer.encode("a")], "") == ["", "\ufffda", ""]
    assert run(tokenizer, [first_byte], "") == ["", "\ufffd"]


def test_the_prefix_is_dropped_once_and_only_from_the_beginning(tokenizer):
    assert run(tokenizer, tokenizer.encode("  a b"), " ") == ["", " ", "a", " ", "b", ""]
    assert run(tokenizer, tokenizer.encode("a"), " ") == ["a", ""]
    assert run(tokenizer, tokenizer.encode(" "), " ") == ["", ""]


@given(ids=st.lists(st.integers(2, 257)), prefix=st.sampled_from(["", " ", "ab"]))
def test_the_pieces_add_up_to_the_decoded_run(tokenizer, ids, prefix):
    assert "".join(run(tokenizer, ids, prefix)) == tokenizer.decode(ids).removeprefix(prefix)
