"""Which of a run's processes this one is, and what they agree upon.

The one file that reads the environment: RANK, WORLD_SIZE, LOCAL_RANK and how torchrun starts ranks again. A
process on its own needs none of them: it agrees with itself at once and no process group is made. What is
agreed upon are a few numbers on the CPU (gloo); tensors of a model are the business of FSDP.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dreamllm.errors import ConfigError, DreamLLMError

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among those of the run. Every method must be called by all of them, in one order."""

    rank: int = 0
    """Its number."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Its number on its machine, which is that of its GPU."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and logs."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value, summed over the ranks in float64."""
        return self._reduced(values, "SUM")

    def max(self, values: Sequence[float]) -> list[float]:
        """Each value's largest over the ranks."""
        return self._reduced(values, "MAX")

    def any(self, *, flag: bool) -> bool:
        """Whether it holds on one of them."""
        return bool(self.max([float(flag)])[0])

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in order."""
        if self.is_alone:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Value) -> Value:
        """The main rank's value, on all of them."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Go on when all have come here."""
        self.sum([0.0])

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """An error of this package that is raised in the block on one of them is raised on all of them.

        Otherwise the others would wait for the one that has left. Nothing in the block may wait for others
        after what can fail.
        """
        error: DreamLLMError | None = None
        try:
            yield
        except DreamLLMError as raised:
            error = raised
        if self.any(flag=error is not None):
            first = next(each for each in self.gather(error) if each is not None)
            if first is error:
                raise first
            raise first from error

    def _reduced(self, values: Sequence[float], operation: str) -> list[float]:
        if self.is_alone:
            return list(values)
        import torch
        import torch.distributed as dist

        table = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(table, op=getattr(dist.ReduceOp, operation))
        return table.tolist()


ALONE = Ranks()
"""One process."""


def ranks_of(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The ranks that a launcher such as torchrun has set; one process where it has set none.

    Raises:
        ConfigError: they are no numbers, or do not fit together.
    """
    found = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if found["WORLD_SIZE"] is None or found["WORLD_SIZE"] == "1":
        return ALONE
    numbers = [int(value) if value is not None and value.isdecimal() else -1 for value in found.values()]
    rank, size, local_rank = numbers
    if not 0 <= rank < size or local_rank < 0:
        raise ConfigError(
            f"the environment has {found}, expected 0 <= RANK < WORLD_SIZE and a LOCAL_RANK; start with "
            "`torchrun --nproc-per-node N ...`, or unset all three for one process"
        )
    return Ranks(rank=rank, size=size, local_rank=local_rank)


def restarts_will_hang(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun may start ranks again and would give them a store that others have used."""
    restarts = environment.get("TORCHELASTIC_MAX_RESTARTS", "0")
    return restarts != "0" and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@contextmanager
def joined(ranks: Ranks, *, timeout_min: int = 60) -> Iterator[None]:
    """Inside the block the ranks can talk: tensors of GPUs over NCCL, everything else over gloo.

    A rank that waits longer than `timeout_min` minutes for the others fails. Blocks may be nested; for one
    process there is nothing to join.
    """
    import torch
    import torch.distributed as dist

    if ranks.is_alone or dist.is_initialized():
        yield
        return
    if ranks.is_main and restarts_will_hang():
        logger.warning(
            "torchrun is to start ranks again (--max-restarts) with the store of the first start, which "
            "tells new ranks where the lost ones were, so that they fail or hang (pytorch issue 135712); "
            "start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and --rdzv-backend c10d or --standalone"
        )
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=timedelta(minutes=timeout_min)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
