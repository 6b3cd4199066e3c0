"""Into two towers and out of them: the input table and the head of `jam_cross.py`.

Ids below `first_code` are words, the others codes; special tokens of pictures (`<break> <mask> <infill>`) are
words by their ids, but the image tower speaks them. The input is `[text tower's, image tower's, flag]`, of
width d_text + d_image + 1; the flag is 1 where the text tower reads the position. The output reads both final
states.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dreamllm.models.cross_block import Start, StartedLinear

if TYPE_CHECKING:
    from dreamllm.models.jam_cross import JamCrossConfig


class TwoTowerEmbedding(nn.Module):
    """Ids -> what both towers read, and whether the text tower does.

    `per_tower`: every tower has its parent's whole table. `shared`: one table, words from the text parent and
    codes from the image parent. `mapped`: the same, and the image tower reads words through a matrix.
    """

    def __init__(self, config: "JamCrossConfig") -> None:
        super().__init__()
        self.first_code = config.first_code
        self.special_ids = tuple(config.special_ids)
        self.is_shared = config.embeddings != "per_tower"
        self.text_skips_images = config.text_skips_images
        text_size, image_size = config.text_config.hidden_size, config.image_config.hidden_size
        num_words = config.first_code if self.is_shared else config.vocab_size
        num_others = config.vocab_size - config.first_code if self.is_shared else config.vocab_size
        self.text = nn.Embedding(num_words, text_size)
        self.image = nn.Embedding(num_others, image_size)
        self.text_map = (
            nn.Linear(text_size, image_size, bias=False) if config.embeddings == "mapped" else None
        )
        self.embedding_dim = text_size + image_size + 1

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... E"]:
        """`[text tower's, image tower's, flag]`."""
        is_code = (ids >= self.first_code)[..., None]
        if self.is_shared:
            words = self.text(ids.clamp(max=self.first_code - 1))
            text = torch.where(is_code, self.image((ids - self.first_code).clamp(min=0)), words)
            image = text
            if self.text_map is not None:
                image = torch.where(is_code | self._is_special(ids), text, self.text_map(text))
        else:
            text, image = self.text(ids), self.image(ids)
        is_read = ~is_code if self.text_skips_images else torch.ones_like(is_code)
        return torch.cat([text, image, is_read.to(text.dtype)], dim=-1)

    def word_rows(self) -> Float[Tensor, "words Dt"]:
        """Rows of words, as a tied head reads them."""
        return self.text.weight[: self.first_code]

    def special_rows(self) -> Float[Tensor, "specials Di"]:
        """Rows of the special tokens of pictures, which are the image tower's."""
        table = self.text if self.is_shared else self.image
        return torch.stack([table.weight[token] for token in self.special_ids])

    def code_rows(self) -> Float[Tensor, "codes Di"]:
        """Rows of codes."""
        return self.image.weight if self.is_shared else self.image.weight[self.first_code :]

    def _is_special(self, ids: Tensor) -> Tensor:
        found = torch.zeros_like(ids, dtype=torch.bool)
        for token in self.special_ids:
            found = found | (ids == token)
        return found[..., None]


class TwoTowerHead(nn.Module):
    """Final states of both towers, side by side -> logits.

    A projection reads both: `split` has one for words that begins as the text tower's state and one for codes
    and special tokens that begins as the image tower's; `half` and `random` have one for all, as in the
    paper. Then come the rows of words and of codes, each from its own parent: the input table's where it is
    tied.
    """

    def __init__(self, config: "JamCrossConfig", embedding: TwoTowerEmbedding) -> None:
        super().__init__()
        self.special_ids = tuple(config.special_ids)
        text_size, image_size = config.text_config.hidden_size, config.image_config.hidden_size
        both = text_size + image_size
        self.text_projection = self.image_projection = self.projection = None
        if config.head == "split":
            self.text_projection = StartedLinear(both, text_size, start="first")
            self.image_projection = StartedLinear(both, image_size, start="last")
        else:
            start: Start = "mean" if config.head == "half" else "normal"
            self.projection = StartedLinear(both, text_size, start=start)
        self.text_rows = self.image_rows = None
        if not config.tie_word_embeddings:
            others = len(config.special_ids) + config.vocab_size - config.first_code
            self.text_rows = nn.Linear(text_size, config.first_code, bias=False)
            self.image_rows = nn.Linear(image_size, others, bias=False)
        self._tied = (embedding,)  # in a tuple, so that its tensors are not this module's as well

    def forward(self, states: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits over words, then codes."""
        if self.text_projection is not None and self.image_projection is not None:
            text, image = self.text_projection(states), self.image_projection(states)
        else:
            assert self.projection is not None
            text = image = self.projection(states)
        words, specials, codes = self._rows()
        logits = torch.cat([F.linear(text, words), F.linear(image, codes)], dim=-1)
        spoken = F.linear(image, specials)
        for number, token in enumerate(self.special_ids):
            logits[..., token] = spoken[..., number]
        return logits

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of words, of special tokens, of codes."""
        if self.text_rows is None or self.image_rows is None:
            table = self._tied[0]
            return table.word_rows(), table.special_rows(), table.code_rows()
        count = len(self.special_ids)
        return self.text_rows.weight, self.image_rows.weight[:count], self.image_rows.weight[count:]
