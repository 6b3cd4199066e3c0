import datetime
import json
import logging
import sys
from pathlib import Path

import pytest
from tests.sequence.stock_families import (
    CONVERSATION,
    FAMILIES,
    LLAMA_3_2,
    VICUNA,
    Family,
    byte_level,
    saved,
    sentencepiece_like,
    stock_ids,
)
from transformers import PreTrainedTokenizerFast

from dreamllm.errors import CheckpointError, ConfigError, MissingExtraError
from dreamllm.sequence.stock_tokenizer import prepare_tokenizer
from dreamllm.sequence.tokenizer import Tokenizer


def prepare(
    hf_tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    bos: int | None = None,
    eos: int | None = None,
    chat: str = "tokenizer",
) -> tuple[Tokenizer, list[int]]:
    return prepare_tokenizer(saved(hf_tokenizer, folder), model_bos_id=bos, model_eos_id=eos, chat=chat)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_existing_id_is_moved_and_new_ones_follow_the_last(name: str, tmp_path: Path) -> None:
    stock = byte_level(FAMILIES[name])
    size = len(stock)

    tokenizer, new_ids = prepare(stock, tmp_path)

    assert new_ids == list(range(size, size + 8))
    assert tokenizer.vocab_size == size + 8
    assert stock.get_vocab().items() <= tokenizer.hf.get_vocab().items()
    assert tokenizer.special.dream_end in new_ids


def test_a_prepared_tokenizer_is_read_back_as_it_was(tmp_path: Path) -> None:
    tokenizer, _ = prepare(byte_level(FAMILIES["gemma_3"]), tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "ours")

    loaded = Tokenizer.from_pretrained(tmp_path / "ours")

    assert (loaded.special, loaded.bos_id, loaded.eos_id) == (
        tokenizer.special,
        tokenizer.bos_id,
        tokenizer.eos_id,
    )
    assert stock_ids(loaded.hf, CONVERSATION) == stock_ids(tokenizer.hf, CONVERSATION)


