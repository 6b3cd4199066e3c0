"""Random numbers for a batch of pictures: from one generator for all, or from one of each picture's own.

With a generator a picture, what a picture is given depends on nothing but its seed: not on its neighbours,
nor on how a step is cut into batches. Generators on the CPU give the same numbers on every device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One for all pictures, in their order; one a picture; or None, which is torch's global one."""


def draw_rows(
    num_rows: int,
    generators: Generators,
    draw: Callable[[int, torch.Generator | None], Tensor],
) -> Tensor:
    """The rows that `draw(number of rows, generator)` makes, of one generator or, in order, of each.

    Several generators share the rows evenly: the first rows are the first picture's.
    """
    if generators is None or isinstance(generators, torch.Generator):
        return draw(num_rows, generators)
    each = num_rows // max(len(generators), 1)
    assert each * len(generators) == num_rows  # as many rows for every picture
    return torch.cat([draw(each, generator) for generator in generators])


def device_of(generators: Generators, *, otherwise: torch.device) -> torch.device:
    """Where the numbers are drawn."""
    if generators is None or (isinstance(generators, Sequence) and not generators):
        return otherwise
    return (generators if isinstance(generators, torch.Generator) else generators[0]).device


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator on the CPU for every seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
