"""A moving average of the trained weights, kept beside them and lent out for samples, gates and exports."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WeightAverage:
    """The exponential moving average of named parameters; of sharded ones each rank keeps its part.

    Update number n (from 0) uses the decay min(decay, (1 + n) / (10 + n)), so that the first weights are soon
    forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.num_updates = 0
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in parameters.items()
        }

    def update(self) -> None:
        """Move the averages towards the weights as they are now."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        targets = [_local(parameter.detach()) for parameter in self.parameters.values()]
        torch._foreach_lerp_([_local(value) for value in self.averages.values()], targets, 1.0 - decay)
        self.num_updates += 1

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside the block the parameters hold the averages; after it, what they held before, to the bit."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(own)

    def _fill(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
