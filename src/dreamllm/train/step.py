"""One optimizer step, computed: accumulate gradients over micro-batches, check, clip, move. No I/O.

Each loss term is divided by its count over the WHOLE step, not by its count in the micro-batch, so the way a
step is cut into micro-batches, or spread over ranks, does not change the gradient. Ranks run equally many
micro-batches, empty ones where they have none left, for sharded parameters are gathered by all together.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dreamllm.errors import TrainingError
from dreamllm.losses.total import Term, total
from dreamllm.runtime.distributed import ALONE, Ranks
from dreamllm.runtime.seeding import derive_seed, make_generator, seed_everything
from dreamllm.train.objectives.objective import Objective
from dreamllm.train.run_config import Precision
from dreamllm.train.sharding import whole

AUTOCAST: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_NAMES = 8

LossesOf = Callable[[Any, torch.Generator], Mapping[str, Term]]
"""An objective's `losses`, or what stands for it where its parameters are sharded."""


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
    ranks: Ranks = ALONE,
    losses: LossesOf | None = None,
    nothing: Any = None,
) -> StepResult:
    """Move the weights once. What it returns is the same on all ranks.

    Args:
        ranks: those that take the step together, each with its own micro-batches.
        losses: what computes the losses, if it is not the objective itself.
        nothing: the micro-batch that a rank runs when others have more; with several ranks only.

    Raises:
        TrainingError: a loss or the gradient is not finite on any rank, or the step has nothing to learn
            from. No weight and no optimizer state has moved.
    """
    counts, most = _agree(objective, micro_batches, step=step, ranks=ranks)
    micro_batches = [*micro_batches, *[nothing] * (most - len(micro_batches))]
    optimizer.zero_grad(set_to_none=True)
    rows = []
    for index, micro_batch in enumerate(micro_batches):
        place = derive_seed(seed, step, index * ranks.size + ranks.rank)
        seed_everything(derive_seed(place, "global"))
        generator = make_generator(place, device)
        with _autocast(device, precision):
            always = not ranks.is_alone
            loss, sums = _forward(
                objective, micro_batch, generator, counts=counts, losses=losses, always=always
            )
        rows.append(_descend(loss, sums, scaler))
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = whole(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
    host_rows, norm = _to_host(rows, grad_norm)
    totals = _total(objective, micro_batches, host_rows, step=step, ranks=ranks)
    if math.isfinite(norm):
        _move(optimizer, scaler)
    else:
        ids = [name for ids in ranks.gather(_all_ids(objective, micro_batches)) for name in ids]
        _raise_or_rescale(scaler, norm, step=step, ids=ids)
    terms = dict(zip(objective.weights, totals[1:], strict=True))
    return StepResult(
        loss=totals[0],
        terms={name: value / counts[name] for name, value in terms.items() if counts[name]},
        counts=dict(counts),
        grad_norm=norm,
        is_skipped=not math.isfinite(norm),
    )


def _autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST[precision])


def _forward(
    objective: Objective,
    micro_batch: Any,
    generator: torch.Generator,
    *,
    counts: Mapping[str, int],
    losses: LossesOf | None,
    always: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, " terms"]]:
    """The loss to descend, and the detached float32 sum of every term in the order of the weights.

    Where nothing is supervised, both are zeros and the model does not run, unless it is `always` to.
    """
    own = objective.counts(micro_batch)
    if not always and not any(own.values()):
        zeros = torch.zeros(1 + len(objective.weights), device=generator.device)
        return zeros[0], zeros[1:]
    terms = (losses or objective.losses)(micro_batch, generator)
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


def _to_host(rows: list[Tensor], norm: Tensor) -> tuple[list[list[float]], float]:
    """Everything the host wants to know, in one transfer, before anything moves."""
    table = torch.cat([torch.stack(rows).flatten(), norm.detach().reshape(1).to(rows[0])]).tolist()
    last, width = table.pop(), len(rows[0])
    return [table[start : start + width] for start in range(0, len(table), width)], last


def _agree(
    objective: Objective, micro_batches: Sequence[Any], *, step: int, ranks: Ranks
) -> tuple[dict[str, int], int]:
    """The counts of the whole step, and the most micro-batches that a rank has."""
    counts: Counter[str] = Counter(dict.fromkeys(objective.weights, 0))
    for micro_batch in micro_batches:
        counts.update(objective.counts(micro_batch))
    names = sorted(counts)
    sums = ranks.sum([counts[name] for name in names])
    [most] = ranks.max([len(micro_batches)])
    whole_step = {name: int(value) for name, value in zip(names, sums, strict=True)}
    if not any(whole_step[name] and weight for name, weight in objective.weights.items()):
        raise TrainingError(
            f"step {step} has no supervised item in {int(most)} micro-batches (counts {whole_step}), "
            "expected at least one with a weight; check the data mixture and the learn flags of its documents"
        )
    return whole_step, int(most)


def _total(
    objective: Objective,
    micro_batches: Sequence[Any],
    rows: list[list[float]],
    *,
    step: int,
    ranks: Ranks,
) -> list[float]:
    """The loss and the sum of every term over all micro-batches of all ranks, if all of them are finite."""
    faults = [
        (dict(zip(objective.weights, row[1:], strict=True)), objective.document_ids(micro_batch))
        for micro_batch, row in zip(micro_batches, rows, strict=True)
        if not all(math.isfinite(value) for value in row)
    ]
    columns = [0.0 if faults else math.fsum(column) for column in zip(*rows, strict=True)]
    *totals, num_faults = ranks.sum([*columns, len(faults)])
    if num_faults:
        terms, ids = next(fault for faults_of_rank in ranks.gather(faults) for fault in faults_of_rank)
        raise TrainingError(
            f"the loss of step {step} is not finite: sums {terms} for {_named(ids)}, expected finite "
            "numbers; look at these documents, lower optim.lr or use a wider precision; no weight has moved "
            "in this step"
        )
    return totals


def _move(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _raise_or_rescale(
    scaler: torch.amp.GradScaler | None, norm: float, *, step: int, ids: Sequence[str]
) -> None:
    """A gradient that is not finite is an error, unless it came of a loss scale that can be lower."""
    if scaler is not None and scaler.get_scale() > 1.0:
        scaler.update()
        return
    raise TrainingError(
        f"the gradient norm of step {step} is {norm} for {_named(ids)}, expected a finite number; look at "
        "these documents, lower optim.lr or use a wider precision; no weight has moved in this step"
    )


def _all_ids(objective: Objective, micro_batches: Sequence[Any]) -> tuple[str, ...]:
    return tuple(name for micro_batch in micro_batches for name in objective.document_ids(micro_batch))


def _named(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - MAX_NAMES} more" if len(ids) > MAX_NAMES else ""
    return f"documents {', '.join(ids[:MAX_NAMES])}{more}"
