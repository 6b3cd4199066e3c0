import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.line_objective import LineConfig, LineObjective, Points
from torch import nn

from dreamllm.errors import TrainingError
from dreamllm.losses.total import Term
from dreamllm.train.objectives.objective import ParameterGroup
from dreamllm.train.optim import build_optimizer
from dreamllm.train.run_config import OptimConfig
from dreamllm.train.step import StepResult, optimizer_step

CPU = torch.device("cpu")


def take_step(
    objective: LineObjective,
    micro_batches: list[Points],
    *,
    clip_norm: float = math.inf,
    precision: str = "float32",
    scaler: torch.amp.GradScaler | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> StepResult:
    optimizer = optimizer or build_optimizer(
        objective.module, objective.parameter_groups(), OptimConfig(lr=0.1)
    )
    return optimizer_step(
        objective,
        optimizer,
        micro_batches,
        step=3,
        seed=0,
        device=CPU,
        clip_norm=clip_norm,
        precision=precision,  # type: ignore[arg-type]
        scaler=scaler,
    )


def plain_objective() -> LineObjective:
    """Without anything random and without the batch norm's dependence on the cut."""
    objective = LineObjective(LineConfig(noise=0.0, dropout=0.0))
    objective.module.eval()
    return objective


def grads(objective: LineObjective) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in objective.module.named_parameters() if p.grad is not None}


def weights(objective: LineObjective) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in objective.module.named_parameters()}


def test_the_gradient_does_not_depend_on_the_cut_into_micro_batches() -> None:
    """Three and five points: a mean of the two means would weigh the points differently."""
    parts = plain_objective().data[0]
    whole = Points(
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        ids=(),
    )
    cut, uncut = plain_objective(), plain_objective()
    # The size term counts once a micro-batch, so its sum over two is divided by two: the same mean.
    result_cut = take_step(cut, parts)
    result_uncut = take_step(uncut, [whole])

    torch.testing.assert_close(grads(cut), grads(uncut))
    assert result_cut.loss == pytest.approx(result_uncut.loss, rel=1e-5)
    assert result_cut.counts == {"error": 8, "size": 2}


def test_the_loss_is_the_weighted_sum_of_the_reported_means() -> None:
    objective = plain_objective()
    points = objective.data[0]
    with torch.no_grad():
        squares = [
            (objective._predict(torch.from_numpy(p.x)) - torch.from_numpy(p.y)).square() for p in points
        ]
        size = objective.module.head.weight.square().sum().item()
    error = torch.cat(squares).mean().item()

    result = take_step(objective, points)

    assert result.terms == pytest.approx({"error": error, "size": size}, rel=1e-5)
    assert result.loss == pytest.approx(error + 0.01 * size, rel=1e-5)


def test_clipping_scales_the_gradient_to_the_norm_and_reports_the_norm_before() -> None:
    free, clipped = plain_objective(), plain_objective()
    result_free = take_step(free, free.data[0])

    result = take_step(clipped, clipped.data[0], clip_norm=0.01)

    assert result.grad_norm == result_free.grad_norm > 0.01
    norm = torch.cat([grad.flatten() for grad in grads(clipped).values()]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_frozen_parameters_do_not_move() -> None:
    objective = LineObjective()
    before = weights(objective)

    take_step(objective, objective.data[0])

    after = weights(objective)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias", "offset", "norm.weight", "norm.bias"}


def test_randomness_follows_from_seed_and_step_not_from_what_was_drawn_before() -> None:
    first, second = LineObjective(), LineObjective()
    result_first = take_step(first, first.data[0])
    torch.rand(17)
    np.random.default_rng().normal()

    result_second = take_step(second, second.data[0])

    assert result_first == result_second
    assert all(
        torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True)
    )


def test_a_loss_that_is_not_a_number_names_its_documents_and_moves_nothing() -> None:
    objective = LineObjective(LineConfig(bad_step=4))
    optimizer = build_optimizer(objective.module, objective.parameter_groups(), OptimConfig(lr=0.1))
    before = weights(objective)

    with pytest.raises(TrainingError) as caught:
        take_step(objective, objective.data[4], optimizer=optimizer)

    message = str(caught.value)
    assert "loss of step 3 is not finite" in message
    assert "point-4-4" in message
    assert "point-4-0" not in message  # that micro-batch was sound
    assert not optimizer.state
    assert all(torch.equal(before[name], value) for name, value in weights(objective).items())


