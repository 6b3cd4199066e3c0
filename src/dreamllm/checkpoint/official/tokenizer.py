"""The tokenizer of an official checkpoint.

Its special tokens have the ids that `added_tokens.json` says, in whatever order; those that `config.json`
states for bos, eos and padding are wrong in the published checkpoints, and are not read.
"""

import importlib.util
import shutil
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from dreamllm.checkpoint.parts import damaged, read_json, write_json
from dreamllm.errors import CheckpointError, ConfigError, MissingExtraError
from dreamllm.sequence.special_tokens import add_special_tokens
from dreamllm.sequence.tokenizer import Tokenizer

ADDED_TOKENS = "added_tokens.json"
SENTENCEPIECE_MODEL = "tokenizer.model"


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
        _check_sentencepiece(model_file)
        hf_tokenizer = _load(LlamaTokenizer, folder)
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer; expected {SENTENCEPIECE_MODEL} or tokenizer.json; copy the folder whole"
        )
    expected = read_json(folder / ADDED_TOKENS)
    add_special_tokens(hf_tokenizer)
    try:
        tokenizer = Tokenizer(hf_tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    found = _spelled(tokenizer)
    wrong = [
        f"{name} is {found[name]}, not {expected.get(name)}"
        for name in found
        if found[name] != expected.get(name)
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
    shutil.copytree(source, out, dirs_exist_ok=True)
    backend = tokenizer.hf.backend_tokenizer
    first_added = backend.get_vocab_size(with_added_tokens=False)
    added = {name: i for name, i in tokenizer.hf.get_added_vocab().items() if i >= first_added}
    write_json(out / ADDED_TOKENS, added | _spelled(tokenizer))
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    named = {name: text for name in names if (text := getattr(tokenizer.hf, name)) is not None}
    others = [text for text in _spelled(tokenizer) if text not in named.values()]
    write_json(out / "special_tokens_map.json", {**named, "additional_special_tokens": others})


def _spelled(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens by their spelling."""
    ids = astuple(tokenizer.special)
    return dict(zip(tokenizer.hf.convert_ids_to_tokens(ids), ids, strict=True))


def _check_sentencepiece(path: Path) -> None:
    """Before transformers does, which would go on to read the file as something else."""
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"{path} needs {' and '.join(missing)}, not installed here; "
            "run `pip install 'dreamllm[official]'`, or put a tokenizer.json beside it"
        )
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise damaged(path, error) from error


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _load(tokenizer_class: Any, folder: Path) -> PreTrainedTokenizerFast:
    try:
        return tokenizer_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(folder, error) from error
