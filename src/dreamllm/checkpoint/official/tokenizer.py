"""The tokenizer of an official checkpoint.

Its special tokens have the ids that `added_tokens.json` says, in whatever order; those that `config.json`
states for bos, eos and padding are wrong in the published checkpoints, and are not read.
"""

import shutil
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from dreamllm.checkpoint.parts import damaged, read_json, write_json
from dreamllm.errors import CheckpointError, ConfigError, MissingExtraError
from dreamllm.sequence.chat import VICUNA_V1_1
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.stock_chat import jinja_of
from dreamllm.sequence.tokenizer import Tokenizer

ADDED_TOKENS = "added_tokens.json"
SENTENCEPIECE_MODEL = "tokenizer.model"
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class OfficialTokenizer:
    """A tokenizer, and the SentencePiece model it was made of, which is kept for the way back."""

    tokenizer: Tokenizer
    sentencepiece_model: Path | None

    def save_pretrained(self, path: Path, /) -> None:
        """Write the tokenizer files of transformers into a folder, and the SentencePiece model if any."""
        self.tokenizer.save_pretrained(path)
        if self.sentencepiece_model is not None:
            shutil.copyfile(self.sentencepiece_model, path / SENTENCEPIECE_MODEL)


def read_tokenizer(folder: Path) -> OfficialTokenizer:
    """Made of `tokenizer.json` if there is one, and otherwise of `tokenizer.model`.

    Raises:
        CheckpointError: neither is there, one is damaged, or a special token has not the id that
            `added_tokens.json` says.
        MissingExtraError: `tokenizer.model` is there, and SentencePiece or protobuf is not installed.
    """
    model_file = folder / SENTENCEPIECE_MODEL
    if (folder / "tokenizer.json").is_file():
        hf_tokenizer = _load(PreTrainedTokenizerFast, folder)
    elif model_file.is_file():
        hf_tokenizer = _convert(folder)
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer; expected {SENTENCEPIECE_MODEL} or tokenizer.json; "
            "copy the folder whole"
        )
    hf_tokenizer.chat_template = jinja_of(VICUNA_V1_1)
    add_special_tokens(hf_tokenizer)
    try:
        tokenizer = Tokenizer(hf_tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    expected = read_json(folder / ADDED_TOKENS)
    wrong = [
        f"{name} is {token_id}, not {expected.get(name)}"
        for name, token_id in _special_ids(tokenizer).items()
        if token_id != expected.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"the tokenizer in {folder} does not give special tokens the ids of {ADDED_TOKENS}: "
            f"{', '.join(wrong)}; restore both files from where they came"
        )
    return OfficialTokenizer(tokenizer, model_file if model_file.is_file() else None)


def write_tokenizer(source: Path, out: Path) -> None:
    """Copy the tokenizer of a model folder, and write its special tokens as old versions of transformers
    read them."""
    tokenizer = Tokenizer.from_pretrained(source)
    shutil.copytree(source, out)
    special_ids = _special_ids(tokenizer)
    num_words = tokenizer.hf.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    added = {name: i for name, i in tokenizer.hf.get_added_vocab().items() if i >= num_words}
    write_json(out / ADDED_TOKENS, added | special_ids)
    named = {name: getattr(tokenizer.hf, name) for name in _NAMED if getattr(tokenizer.hf, name) is not None}
    others = [token for token in special_ids if token not in named.values()]
    write_json(out / "special_tokens_map.json", {**named, "additional_special_tokens": others})


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens, by their spelling."""
    ids = astuple(tokenizer.special)
    return dict(zip(tokenizer.hf.convert_ids_to_tokens(ids), ids, strict=True))


def _convert(folder: Path) -> PreTrainedTokenizerFast:
    """A fast tokenizer of a SentencePiece model.

    The class is named: the automatic one would ask on the terminal whether to run code that `config.json`
    points to.
    """
    _check_sentencepiece(folder / SENTENCEPIECE_MODEL)
    config = folder / "tokenizer_config.json"
    stored = read_json(config) if config.is_file() else {}
    # Folders that do not say are older than the choice, and their models learned the old way.
    legacy = stored.get("legacy") is not False
    converted = _load(LlamaTokenizer, folder, legacy=legacy)
    return PreTrainedTokenizerFast(
        tokenizer_object=converted.backend_tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=converted.model_max_length,
        **{name: getattr(converted, name) for name in _NAMED if getattr(converted, name) is not None},
    )


def _check_sentencepiece(path: Path) -> None:
    """Before transformers does, which would go on to read the file as something else."""
    try:
        import google.protobuf  # noqa: F401
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs SentencePiece, and {error.name} is not installed; "
            "run `pip install 'dreamllm[sentencepiece]'`, or put a tokenizer.json beside it"
        ) from error
    try:
        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise damaged(path, error) from error


def _load(tokenizer_class: Any, folder: Path, **options: bool) -> PreTrainedTokenizerFast:
    try:
        return tokenizer_class.from_pretrained(str(folder), local_files_only=True, **options)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(folder, error) from error
