"""One optimizer step, computed: accumulate gradients over micro-batches, check, clip, move. No I/O.

Each loss term is divided by its count over the WHOLE step, not by its count in the micro-batch, so the way a
step is cut into micro-batches does not change the gradient.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dreamllm.errors import TrainingError
from dreamllm.losses.total import total
from dreamllm.runtime.seeding import derive_seed, make_generator, seed_everything
from dreamllm.train.objectives.objective import Objective
from dreamllm.train.run_config import Precision

AUTOCAST: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_NAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    loss: float
    """The weighted sum that was descended."""
    terms: Mapping[str, float]
    """Each term's mean over the step; a term without items is left out."""
    counts: Mapping[str, int]
    """What each term was a mean over."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    is_skipped: bool
    """float16 only: the scaled gradient overflowed, the scale was halved and no weight moved."""


def optimizer_step(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Any],
    *,
    step: int,
    seed: int,
    device: torch.device,
    clip_norm: float,
    precision: Precision = "float32",
    scaler: torch.amp.GradScaler | None = None,
) -> StepResult:
    """Move the weights once.

    Raises:
        TrainingError: a loss or the gradient is not finite, or the step has nothing to learn from. No weight
            and no optimizer state has moved.
    """
    counts: Counter[str] = Counter()
    for micro_batch in micro_batches:
        counts.update(objective.counts(micro_batch))
    if not any(counts[name] and weight for name, weight in objective.weights.items()):
        raise TrainingError(
            f"step {step} has no supervised item in {len(micro_batches)} micro-batches "
            f"(counts {dict(counts)}), expected at least one with a weight; check the data mixture "
            "and the learn flags of its documents"
        )
    optimizer.zero_grad(set_to_none=True)
    names = tuple(objective.weights)
    rows = []
    for index, micro_batch in enumerate(micro_batches):
        place = derive_seed(seed, step, index)
        seed_everything(derive_seed(place, "global"))
        generator = make_generator(place, device)
        with _autocast(device, precision):
            loss, sums = _forward(objective, micro_batch, generator, counts=counts)
        rows.append(_descend(loss, sums, scaler))
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    # One transfer brings everything the host wants to know, before anything moves.
    table = torch.cat([torch.stack(rows).flatten(), grad_norm.detach().reshape(1).to(rows[0])]).tolist()
    norm = table.pop()
    width = len(names) + 1
    host_rows = [table[start : start + width] for start in range(0, len(table), width)]
    _check_losses(objective, micro_batches, host_rows, step)
    is_skipped = _move(optimizer, scaler, norm, step=step, ids=_all_ids(objective, micro_batches))
    totals = [math.fsum(column) for column in zip(*host_rows, strict=True)]
    return StepResult(
        loss=totals[0],
        terms={
            name: value / counts[name] for name, value in zip(names, totals[1:], strict=True) if counts[name]
        },
        counts=dict(counts),
        grad_norm=norm,
        is_skipped=is_skipped,
    )


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def _forward(
    objective: Objective, micro_batch: Any, generator: torch.Generator, *, counts: Mapping[str, int]
) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
    """The loss to descend, and the detached float32 sum of every term in the order of the weights.

    Where nothing is supervised, both are zeros and the model does not run.
    """
    own = objective.counts(micro_batch)
    if not any(own.values()):
        zeros = torch.zeros(1 + len(objective.weights), device=generator.device)
        return zeros[0], zeros[1:]
    terms = objective.losses(micro_batch, generator)
    seen = {name: term.count for name, term in terms.items()}
    if seen != dict(own) or set(seen) != set(objective.weights):
        raise TrainingError(
            f"the loss terms count {seen}, expected the counts said beforehand, {dict(own)}, and the names "
            f"of the weights, {sorted(objective.weights)}; mend its `counts`, `losses` or `weights`"
        )
    sums = torch.stack([terms[name].sum.detach().float() for name in objective.weights])
    return total(terms, counts=counts, weights=objective.weights), sums


def _descend(
    loss: Float[Tensor, ""], sums: Float[Tensor, " terms"], scaler: torch.amp.GradScaler | None
) -> Float[Tensor, " row"]:
    """Add the gradient of a micro-batch; the loss and the sums as one row for the host."""
    if loss.requires_grad:
        (loss if scaler is None else scaler.scale(loss)).backward()
    return torch.cat([loss.detach().reshape(1).to(sums), sums])


def _check_losses(
    objective: Objective, micro_batches: Sequence[Any], rows: list[list[float]], step: int
) -> None:
    for micro_batch, row in zip(micro_batches, rows, strict=True):
        if not all(math.isfinite(value) for value in row):
            terms = dict(zip(objective.weights, row[1:], strict=True))
            raise TrainingError(
                f"the loss of step {step} is not finite: sums {terms} for "
                f"{_named(objective.document_ids(micro_batch))}, expected finite numbers; look at "
                "these documents, lower optim.lr or use a wider precision; no weight has moved in this step"
            )


def _move(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    norm: float,
    *,
    step: int,
    ids: tuple[str, ...],
) -> bool:
    """Let the optimizer move; true if the scaler skipped the step because its scale was too large."""
    if math.isfinite(norm):
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return False
    if scaler is not None and scaler.get_scale() > 1.0:
        scaler.update()
        return True
    raise TrainingError(
        f"the gradient norm of step {step} is {norm} for {_named(ids)}, expected a finite number; look at "
        "these documents, lower optim.lr or use a wider precision; no weight has moved in this step"
    )


def _all_ids(objective: Objective, micro_batches: Sequence[Any]) -> tuple[str, ...]:
    return tuple(name for micro_batch in micro_batches for name in objective.document_ids(micro_batch))


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_NAMES} more" if len(ids) > MAX_NAMES else ""
    return f"documents {', '.join(ids[:MAX_NAMES])}{more}"
