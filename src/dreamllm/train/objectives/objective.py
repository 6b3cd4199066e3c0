"""The one thing the training loop knows about what it trains.

An objective holds the modules, says what a step's data is (a pure function of the step number), what the
losses are, and what to show and check. Everything else is the loop's: optimizer, precision, accumulation,
checkpoints.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.data import Dataset

from dreamllm.losses.total import Term


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    """Multiplies the run's learning rate."""
    weight_decay: bool = False
    """Whether the run's weight decay applies to this group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    """Whether the trained thing is good enough to build upon, and by which numbers."""

    passed: bool
    metrics: Mapping[str, float]
    message: str
    """One line for a person: what was measured, and against which bar."""


class Objective(Protocol):
    """What a run trains. All parameters that learn are float32: they are the master weights.

    The objective owns the train or eval mode of its modules: the loop never calls `train()` or `eval()`, and
    `sample` and `gate` leave the modes as they found them. They run without gradients.
    """

    @property
    def module(self) -> nn.Module:
        """Everything, frozen parts included. What requires a gradient is what is trained and saved."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The factor of every loss term, by name."""
        ...

    @property
    def data(self) -> Dataset[Sequence[Any]]:
        """Item `step` is that optimizer step's micro-batches, on the CPU; a pure function of the step number.

        Read by loader workers when the run has any, so it must survive pickling and hold no device tensors.
        """
        ...

    def counts(self, micro_batch: Any) -> Mapping[str, int]:
        """What each term of this micro-batch is a mean over (tokens, pictures), without touching the device.

        The keys are those of `losses`; the values are the counts of its terms.
        """
        ...

    def losses(self, micro_batch: Any, generator: torch.Generator) -> Mapping[str, Term]:
        """Every loss term as a sum over its items. Moves the micro-batch to the device itself.

        All randomness comes from `generator`, which lives on the device of the run: draw with
        `device=generator.device`. The global generators are seeded per micro-batch too, for dropout.
        """
        ...

    def document_ids(self, micro_batch: Any) -> tuple[str, ...]:
        """Names of the documents inside, for messages."""
        ...

    def parameter_groups(self) -> Iterable[ParameterGroup]:
        """Every parameter that requires a gradient, each in exactly one group."""
        ...

    def tables(self) -> str:
        """What is logged once at the start: which parts learn and which are frozen."""
        ...

    def sample(self, path: Path, step: int) -> None:
        """Write something a person can look at into the folder `path`, which exists."""
        ...

    def gate(self) -> GateResult:
        """Measure the trained thing against its bar."""
        ...

    def export(self, path: Path) -> None:
        """Write the result into the folder `path`, which exists, as stock parts others can load."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the modules; later calls of `losses`, `sample` and `gate` happen there."""
        ...


@runtime_checkable
class ShardableObjective(Objective, Protocol):
    """An objective whose documents and parameters can be spread over many ranks.

    `losses` reaches every parameter that learns, with zeros where a micro-batch has nothing for it, and what
    it does with the modules does not depend on the content of a micro-batch: ranks that share a parameter
    have to use it together. Nothing holds on to parameters, which are replaced when they are sharded.
    """

    def take_part(self, rank: int, *, num_ranks: int) -> None:
        """From now on `data` is this rank's part of every step."""
        ...

    def nothing(self) -> Any:
        """A micro-batch with counts of zero."""
        ...

    def frozen_parts(self) -> Sequence[nn.Module]:
        """Modules whose frozen parameters every rank keeps whole, because not every micro-batch runs them."""
        ...
