"""The tokenizer of any language model -> ours: with BOS and EOS, our special tokens and a chat template.

In goes a stock folder, whose files are left alone; ids that exist keep their meaning, so the embeddings of
the language model stay valid. New ids follow the last one; where the model's table is padded (Qwen), they
may lie inside it.
"""

import datetime
import importlib
import json
import logging
import re
from pathlib import Path

from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dreamllm.errors import CheckpointError, ConfigError, MissingExtraError
from dreamllm.sequence.chat import TOKENIZER_CHAT, chat_template
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.stock_chat import end_of_answer, jinja_of, template_of
from dreamllm.sequence.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_TODAY = datetime.date(2024, 7, 26)
"""Stands for today in chat templates that write a date: what is trained on must not depend on the day. Llama
3.1 writes this date where it is given none."""
_CLOCK = re.compile(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)")


def prepare_tokenizer(
    source_folder: str | Path, *, model_bos_id: int | None, model_eos_id: int | None, chat: str
) -> tuple[Tokenizer, list[int]]:
    """Read a stock tokenizer folder and add what sequences need; also the ids that are new.

    Args:
        source_folder: holds a fast `tokenizer.json`, or the `tokenizer.model` of SentencePiece.
        model_bos_id: id in the model's configuration, for a tokenizer that names no BOS (Qwen); where this
            is no id of the tokenizer either, its EOS begins sequences.
        model_eos_id: the same for EOS.
        chat: name of a chat template, which is stored with the tokenizer; or `tokenizer` to keep its own,
            and then what ends an answer there (Gemma's `<end_of_turn>`) is EOS.

    Raises:
        CheckpointError: the folder holds no tokenizer.
        ConfigError: there is no EOS, or the chat template is unknown or cannot be used.
        MissingExtraError: SentencePiece is needed and not installed.
    """
    hf_tokenizer = _load(Path(source_folder))
    _name_bos_and_eos(hf_tokenizer, model_bos_id, model_eos_id)
    if chat == TOKENIZER_CHAT:
        _keep_own_chat(hf_tokenizer)
    else:
        hf_tokenizer.chat_template = jinja_of(chat_template(chat))
    new_ids = _add_special_tokens(hf_tokenizer)
    tokenizer = Tokenizer(hf_tokenizer)
    _log.info("added %d special tokens; the tokenizer has %d ids now", len(new_ids), tokenizer.vocab_size)
    return tokenizer, new_ids


def _add_special_tokens(hf_tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that are new."""
    known = set(hf_tokenizer.get_vocab().values())
    num_added = add_special_tokens(hf_tokenizer)
    new_ids = sorted(set(hf_tokenizer.get_vocab().values()) - known)
    if len(new_ids) != num_added:  # tokenizers counts tokens to find the next id, and overlooks gaps
        raise ConfigError(
            f"the ids of the tokenizer have gaps: {len(known)} tokens have ids up to {max(known)}, and "
            f"{num_added - len(new_ids)} of {num_added} new tokens would share an id with another one; fill "
            "the gaps in its tokenizer.json with unused tokens"
        )
    return new_ids


def _load(folder: Path) -> PreTrainedTokenizerFast:
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    if (folder / "tokenizer.model").is_file():
        return _convert(folder)
    raise CheckpointError(
        f"{folder} holds neither tokenizer.json nor tokenizer.model; a folder with a tokenizer of "
        "transformers is expected; check the path"
    )


def _convert(folder: Path) -> PreTrainedTokenizerFast:
    """A fast tokenizer of a SentencePiece model."""
    try:
        for needed in ("sentencepiece", "google.protobuf"):
            importlib.import_module(needed)
    except ImportError as error:
        raise MissingExtraError(
            f"{folder} holds a tokenizer.model and no tokenizer.json, and {error.name} is not installed; it "
            "is needed once, to convert the model; run `pip install sentencepiece protobuf`"
        ) from error
    config = folder / "tokenizer_config.json"
    stored = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    # Folders that do not say so are older than the choice, and their models learned the old way: a space is
    # put before the text after every special token. transformers 5 assumes the new way.
    legacy = stored.get("legacy") is not False
    converted = AutoTokenizer.from_pretrained(
        str(folder), legacy=legacy, local_files_only=True, trust_remote_code=False
    )
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=converted.backend_tokenizer,
        chat_template=converted.chat_template,
        model_max_length=converted.model_max_length,
        clean_up_tokenization_spaces=False,
        **{name: getattr(converted, name) for name in names if getattr(converted, name) is not None},
    )


def _name_bos_and_eos(
    hf_tokenizer: PreTrainedTokenizerFast, model_bos_id: int | None, model_eos_id: int | None
) -> None:
    if hf_tokenizer.eos_token is None:
        eos = _token(hf_tokenizer, model_eos_id)
        if eos is None:
            raise ConfigError(
                f"the tokenizer names no eos token, and the model's eos_token_id={model_eos_id} is none of "
                f"its {len(hf_tokenizer)} tokens; set eos_token in its tokenizer_config.json"
            )
        hf_tokenizer.eos_token = eos
        _log.info("the tokenizer names no EOS; it is %s, as in the model's configuration", eos)
    if hf_tokenizer.bos_token is None:
        bos = _token(hf_tokenizer, model_bos_id)
        hf_tokenizer.bos_token = bos or hf_tokenizer.eos_token
        origin = "as in the model's configuration" if bos else "its EOS"
        _log.info("the tokenizer names no BOS; sequences begin with %s, %s", hf_tokenizer.bos_token, origin)
    _make_special(hf_tokenizer, hf_tokenizer.bos_token)
    _make_special(hf_tokenizer, hf_tokenizer.eos_token)


def _token(hf_tokenizer: PreTrainedTokenizerFast, token_id: int | None) -> str | None:
    token = None if token_id is None else hf_tokenizer.backend_tokenizer.id_to_token(token_id)
    return None if token is None else str(token)


def _keep_own_chat(hf_tokenizer: PreTrainedTokenizerFast) -> None:
    if hf_tokenizer.chat_template is not None:
        own = hf_tokenizer.get_chat_template()  # the default one, where there are several
        hf_tokenizer.chat_template = _CLOCK.sub(lambda call: repr(_TODAY.strftime(call[2])), own)
        if hf_tokenizer.chat_template != own:
            _log.info("the chat template writes the date of today; it is %s from now on", _TODAY)
    hf_tokenizer.eos_token = end_of_answer(hf_tokenizer)
    _make_special(hf_tokenizer, hf_tokenizer.eos_token)
    template = template_of(hf_tokenizer)
    if template.refuses_system:
        _log.warning("the chat template takes no system text: %s", template.refuses_system)


def _make_special(hf_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Keep a token out of text that a user types; its id and its way with blanks stay."""
    token_id = hf_tokenizer.backend_tokenizer.token_to_id(text)
    known = hf_tokenizer.added_tokens_decoder.get(token_id)
    token = AddedToken(
        text,
        special=True,
        normalized=False,
        lstrip=known is not None and known.lstrip,
        rstrip=known is not None and known.rstrip,
    )
    hf_tokenizer.add_tokens([token], special_tokens=True)
