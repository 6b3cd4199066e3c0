"""The dream queries: Q learned vectors that stand in a dream slot and, seen through the language model, say
what to draw. DreamLLM (arXiv:2309.11499), section 3.2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DreamQueries(nn.Module):
    """One set of queries, the same in every slot."""

    def __init__(self, num_queries: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, num_queries, width))
        nn.init.normal_(self.queries, std=0.02)

    def forward(self, num_images: int) -> Float[Tensor, "M Q D"]:
        """The queries once for each picture to draw; a view, not a copy."""
        return self.queries.expand(num_images, -1, -1)
