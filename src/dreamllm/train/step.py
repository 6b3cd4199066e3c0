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
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dreamllm.errors import TrainingError
from dreamllm.losses.total import Term, total
from dreamllm.runtime.distributed import ALONE, Ranks
from dreamllm.runtime.seeding import derive_seed, make_generator, seed_everything
from dreamllm.sequence.batch import Batch
from dreamllm.train.objectives.objective import Objective
from dreamllm.train.run_config import Precision
from dreamllm.train.sharding import whole

AUTOCAST: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_NAMES = 8


@dataclass(frozen=True, slots=True)
class _Row:
    """What the host is to know of a micro-batch, still on the device."""

    values: Float[Tensor, " 1+terms"]
    """The loss, and the sum of every term in the order of the weights."""
    by_document: Mapping[str, Float[Tensor, "2 S"]]
    """Sums and counts of the documents, for the terms that tell them."""


@dataclass(frozen=True, slots=True)
class _HostRow:
    """The same on the host."""

    values: list[float]
    by_document: Mapping[str, tuple[list[float], list[float]]]


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
    by_source: Mapping[tuple[str, str], tuple[float, int]]
    """(term, source) -> (sum, count), of this rank's documents."""
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
    """Move the weights once. What it returns is the same on all ranks, but for `by_source`.

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
    rows: list[_Row] = []
    for index, micro_batch in enumerate(micro_batches):
        place = derive_seed(seed, step, index * ranks.size + ranks.rank)
        seed_everything(derive_seed(place, "global"))
        generator = make_generator(place, device)
        always = not ranks.is_alone
        with _autocast(device, precision):
            loss, row = _forward(objective, micro_batch, generator, counts, losses=losses, always=always)
        _descend(loss, scaler)
        rows.append(row)
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = whole(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
    host_rows, norm = _to_host(rows, grad_norm)
    totals = _total(objective, micro_batches, host_rows, step=step, ranks=ranks)
    if math.isfinite(norm):
        _move(optimizer, scaler)
    else:
        ids = ranks.gather(_all_ids(objective, micro_batches))
        _raise_or_rescale(scaler, norm, step=step, ids=[name for names in ids for name in names])
    terms = dict(zip(objective.weights, totals[1:], strict=True))
    return StepResult(
        loss=totals[0],
        terms={name: value / counts[name] for name, value in terms.items() if counts[name]},
        counts=dict(counts),
        by_source=_by_source(micro_batches, host_rows),
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
    counts: Mapping[str, int],
    *,
    losses: LossesOf | None,
    always: bool,
) -> tuple[Float[Tensor, ""], _Row]:
    """The loss to descend, and what the host is to know, detached and in float32.

    Where nothing is supervised, both are zeros and the model does not run, unless it is `always` to.
    """
    own = objective.counts(micro_batch)
    if not always and not any(own.values()):
        zeros = torch.zeros(1 + len(objective.weights), device=generator.device)
        return zeros[0], _Row(zeros, {})
    terms = (losses or objective.losses)(micro_batch, generator)
    seen = {name: term.count for name, term in terms.items()}
    if seen != dict(own) or set(seen) != set(objective.weights):
        raise TrainingError(
            f"the loss terms count {seen}, expected the counts said beforehand, {dict(own)}, and the names "
            f"of the weights, {sorted(objective.weights)}; mend its `counts`, `losses` or `weights`"
        )
    loss = total(terms, counts=counts, weights=objective.weights)
    sums = [terms[name].sum.detach().float() for name in objective.weights]
    values = torch.stack([loss.detach().to(sums[0]), *sums])
    told = {name: t.by_document for name, t in terms.items() if t.by_document is not None}
    return loss, _Row(values, told)


def _descend(loss: Float[Tensor, ""], scaler: torch.amp.GradScaler | None) -> None:
    """Add the gradient of a micro-batch."""
    if loss.requires_grad:
        (loss if scaler is None else scaler.scale(loss)).backward()


def _to_host(rows: Sequence[_Row], norm: Tensor) -> tuple[list[_HostRow], float]:
    """Everything the host wants to know, in one transfer, before anything moves."""
    tables = [table for row in rows for table in (row.values, *row.by_document.values())]
    flat = torch.cat([*(t.flatten() for t in tables), norm.detach().reshape(1).to(tables[0])]).tolist()
    numbers = iter(flat)

    def take(size: int) -> list[float]:
        return list(islice(numbers, size))

    host_rows = [
        _HostRow(
            take(len(row.values)),
            {name: (take(t.shape[1]), take(t.shape[1])) for name, t in row.by_document.items()},
        )
        for row in rows
    ]
    return host_rows, next(numbers)


def _by_source(
    micro_batches: Sequence[Any], rows: Sequence[_HostRow]
) -> dict[tuple[str, str], tuple[float, int]]:
    """The terms of every source; of micro-batches that know of sources."""
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for micro_batch, row in zip(micro_batches, rows, strict=True):
        if not isinstance(micro_batch, Batch):
            continue
        for name, table in row.by_document.items():
            for source, total_of, count in zip(micro_batch.sources, *table, strict=True):
                before = sums.get((name, source), (0.0, 0))
                sums[name, source] = (before[0] + total_of, before[1] + int(count))
    return {key: value for key, value in sums.items() if value[1]}


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
    rows: Sequence[_HostRow],
    *,
    step: int,
    ranks: Ranks,
) -> list[float]:
    """The loss and the sum of every term over all micro-batches of all ranks, if all of them are finite."""
    faults = [
        (dict(zip(objective.weights, row.values[1:], strict=True)), _at_fault(objective, micro_batch, row))
        for micro_batch, row in zip(micro_batches, rows, strict=True)
        if not all(math.isfinite(value) for value in row.values)
    ]
    columns = zip(*(row.values for row in rows), strict=True)
    sums = [0.0 if faults else math.fsum(column) for column in columns]
    *totals, num_faults = ranks.sum([*sums, len(faults)])
    if num_faults:
        terms, ids = next(fault for faults_of_rank in ranks.gather(faults) for fault in faults_of_rank)
        raise TrainingError(
            f"the loss of step {step} is not finite: sums {terms} for {_named(ids)}, expected finite "
            "numbers; look at these documents, lower optim.lr or use a wider precision; no weight has moved "
            "in this step"
        )
    return totals


def _at_fault(objective: Objective, micro_batch: Any, row: _HostRow) -> tuple[str, ...]:
    """The documents whose own loss is not finite; where that is not told, all of the micro-batch."""
    ids = objective.document_ids(micro_batch)
    worst = {
        ids[place]
        for sums, _ in row.by_document.values()
        for place, value in enumerate(sums)
        if not math.isfinite(value)
    }
    return tuple(name for name in dict.fromkeys(ids) if name in worst) or ids


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
