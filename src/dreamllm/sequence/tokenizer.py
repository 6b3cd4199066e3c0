"""Text to ids and back, over a fast tokenizer of transformers.

Text is always ordinary text here: a user who types the name of a special token gets the letters of that name,
never the token. Special ids enter a sequence only through the layout (`encode.py`) or a chat template's
markup.
"""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.sequence.special_tokens import NUM_SPECIAL_TOKENS, SpecialTokens, add_special_tokens

BOS = "<s>"
EOS = "</s>"
_NUM_BYTES = 256
_SENTENCEPIECE_SPACE = "\u2581"


class Tokenizer:
    """A fast tokenizer that knows the special tokens and keeps them out of text."""

    def __init__(self, hf_tokenizer: PreTrainedTokenizerFast) -> None:
        """Wrap a tokenizer that already has the special tokens.

        Raises:
            ConfigError: it has no bos or eos token, or a special token is missing.
        """
        for name in ("bos_token", "eos_token"):
            if getattr(hf_tokenizer, name) is None:
                raise ConfigError(
                    f"the tokenizer has {name}=None; sequences are expected to begin with bos and end with "
                    f"eos; set {name} (a model trained without bos can use its eos for both)"
                )
        self.hf = hf_tokenizer
        self.special = SpecialTokens.of(hf_tokenizer)
        self.bos_id: int = hf_tokenizer.bos_token_id
        self.eos_id: int = hf_tokenizer.eos_token_id
        self.pad_id: int = self.special.pad
        self._vocab_size = max(hf_tokenizer.get_vocab().values()) + 1
        # A copy of its own: transformers flips this setting on the shared backend with every call.
        self._backend: Backend = copy.deepcopy(hf_tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        self._prepends_space = self._has_space("a")
        self._prepends_space_after_special = self._has_space(f"{hf_tokenizer.bos_token}a")
        self._backend.encode_special_tokens = True
        self._going_on = _without_prepended_space(self._backend) if self._prepends_space else self._backend
        added = self._backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._specials = {token.content: token_id for token_id, token in added.items() if token.special}
        self._special_pattern = re.compile(
            "(" + "|".join(re.escape(text) for text in sorted(self._specials, key=len, reverse=True)) + ")"
        )

    @property
    def vocab_size(self) -> int:
        """V: one more than the highest id, special tokens included; the rows that a model needs."""
        return self._vocab_size

    def encode(self, text: str, *, after: int | None = None) -> list[int]:
        """Ids of text as it stands: no bos, no eos, and names of special tokens are letters like any other.

        A tokenizer that puts a space before every text (SentencePiece) does not get a second one from here,
        and puts none before text that goes on: `after` is the id before it, None where a text begins.
        """
        if self._prepends_space:
            is_special = after in self._added_ids
            if after is not None and not (is_special and self._prepends_space_after_special):
                return list(self._going_on.encode(text, add_special_tokens=False).ids)
            text = text.removeprefix(" ")
        return list(self._backend.encode(text, add_special_tokens=False).ids) if text else []

    def encode_markup(self, text: str, *, after: int | None = None) -> list[int]:
        """Ids of text this package wrote itself (a chat template), where names of special tokens are
        tokens."""
        ids: list[int] = []
        for piece in self._special_pattern.split(text):
            if piece in self._specials:
                ids.append(self._specials[piece])
            else:
                ids += self.encode(piece, after=ids[-1] if ids else after)
        return ids

    def _has_space(self, text: str) -> bool:
        tokens = self._backend.encode(text, add_special_tokens=False).tokens
        return any(token.startswith(_SENTENCEPIECE_SPACE) for token in tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out, spaces kept as they are."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the tokenizer files of transformers into a folder."""
        self.hf.save_pretrained(str(path))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Tokenizer":
        """Read a folder written by `save_pretrained`, or any stock folder that has the special tokens.

        Raises:
            CheckpointError: the folder holds no `tokenizer.json`.
            ConfigError: a special token is missing.
        """
        if not (Path(path) / "tokenizer.json").is_file():
            raise CheckpointError(
                f"{Path(path)} holds no tokenizer.json; a folder with a fast tokenizer of transformers is "
                "expected; check the path"
            )
        return cls(PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True))


def _without_prepended_space(backend: Backend) -> Backend:
    """A copy for text that goes on where other text ends."""
    spec = json.loads(backend.to_str())
    for steps in ("normalizer", "pre_tokenizer"):
        spec[steps] = _prepending_nothing(spec[steps])
    copied = Backend.from_str(json.dumps(spec))
    copied.encode_special_tokens = True  # the file format does not hold it
    return copied


def _prepending_nothing(step: dict[str, Any] | None) -> dict[str, Any] | None:
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    for inner in step.keys() & {"normalizers", "pretokenizers"}:
        changed = [_prepending_nothing(each) for each in step[inner]]
        step = {**step, inner: [each for each in changed if each is not None]}
    return step


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; any unicode text survives encode and decode unchanged.

    The same texts give the same tokenizer. `vocab_size` counts every id, bytes and special tokens included;
    fewer come out when the texts hold fewer pairs.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
    """
    smallest = _NUM_BYTES + len((BOS, EOS)) + NUM_SPECIAL_TOKENS
    if vocab_size < smallest:
        raise ConfigError(
            f"vocab_size={vocab_size} is too small; {_NUM_BYTES} bytes and the special tokens need "
            f"{smallest}; ask for more"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL_TOKENS,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    hf_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    add_special_tokens(hf_tokenizer)
    return Tokenizer(hf_tokenizer)
