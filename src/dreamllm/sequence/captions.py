"""Captions as ids of one length, for CLIP's text tower: BOS, words, EOS, padding; long ones are cut."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from dreamllm.sequence.tokenizer import Tokenizer


class CaptionTokens:
    """Texts -> (n, K) ids. A caption that does not fit loses its end but keeps its EOS."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length

    def fits(self, text: str) -> bool:
        """Whether a text keeps all its words."""
        return len(self._words(text)) <= self._length - 2

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "n K"]:
        """Ids of the texts."""
        rows = []
        for text in texts:
            words = self._words(text)[: self._length - 2]
            ids = [self._tokenizer.bos_id, *words, self._tokenizer.eos_id]
            rows.append(ids + [self._tokenizer.pad_id] * (self._length - len(ids)))
        return torch.tensor(rows)

    def mask(self, ids: Int[Tensor, "n K"]) -> Int[Tensor, "n K"]:
        """1 on words, 0 on padding."""
        return (ids != self._tokenizer.pad_id).long()

    def _words(self, text: str) -> list[int]:
        return self._tokenizer.encode(f" {text}" if text else "")
