"""Captions as ids of one length, for CLIP's text tower: BOS, words, EOS; long ones are cut.

Short ones are filled with more EOS, as CLIP's own tokenizer does: each of them stands for the whole caption,
so a U-Net that attends to all positions hears no noise from padding. The tower is causal, so none of them
changes the first.
"""

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
            rows.append(ids + [self._tokenizer.eos_id] * (self._length - len(ids)))
        return torch.tensor(rows)

    def _words(self, text: str) -> list[int]:
        return self._tokenizer.encode(f" {text}" if text else "")