class _Root(nn.Module):
    """A finite loss with an infinite gradient: the square root at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class RootObjective(LineObjective):
    def __init__(self) -> None:
        super().__init__()
        self.root = _Root()
        self.module = self.root  # type: ignore[assignment]

    def losses(self, micro_batch: Points, generator: torch.Generator) -> dict[str, Term]:
        root = self.root.weight.sqrt().sum()
        return {"error": Term(root, len(micro_batch.x)), "size": Term(root, 1)}

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(name="all", parameters=[self.root.weight])]


class TellingObjective(LineObjective):
    """Tells the losses of its documents, in batches that know no sources."""

    def losses(self, micro_batch: Points, generator: torch.Generator) -> dict[str, Term]:
        terms = super().losses(micro_batch, generator)
        size = len(micro_batch.x)
        told = Term.of_items(terms["error"].sum.repeat(size) / size, torch.arange(size), num_documents=size)
        return {**terms, "error": told}


def test_documents_without_sources_are_counted_for_none() -> None:
    objective = TellingObjective(LineConfig(noise=0.0, dropout=0.0))

    result = take_step(objective, objective.data[0])

    assert result.by_source == {}
    assert result.counts["error"] == sum(len(points.x) for points in objective.data[0])


def test_a_gradient_that_is_not_finite_names_the_step_and_moves_nothing() -> None:
    objective = RootObjective()

    with pytest.raises(TrainingError, match=r"gradient norm of step 3 is inf for documents point-0-0, "):
        take_step(objective, objective.data[0])

    assert objective.root.weight.item() == 0.0


def test_an_overflow_of_the_loss_scale_skips_the_step_and_lowers_the_scale() -> None:
    objective = RootObjective()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    result = take_step(objective, objective.data[0], precision="float16", scaler=scaler)

    assert result.is_skipped
    assert scaler.get_scale() == 2.0
    assert objective.root.weight.item() == 0.0


def test_an_overflow_at_scale_one_is_an_error() -> None:
    objective = RootObjective()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)

    with pytest.raises(TrainingError, match="gradient norm"):
        take_step(objective, objective.data[0], precision="float16", scaler=scaler)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.02), ("float16", 0.005)])
def test_lower_precision_takes_nearly_the_same_step_on_float32_weights(
    precision: str, tolerance: float
) -> None:
    exact, rough = plain_objective(), plain_objective()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if precision == "float16" else None
    expected = take_step(exact, exact.data[0])

    result = take_step(rough, rough.data[0], precision=precision, scaler=scaler)

    assert result.loss == pytest.approx(expected.loss, rel=tolerance)
    assert result.loss != expected.loss
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=5 * tolerance)
    assert all(value.dtype == torch.float32 for value in weights(rough).values())


def test_a_micro_batch_without_supervision_costs_nothing_and_changes_nothing() -> None:
    class Unsupervised(LineObjective):
        def counts(self, micro_batch: Points) -> dict[str, int]:
            return {"error": 0, "size": 0} if not micro_batch.ids else super().counts(micro_batch)

    objective, plain = Unsupervised(), LineObjective()
    empty = replace(objective.data[0][0], ids=())

    result = take_step(objective, [*objective.data[0], empty])

    assert result == take_step(plain, plain.data[0])


def test_a_step_with_nothing_to_learn_is_an_error() -> None:
    objective = LineObjective()
    objective.weights = {"error": 0.0, "size": 0.0}

    with pytest.raises(TrainingError, match="step 3 has no supervised item in 2 micro-batches"):
        take_step(objective, objective.data[0])


def test_a_count_that_the_losses_do_not_keep_is_an_error() -> None:
    class Miscounted(LineObjective):
        def counts(self, micro_batch: Points) -> dict[str, int]:
            return {"error": 99, "size": 1}

    objective = Miscounted()

    with pytest.raises(TrainingError, match=r"count \{'error': 3, 'size': 1\}, expected .*'error': 99"):
        take_step(objective, objective.data[0])
