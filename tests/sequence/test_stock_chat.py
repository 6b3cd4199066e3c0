from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.sequence.stock_families import (
    CONVERSATION,
    FAMILIES,
    MISTRAL,
    QWEN_3,
    SYSTEM,
    VICUNA,
    ZEPHYR,
    Family,
    Messages,
    byte_level,
    saved,
    sentencepiece_like,
    stock_ids,
)
from tokenizers import AddedToken
from transformers import AutoTokenizer

from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Document, Text
from dreamllm.document.messages import from_messages
from dreamllm.errors import ConfigError, DocumentError
from dreamllm.sequence.chat import CHAT_TEMPLATES, CHATML, VICUNA_V1_1, ChatTemplate
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.layout import SlotSizes
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.stock_chat import end_of_answer, resolve_chat, template_of
from dreamllm.sequence.stock_tokenizer import prepare_tokenizer
from dreamllm.sequence.tokenizer import Tokenizer

WITH_AND_WITHOUT_SYSTEM = [CONVERSATION, [*SYSTEM, *CONVERSATION]]
ANSWER: Messages = [{"role": "assistant", "content": "It's red."}]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("families")
    return {
        name: prepare_tokenizer(
            saved(byte_level(family), folder / name), model_bos_id=None, model_eos_id=None, chat="tokenizer"
        )[0]
        for name, family in FAMILIES.items()
    }


def encoder_of(tokenizer: Tokenizer, chat: ChatTemplate) -> SequenceEncoder:
    sizes = SlotSizes(num_visual_tokens=2, num_dream_queries=3)
    return SequenceEncoder(tokenizer, sizes, chat, VisionTransform(4), TargetTransform(8))


