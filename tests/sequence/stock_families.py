"""Small tokenizers with the chat templates of known model families: their tokens and control flow.

A vocabulary is trained on the family's own conversations, so that pairs across the borders of a template are
as frequent as any: where ids depended on cutting there, they would differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

Messages = list[dict[str, str]]

_ALTERNATE = """
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
{%- endfor %}"""

_SPLIT_SYSTEM = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}"""

VICUNA = (
    _SPLIT_SYSTEM
    + """
{{- bos_token + (system | default('A curious user talks to a helpful assistant.')) + ' ' }}
{%- for message in turns %}
    {%- if message['role'] == 'user' %}
        {{- 'USER: ' + message['content'] | trim + ' ' }}
    {%- else %}
        {{- 'ASSISTANT: ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"""
)

MISTRAL = (
    _SPLIT_SYSTEM
    + _ALTERNATE
    + """
{{- bos_token }}
{%- for message in turns %}
    {%- if message['role'] == 'user' and loop.first and system is defined %}
        {{- '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}"""
)

LLAMA_3 = """
{%- for message in messages %}
    {%- set turn = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {%- set turn = turn + message['content'] | trim + '<|eot_id|>' %}
    {%- if loop.index0 == 0 %}{%- set turn = bos_token + turn %}{%- endif %}
    {{- turn }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

LLAMA_3_2 = (
    _SPLIT_SYSTEM
    + """
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today: ' + strftime_now("%d %b %Y") + '\\n\\n' + (system | default('')) + '<|eot_id|>' }}
{%- for message in turns %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
)

QWEN_2_5 = """
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are kind. You help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN_3 = """
{%- set seen = namespace(last_user=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- if seen.searching and message.role == 'user' %}
        {%- set seen.last_user = messages | length - 1 - loop.index0 %}{%- set seen.searching = false %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set words = message.content.split('</think>')[-1].lstrip('\\n') %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 > seen.last_user %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- words + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA_3 = (
    "{{- bos_token }}"
    + _SPLIT_SYSTEM
    + _ALTERNATE
    + """
{%- for message in turns %}
    {%- set name = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + name + '\\n' + (system + '\\n\\n' if loop.first and system is defined else '') }}
    {{- message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""
)

ZEPHYR = """
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """What a stock folder says of itself."""

    jinja: str | None
    bos: str | None
    eos: str
    markers: tuple[str, ...] = ()
    """Special tokens beside BOS and EOS."""
    plain_added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    answer_end: str = ""
    """What ends an answer in the template; the tokenizer's EOS where it is empty."""


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|endoftext|>", "<|im_start|>")
FAMILIES = {
    "vicuna": Family(VICUNA, "<s>", "</s>"),
    "mistral": Family(MISTRAL, "<s>", "</s>"),
    "llama_3": Family(LLAMA_3, "<|begin_of_text|>", "<|end_of_text|>", _HEADERS, answer_end="<|eot_id|>"),
    "llama_3_2": Family(LLAMA_3_2, "<|begin_of_text|>", "<|eot_id|>", _HEADERS[:2]),
    "qwen_2_5": Family(QWEN_2_5, None, "<|im_end|>", _CHATML),
    "qwen_3": Family(QWEN_3, None, "<|im_end|>", _CHATML, ("<think>", "</think>")),
    "gemma_3": Family(
        GEMMA_3, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), answer_end="<end_of_turn>"
    ),
}

CONVERSATION: Messages = [
    {"role": "user", "content": "(Look!) Which colour is it?"},
    {"role": "assistant", "content": "It's red.\n\nA bright red, I think:\n1. red"},
    {"role": "user", "content": "and\nnow?!"},
    {"role": "assistant", "content": '"Blue" <b>'},
    {"role": "user", "content": "3 more..."},
]
SYSTEM: Messages = [{"role": "system", "content": "Be brief.\nAnswer [briefly]!"}]

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(family: Family) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words may begin with a mark and end in line breaks, as in Llama 3 and Qwen."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        _corpus(family), trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    return _finished(backend, family)


def sentencepiece_like(family: Family) -> PreTrainedTokenizerFast:
    """BPE as converted from SentencePiece the old way: a space is put before the text after every special
    token."""
    backend = Backend(models.BPE(byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", behavior="isolated"), pre_tokenizers.Metaspace(split=True)]
    )
    trainer = trainers.BpeTrainer(vocab_size=200, initial_alphabet=["\n"], show_progress=False)
    backend.train_from_iterator(_corpus(family), trainer)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1)]
    )
    return _finished(backend, family)


def saved(hf_tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """A stock folder."""
    hf_tokenizer.save_pretrained(str(folder))
    return folder


def stock_ids(
    hf_tokenizer: PreTrainedTokenizerFast, messages: Messages, *, prompt: bool = True, **options: Any
) -> list[int]:
    """Ids of a conversation after BOS, as the stock library makes them."""
    ids: Sequence[int] = hf_tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=prompt, return_dict=False, **options
    )
    return list(ids[1:] if ids[0] == hf_tokenizer.bos_token_id else ids)


def _corpus(family: Family) -> list[str]:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Backend(models.BPE()), bos_token=family.bos, eos_token=family.eos
    )
    if family.jinja is None:
        return [message["content"] for message in CONVERSATION] * 20
    bare.chat_template = family.jinja
    conversations = [[*head, *CONVERSATION[:end]] for head in ([], SYSTEM) for end in (1, 3, 5)]
    return [
        bare.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ] * 20


def _finished(backend: Backend, family: Family) -> PreTrainedTokenizerFast:
    named = [token for token in (family.bos, family.eos) if token is not None]
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in (*named, *family.markers)])
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.plain_added])
    hf_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        clean_up_tokenization_spaces=False,
    )
    hf_tokenizer.chat_template = family.jinja
    return hf_tokenizer
