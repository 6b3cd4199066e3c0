"""The joint vocabulary of JAM (arXiv:2309.15564, section 3.1): words and picture codes, one table.

    0 .. first_code - 1                       text, special tokens, and rows that only pad
    first_code .. first_code + num_codes - 1  the codes of the image tokenizer

Three special tokens join the two: `<break>` stands before every picture, and after one that something
follows; `<mask>` stands where a span was taken out, and `<infill>` before that span at the end of the
document (CM3, arXiv:2201.07520). This is the only file that spells them; their ids are read from the
tokenizer at hand.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken

from dreamllm.errors import ConfigError

if TYPE_CHECKING:  # recipes name configs of `cm3.py`, and are read before anything heavy
    from transformers import PreTrainedTokenizerFast

_SPELLINGS = {"break_": "<break>", "mask": "<mask>", "infill": "<infill>"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTokens:
    """Ids of the joint vocabulary that are no words."""

    break_: int
    """Opens a picture, and closes one that something follows."""
    mask: int
    """Where a span was taken out."""
    infill: int
    """Before the span that was taken out."""
    first_code: int
    """Id of code 0."""
    num_codes: int
    """Codes of the image tokenizer."""
    codes_per_picture: int
    """G: positions of a picture, in raster order."""

    def __post_init__(self) -> None:
        specials = {self.break_, self.mask, self.infill}
        if (
            len(specials) < 3
            or max(specials) >= self.first_code
            or min(self.num_codes, self.codes_per_picture) < 1
        ):
            raise ConfigError(
                f"<break> {self.break_}, <mask> {self.mask} and <infill> {self.infill} with {self.num_codes} "
                f"codes from {self.first_code} on, {self.codes_per_picture} a picture; expected three ids, "
                "the codes after every token, and at least one; make the vocabulary with add_code_tokens"
            )

    @property
    def vocab_size(self) -> int:
        """Rows that a model needs."""
        return self.first_code + self.num_codes

    @property
    def picture_length(self) -> int:
        """Positions of a picture with the `<break>` before and the one after it: G + 2."""
        return self.codes_per_picture + 2

    def is_code(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are codes."""
        return (ids >= self.first_code) & (ids < self.first_code + self.num_codes)

    @classmethod
    def of(
        cls,
        hf_tokenizer: "PreTrainedTokenizerFast",
        *,
        first_code: int,
        num_codes: int,
        codes_per_picture: int,
    ) -> "CodeTokens":
        """Read the ids of the special tokens from a tokenizer.

        Raises:
            ConfigError: one is missing, or a code would have the id of a token.
        """
        backend = hf_tokenizer.backend_tokenizer
        ids = {name: backend.token_to_id(text) for name, text in _SPELLINGS.items()}
        missing = [text for name, text in _SPELLINGS.items() if ids[name] is None]
        if missing:
            raise ConfigError(
                f"the tokenizer of {len(hf_tokenizer)} tokens has no {', '.join(missing)}, which a joint "
                "vocabulary of words and picture codes needs; call add_code_tokens and resize the embeddings"
            )
        highest = max(hf_tokenizer.get_vocab().values())
        if highest >= first_code:
            raise ConfigError(
                f"code 0 has id {first_code}, but the tokenizer uses ids up to {highest}; expected the codes "
                f"after every token; let first_code be at least {highest + 1}"
            )
        return cls(
            **{name: int(token) for name, token in ids.items()},
            first_code=first_code,
            num_codes=num_codes,
            codes_per_picture=codes_per_picture,
        )


def add_code_tokens(hf_tokenizer: "PreTrainedTokenizerFast") -> int:
    """Add `<break>`, `<mask>` and `<infill>` where a tokenizer lacks them; returns how many were added."""
    before = len(hf_tokenizer)
    tokens = [AddedToken(text, special=True, normalized=False) for text in _SPELLINGS.values()]
    hf_tokenizer.add_tokens(tokens, special_tokens=True)
    return len(hf_tokenizer) - before