@pytest.mark.parametrize("messages", WITH_AND_WITHOUT_SYSTEM)
@pytest.mark.parametrize("num_turns", [1, 3, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_has_the_ids_of_the_stock_template(
    prepared: dict[str, Tokenizer], name: str, num_turns: int, messages: Messages
) -> None:
    tokenizer = prepared[name]
    encoder = encoder_of(tokenizer, template_of(tokenizer.hf))
    messages = messages[: num_turns + len(messages) - len(CONVERSATION)]

    prompt = encoder.encode_prompt(from_messages(messages)).input_ids.tolist()

    assert prompt == [tokenizer.bos_id, *stock_ids(tokenizer.hf, messages)]


@pytest.mark.parametrize("messages", WITH_AND_WITHOUT_SYSTEM)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_training_form_extends_the_prompt_and_ends_with_the_end_of_the_stock_answer(
    prepared: dict[str, Tokenizer], name: str, messages: Messages
) -> None:
    tokenizer = prepared[name]
    encoder = encoder_of(tokenizer, template_of(tokenizer.hf))

    prompt = encoder.encode_prompt(from_messages(messages)).input_ids
    (full,) = encoder.encode(from_messages(messages + ANSWER))

    np.testing.assert_array_equal(full.input_ids[: len(prompt)], prompt)
    assert full.input_ids[-1] == tokenizer.eos_id == tokenizer.hf.eos_token_id
    assert tokenizer.hf.eos_token == (FAMILIES[name].answer_end or FAMILIES[name].eos)
    if name != "qwen_3":  # it writes an empty thought before the last answer, and none before others
        stock = stock_ids(tokenizer.hf, messages + ANSWER, prompt=False)
        assert full.input_ids[1:].tolist() == stock[: len(full.input_ids) - 1]
        assert tokenizer.hf.decode(stock[len(full.input_ids) - 1 :]).strip() == ""


def test_the_pieces_of_vicuna_are_those_of_the_named_template(prepared: dict[str, Tokenizer]) -> None:
    expected = replace(VICUNA_V1_1, name="tokenizer", system="A curious user talks to a helpful assistant.")

    assert template_of(prepared["vicuna"].hf) == expected


def test_qwen_3_is_plain_chatml_and_qwen_2_5_keeps_its_system_sentence(
    prepared: dict[str, Tokenizer],
) -> None:
    chatml = replace(CHATML, name="tokenizer", system="")

    assert template_of(prepared["qwen_3"].hf) == chatml
    assert template_of(prepared["qwen_2_5"].hf) == replace(chatml, system="You are kind. You help.")


def test_gemma_says_the_system_text_in_the_turn_of_the_user(prepared: dict[str, Tokenizer]) -> None:
    assert template_of(prepared["gemma_3"].hf) == ChatTemplate(
        name="tokenizer",
        system="",
        system_prefix="",
        system_end="\n\n",
        user_prefix="<start_of_turn>user\n",
        user_end="<end_of_turn>\n",
        assistant_prefix="<start_of_turn>model\n",
        assistant_end="\n",
        content_prefix="",
        system_in_user_turn=True,
    )


def test_an_empty_system_turn_is_written_where_the_template_writes_one(
    prepared: dict[str, Tokenizer],
) -> None:
    template = template_of(prepared["llama_3_2"].hf)

    assert template.system == ""
    assert template.opening == (
        "<|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n<|eot_id|>"
    )


def test_a_system_text_that_moves_with_the_last_turn_is_refused_when_it_comes_up() -> None:
    hf = byte_level(Family(MISTRAL.replace("loop.first", "loop.last"), "<s>", "</s>"))

    template = template_of(hf)

    add_special_tokens(hf)
    written = encoder_of(Tokenizer(hf), template).encode_prompt(from_messages(CONVERSATION))
    assert written.input_ids[1:].tolist() == stock_ids(hf, CONVERSATION)
    with pytest.raises(
        DocumentError, match="'tool' has a system part, but the chat template 'tokenizer' take"
    ):
        template.render(Document(id="tool", parts=(Text(text="Be brief.", role="system"),)))


def test_a_template_without_a_system_role_refuses_system_parts_with_its_own_words() -> None:
    no_role = "{%- if messages[0]['role'] == 'system' %}{{- raise_exception('no system') }}{%- endif %}"
    hf = byte_level(FAMILIES["vicuna"])
    hf.chat_template = no_role + VICUNA

    template = template_of(hf)

    assert template.refuses_system == "it refuses the turns system, user, assistant, user (no system)"
    assert template.user_prefix == "USER:"


def test_a_prompt_that_is_no_beginning_of_the_answer_is_refused() -> None:
    hf = byte_level(FAMILIES["qwen_3"])
    hf.chat_template = QWEN_3.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")

    with pytest.raises(ConfigError, match=r"cannot be used: it asks for an answer with .*<think>.* instead$"):
        template_of(hf)


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{%- for m in messages %}{{- m['content'] | upper }}{%- endfor %}", "does not write what the user"),
        ("{{- raise_exception('never') }}", r"it refuses the turns user, assistant, user \(never\)"),
        (VICUNA.replace("+ eos_token", "+ '.'"), r"ends the last answer with '\.'"),
        (
            VICUNA.replace("'USER: '", "'[' ~ loop.index ~ '] USER: '"),
            "a conversation of 5 turns is written .*USER.* where its pieces give",
        ),
        (None, "the tokenizer has none"),
    ],
)
def test_a_template_that_cannot_be_cut_says_why_and_offers_the_named_ones(
    jinja: str | None, reason: str
) -> None:
    hf = byte_level(FAMILIES["vicuna"])
    hf.chat_template = jinja

    with pytest.raises(
        ConfigError, match=rf"cannot be used: .*{reason}.*vicuna_v1_1, plain_chat, chatml"
    ) as e:
        template_of(hf)
    assert "\n" not in str(e.value)


def test_an_answer_must_end_in_a_token() -> None:
    hf = byte_level(FAMILIES["vicuna"])
    hf.chat_template = VICUNA.replace("trim + eos_token", "trim + ' ' + eos_token")

    with pytest.raises(ConfigError, match="ends an answer with ' </s>', where one of its special tokens"):
        end_of_answer(hf)