@pytest.mark.parametrize(
    ("bos", "expected", "why"),
    [("<|endoftext|>", "<|endoftext|>", "model's configuration"), (None, "<|im_end|>", "its EOS")],
)
def test_a_tokenizer_without_bos_begins_with_that_of_the_model_or_with_its_eos(
    bos: str | None, expected: str, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock = byte_level(FAMILIES["qwen_2_5"])
    bos_id = 151_643 if bos is None else stock.convert_tokens_to_ids(bos)

    with caplog.at_level(logging.INFO, "dreamllm"):
        tokenizer, _ = prepare(stock, tmp_path, bos=bos_id)

    assert tokenizer.bos_id == stock.convert_tokens_to_ids(expected)
    (line,) = [line for line in caplog.messages if "names no BOS" in line]
    assert expected in line
    assert why in line


def test_eos_is_the_models_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    stock = byte_level(FAMILIES["vicuna"])
    stock.eos_token = None

    tokenizer, _ = prepare(stock, tmp_path, eos=stock.convert_tokens_to_ids("</s>"), chat="vicuna_v1_1")

    assert tokenizer.hf.eos_token == "</s>"
    with pytest.raises(ConfigError, match="names no eos token, and the model's eos_token_id=9999 is none of"):
        prepare(stock, tmp_path, eos=9999, chat="vicuna_v1_1")


def test_what_ends_an_answer_is_eos_only_where_the_template_is_the_tokenizers_own(tmp_path: Path) -> None:
    stock = byte_level(FAMILIES["llama_3"])

    own, _ = prepare(stock, tmp_path)
    named, _ = prepare(stock, tmp_path, chat="plain_chat")

    assert (own.hf.eos_token, named.hf.eos_token) == ("<|eot_id|>", "<|end_of_text|>")


def test_an_end_of_turn_that_was_no_special_token_is_letters_when_a_user_types_it(tmp_path: Path) -> None:
    family = FAMILIES["gemma_3"]
    stock = byte_level(
        Family(family.jinja, "<bos>", "<eos>", ("<start_of_turn>",), plain_added=("<end_of_turn>",))
    )
    end = stock.convert_tokens_to_ids("<end_of_turn>")

    tokenizer, _ = prepare(stock, tmp_path)

    assert tokenizer.eos_id == end
    assert tokenizer.encode_markup("<end_of_turn>") == [end]
    assert end not in tokenizer.encode("<end_of_turn>")


def test_a_normal_added_token_of_our_name_is_made_special(tmp_path: Path) -> None:
    stock = byte_level(FAMILIES["vicuna"])
    stock.add_tokens("<image>")
    image = stock.convert_tokens_to_ids("<image>")

    tokenizer, new_ids = prepare(stock, tmp_path)

    assert tokenizer.special.image == image
    assert len(new_ids) == 7
    assert image not in tokenizer.encode("<image>")


def test_ids_with_gaps_are_refused_where_a_new_token_would_share_one(tmp_path: Path) -> None:
    folder = saved(byte_level(FAMILIES["vicuna"]), tmp_path)
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text())
    last = max(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    spec["model"]["vocab"][last] += 4
    file.write_text(json.dumps(spec))

    with pytest.raises(
        ConfigError, match="of 8 new tokens would share an id with another one; fill the gaps"
    ):
        prepare_tokenizer(folder, model_bos_id=None, model_eos_id=None, chat="plain_chat")


def test_a_date_in_the_template_does_not_move_with_the_day(tmp_path: Path) -> None:
    stock = byte_level(FAMILIES["llama_3_2"])
    assert datetime.date.today().strftime("%d %b %Y") in stock.apply_chat_template(
        CONVERSATION, tokenize=False
    )

    tokenizer, _ = prepare(stock, tmp_path)

    assert "strftime_now" in LLAMA_3_2
    assert "strftime_now" not in tokenizer.hf.chat_template
    assert "Today: 26 Jul 2024\n" in tokenizer.hf.apply_chat_template(CONVERSATION, tokenize=False)


def test_of_several_templates_the_default_one_is_kept(tmp_path: Path) -> None:
    stock = byte_level(FAMILIES["vicuna"])
    stock.chat_template = {"default": VICUNA, "tool_use": "{{ raise_exception('no tools') }}"}

    tokenizer, _ = prepare(stock, tmp_path)

    assert tokenizer.hf.chat_template == VICUNA


def test_a_tokenizer_without_a_template_cannot_use_its_own(tmp_path: Path) -> None:
    stock = byte_level(Family(None, "<s>", "</s>"))

    with pytest.raises(ConfigError, match=r"cannot be used: the tokenizer has none; choose one of .*chatml"):
        prepare(stock, tmp_path)
    assert prepare(stock, tmp_path, chat="chatml")[0].hf.chat_template is not None


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither tokenizer\.json nor tokenizer\.model"):
        prepare_tokenizer(tmp_path, model_bos_id=None, model_eos_id=None, chat="tokenizer")


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as that of Vicuna: a SentencePiece model and no tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = [message["content"].replace("\n", " ") for message in CONVERSATION] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"})
    )
    return folder


def test_a_sentencepiece_model_is_converted_and_keeps_its_ids(sentencepiece_folder: Path) -> None:
    import sentencepiece

    stock = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))

    tokenizer, new_ids = prepare_tokenizer(
        sentencepiece_folder, model_bos_id=None, model_eos_id=None, chat="vicuna_v1_1"
    )

    assert (tokenizer.bos_id, tokenizer.eos_id) == (stock.bos_id(), stock.eos_id()) == (1, 2)
    assert new_ids == list(range(stock.vocab_size(), stock.vocab_size() + 8))
    for text in ("Which colour is it?", "It's red.\n\nA bright  red", "e = mc\u00b2", "<image> and </s>"):
        assert tokenizer.encode(text) == stock.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # as the models of such folders learned it: a space before the text after </s>, too
    ids = stock_ids(tokenizer.hf, CONVERSATION[:3])
    after_eos = ids[ids.index(tokenizer.eos_id) + 1 :]
    assert after_eos == stock.encode("USER: and\nnow?! ASSISTANT:")


def test_without_sentencepiece_one_line_says_what_to_install(
    sentencepiece_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)

    with pytest.raises(
        MissingExtraError, match=r"sentencepiece is not installed; .*pip install sentencepiece"
    ):
        prepare_tokenizer(sentencepiece_folder, model_bos_id=None, model_eos_id=None, chat="plain_chat")


def test_a_tokenizer_that_puts_spaces_before_texts_is_prepared_too(tmp_path: Path) -> None:
    tokenizer, new_ids = prepare(sentencepiece_like(FAMILIES["mistral"]), tmp_path)

    assert len(new_ids) == 8
    assert tokenizer.encode(" red") == tokenizer.encode("red")
