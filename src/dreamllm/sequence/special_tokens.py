"""The eight tokens a language model gains to read and draw pictures (DreamLLM, arXiv:2309.11499, section
3.2).

This is the only file that spells them. Their ids are never assumed: published checkpoints use another order
than the one below, so `SpecialTokens.of` reads the ids from the tokenizer at hand.
"""

from dataclasses import astuple, dataclass

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from dreamllm.errors import ConfigError

_SPELLINGS = {
    "pad": "[PAD]",
    "image": "<image>",
    "im_patch": "<im_patch>",
    "im_start": "<im_start>",
    "im_end": "<im_end>",
    "dream": "<dream>",
    "dream_start": "<dream_start>",
    "dream_end": "<dream_end>",
}

NUM_SPECIAL_TOKENS = len(_SPELLINGS)
_OTHER_SPELLINGS = {name: f"<dreamllm:{name}>" for name in _SPELLINGS}
"""For a vocabulary in which the usual spelling is an ordinary word, reached by typing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """Ids of the special tokens in one tokenizer."""

    pad: int
    """Fills rows up to their length."""
    image: int
    """Marks a given picture in stored conversations; never an input of a model."""
    im_patch: int
    """Stands at every slot position; its embedding is overwritten."""
    im_start: int
    """Before the visual tokens of a picture."""
    im_end: int
    """After the visual tokens of a picture."""
    dream: int
    """Marks a drawn picture in stored conversations; never an input of a model."""
    dream_start: int
    """Before the dream queries: the one special token a model predicts, the decision to draw."""
    dream_end: int
    """After the dream queries."""

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids that are never sampled: all but `dream_start`."""
        return tuple(token for token in astuple(self) if token != self.dream_start)

    @classmethod
    def of(cls, hf_tokenizer: PreTrainedTokenizerFast) -> "SpecialTokens":
        """Read the ids from a tokenizer.

        Raises:
            ConfigError: a token is missing, split into pieces, or reachable by typing its name.
        """
        return cls(**{name: _id_of(hf_tokenizer, name) for name in _SPELLINGS})


def add_special_tokens(hf_tokenizer: PreTrainedTokenizerFast) -> int:
    """Add the special tokens a tokenizer lacks, make `[PAD]` its padding, and return how many were added.

    No id that exists is moved. An added token of the same name is made special and keeps its id; an ordinary
    word of the same name stays a word, and the token is spelled otherwise.
    """
    before = len(hf_tokenizer)
    _add(hf_tokenizer, [text for text in _SPELLINGS.values() if not _is_word(hf_tokenizer, text)])
    taken = [name for name, text in _SPELLINGS.items() if _misread(hf_tokenizer, text) is not None]
    _add(hf_tokenizer, [_OTHER_SPELLINGS[name] for name in taken])
    hf_tokenizer.pad_token = _spelling(hf_tokenizer, "pad")
    return len(hf_tokenizer) - before


def _add(hf_tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    tokens = [AddedToken(text, special=True, normalized=False) for text in texts]
    hf_tokenizer.add_tokens(tokens, special_tokens=True)


def _spelling(hf_tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    other = _OTHER_SPELLINGS[name]
    return _SPELLINGS[name] if hf_tokenizer.backend_tokenizer.token_to_id(other) is None else other


def _id_of(hf_tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    spelling = _spelling(hf_tokenizer, name)
    token_id = hf_tokenizer.backend_tokenizer.token_to_id(spelling)
    if token_id is None:
        raise ConfigError(
            f"the tokenizer of {len(hf_tokenizer)} tokens has no {spelling}; all of "
            f"{', '.join(_SPELLINGS.values())} are expected; "
            "call add_special_tokens and resize the embeddings"
        )
    misread = _misread(hf_tokenizer, spelling)
    if misread is not None:
        split, pieces = misread
        raise ConfigError(
            f"{spelling} has id {token_id}, but encodes to {pieces} with split_special_tokens={split}; "
            "it is expected to be one token in markup and ordinary text in a user's words; "
            "register it as special with add_special_tokens"
        )
    return int(token_id)


def _misread(hf_tokenizer: PreTrainedTokenizerFast, spelling: str) -> tuple[bool, list[int]] | None:
    """How a token is read that is not one token in markup, or not ordinary text in a user's words."""
    token_id = hf_tokenizer.backend_tokenizer.token_to_id(spelling)
    for split in (False, True):
        pieces = hf_tokenizer.encode(spelling, add_special_tokens=False, split_special_tokens=split)
        if (pieces == [token_id]) is split:
            return split, pieces
    return None


def _is_word(hf_tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    """Whether text is a token that is reached by typing it, and no added one."""
    token_id = hf_tokenizer.backend_tokenizer.token_to_id(text)
    if token_id is None or token_id in hf_tokenizer.added_tokens_decoder:
        return False
    return bool(hf_tokenizer.encode(text, add_special_tokens=False) == [token_id])