def test_blanks_that_a_token_swallows_are_left_out(tmp_path: Path) -> None:
    phi = QWEN_3.replace("<|im_start|>' + message.role + '", "<|' + message.role + '|>").replace(
        "<|im_start|>assistant", "<|assistant|>"
    )
    hf = sentencepiece_like(Family(phi.replace("<|im_end|>", "<|end|>"), "<s>", "</s>"))
    names = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    hf.add_tokens([AddedToken(name, rstrip=True, normalized=False) for name in names], special_tokens=True)
    tokenizer, _ = prepare_tokenizer(
        saved(hf, tmp_path), model_bos_id=None, model_eos_id=None, chat="tokenizer"
    )

    template = template_of(tokenizer.hf)

    assert (template.user_prefix, template.user_end) == ("<|user|>", "<|end|>")
    prompt = encoder_of(tokenizer, template).encode_prompt(from_messages(CONVERSATION))
    assert prompt.input_ids[1:].tolist() == stock_ids(tokenizer.hf, CONVERSATION)


@pytest.mark.parametrize("messages", WITH_AND_WITHOUT_SYSTEM)
@pytest.mark.parametrize("name", ["vicuna", "mistral"])
def test_a_tokenizer_that_puts_spaces_before_texts_has_the_stock_ids_too(
    name: str, messages: Messages, tmp_path: Path
) -> None:
    tokenizer, _ = prepare_tokenizer(
        saved(sentencepiece_like(FAMILIES[name]), tmp_path),
        model_bos_id=None,
        model_eos_id=None,
        chat="tokenizer",
    )
    encoder = encoder_of(tokenizer, template_of(tokenizer.hf))

    prompt = encoder.encode_prompt(from_messages(messages)).input_ids.tolist()

    assert prompt == [tokenizer.bos_id, *stock_ids(tokenizer.hf, messages)]


@pytest.mark.parametrize("messages", WITH_AND_WITHOUT_SYSTEM)
def test_words_after_a_line_break_get_no_space(messages: Messages, tmp_path: Path) -> None:
    tokenizer, _ = prepare_tokenizer(
        saved(sentencepiece_like(Family(ZEPHYR, "<s>", "</s>")), tmp_path),
        model_bos_id=None,
        model_eos_id=None,
        chat="tokenizer",
    )
    encoder = encoder_of(tokenizer, template_of(tokenizer.hf))

    prompt = encoder.encode_prompt(from_messages(messages)).input_ids.tolist()

    assert prompt == [tokenizer.bos_id, *stock_ids(tokenizer.hf, messages)]


@pytest.mark.parametrize("messages", WITH_AND_WITHOUT_SYSTEM)
@pytest.mark.parametrize("chat", CHAT_TEMPLATES)
def test_a_saved_tokenizer_carries_the_named_template_in_its_stock_form(
    tmp_path: Path, chat: str, messages: Messages
) -> None:
    stock = byte_level(FAMILIES["qwen_2_5"])
    tokenizer, _ = prepare_tokenizer(
        saved(stock, tmp_path / "stock"), model_bos_id=None, model_eos_id=None, chat=chat
    )
    tokenizer.save_pretrained(tmp_path / "ours")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "ours", local_files_only=True)
    encoder = encoder_of(tokenizer, resolve_chat(chat, tokenizer.hf))

    (full,) = encoder.encode(from_messages(messages + ANSWER))
    prompt = encoder.encode_prompt(from_messages(messages))

    text = loaded.apply_chat_template(messages + ANSWER, tokenize=False)
    assert full.input_ids.tolist() == tokenizer.encode_markup(text)
    assert full.input_ids[1:].tolist() == stock_ids(loaded, messages + ANSWER, prompt=False)
    assert prompt.input_ids[1:].tolist() == stock_ids(loaded, messages)
    read_back = encoder_of(tokenizer, template_of(loaded)).encode_prompt(from_messages(messages))
    np.testing.assert_array_equal(read_back.input_ids, prompt.input_ids)


def test_a_name_resolves_to_a_named_template_or_to_the_tokenizers_own(prepared: dict[str, Tokenizer]) -> None:
    hf = prepared["gemma_3"].hf

    assert resolve_chat("vicuna_v1_1", hf) is VICUNA_V1_1
    assert resolve_chat("tokenizer", hf) == template_of(hf)
    with pytest.raises(ConfigError, match="there is no chat template 'gemma'"):
        resolve_chat("gemma", hf)
