from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["A large red circle is in the top left.", "The small blue star is at the bottom right."] * 20
SMALLEST = 256 + 2 + 8  # bytes, bos and eos, special tokens


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 320)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_unicode_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_spaces_are_not_cleaned_up(tokenizer: Tokenizer) -> None:
    text = "  a , b .  it 's\n\n\tx "

    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["<dream_start>", "red <im_patch> circle", "</s>", "<s>", "[PAD]<image><im_end>"]
)
def test_a_typed_special_token_is_ordinary_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)

    assert not set(ids) & set(tokenizer.hf.get_added_vocab().values())
    assert len(ids) > 1
    assert tokenizer.decode(ids) == text


def test_a_typed_special_token_stays_text_after_the_shared_tokenizer_was_used(tokenizer: Tokenizer) -> None:
    dream_start = tokenizer.special.dream_start
    assert tokenizer.hf.encode("<dream_start>", split_special_tokens=False) == [dream_start]

    assert dream_start not in tokenizer.encode("<dream_start>")


def test_markup_knows_special_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_markup("red<dream_start></s> a")

    expected = [
        *tokenizer.encode("red"),
        tokenizer.special.dream_start,
        tokenizer.eos_id,
        *tokenizer.encode(" a"),
    ]
    assert ids == expected


def test_special_tokens_are_not_decoded(tokenizer: Tokenizer) -> None:
    special = tokenizer.special

    assert (
        tokenizer.decode([tokenizer.bos_id, special.dream_start, *tokenizer.encode(" red"), special.pad])
        == " red"
    )


def test_training_is_deterministic_and_the_vocabulary_has_the_size_asked_for() -> None:
    first, second = train_tokenizer(TEXTS, 300), train_tokenizer(iter(TEXTS), 300)

    assert first.hf.get_vocab() == second.hf.get_vocab()
    assert first.hf.backend_tokenizer.to_str() == second.hf.backend_tokenizer.to_str()
    assert first.vocab_size == 300
    assert sorted(first.hf.get_vocab().values()) == list(range(300))
    assert (first.bos_id, first.eos_id, first.pad_id) == (0, 1, 292)


def test_a_frequent_word_is_one_token_with_its_space(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" the")) == 1
    assert tokenizer.encode("the") != tokenizer.encode(" the")


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)

    text = "a <dream_start> red  circle</s> ."
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.special == tokenizer.special
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.pad_id,
        tokenizer.vocab_size,
    )


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    assert train_tokenizer(TEXTS, SMALLEST).vocab_size == SMALLEST

    with pytest.raises(ConfigError, match=r"vocab_size=265 is too small; .* need 266"):
        train_tokenizer(TEXTS, SMALLEST - 1)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)


def sentencepiece_tokenizer(bos: str | None = "<s>") -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of Llama: a space is put before every text."""
    pieces = ["<s>", "</s>", "\u2581", "r", "e", "d"]
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1)]
    )
    backend.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    hf_tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="</s>")
    add_special_tokens(hf_tokenizer)
    return hf_tokenizer


def test_a_tokenizer_that_puts_a_space_before_a_text_gets_no_second_one() -> None:
    hf_tokenizer = sentencepiece_tokenizer()
    tokenizer = Tokenizer(hf_tokenizer)

    assert hf_tokenizer.encode(" red", add_special_tokens=False) == [2, 2, 3, 4, 5]
    assert tokenizer.encode(" red") == tokenizer.encode("red") == [2, 3, 4, 5]
    assert tokenizer.encode("  red") == [2, 2, 3, 4, 5]
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("scheme", ["old", "always", "first", "never"])
def test_text_that_goes_on_gets_the_ids_it_has_inside_the_whole(scheme: str) -> None:
    hf_tokenizer = sentencepiece_tokenizer()
    if scheme != "old":
        hf_tokenizer.backend_tokenizer.normalizer = None
        hf_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme=scheme, split=False
        )
    tokenizer = Tokenizer(hf_tokenizer)

    pieces = ["red", "dr", " e", "</s>", "de", "<s></s>e", " red"]
    ids = [tokenizer.bos_id]
    for piece in pieces:
        ids += tokenizer.encode_markup(piece, after=ids[-1])

    whole = "<s>" + "".join(pieces)
    assert ids == hf_tokenizer.encode(whole, add_special_tokens=False, split_special_tokens=False)


def test_the_vocabulary_is_as_large_as_its_highest_id_asks() -> None:
    with_a_gap = Backend(models.BPE({"<s>": 0, "</s>": 1, "a": 20}, []))
    hf_tokenizer = PreTrainedTokenizerFast(tokenizer_object=with_a_gap, bos_token="<s>", eos_token="</s>")
    add_special_tokens(hf_tokenizer)

    assert len(hf_tokenizer) == 11
    assert Tokenizer(hf_tokenizer).vocab_size == 21


def test_a_tokenizer_without_bos_is_refused() -> None:
    with pytest.raises(ConfigError, match="bos_token=None"):
        Tokenizer(sentencepiece_tokenizer(bos=None))
