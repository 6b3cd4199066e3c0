"""The smallest honest objective: a line through points, with everything a large one has.

Two loss terms, a frozen part, a buffer that training changes, noise from the generator, dropout from the
global one, and micro-batches of unequal size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dreamllm.losses.total import Term
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.train.run_config import OptimConfig, RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LineConfig:
    kind: Literal["line"] = "line"
    noise: float = 0.1
    dropout: float = 0.2
    bad_step: int | None = None
    """A step with a document that is not a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Points:
    x: np.ndarray
    y: np.ndarray
    ids: tuple[str, ...]


class PointSteps(Dataset[Sequence[Points]]):
    """Step s holds two micro-batches of 3 and 5 points on y = 2 x + 1."""

    def __init__(self, bad_step: int | None) -> None:
        self.bad_step = bad_step

    def __getitem__(self, step: int) -> list[Points]:
        x = np.random.default_rng([7, step]).normal(size=8).astype(np.float32)
        y = 2 * x + 1
        if step == self.bad_step:
            y[4] = np.nan
        ids = tuple(f"point-{step}-{i}" for i in range(8))
        return [Points(x=x[:3], y=y[:3], ids=ids[:3]), Points(x=x[3:], y=y[3:], ids=ids[3:])]


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(1, 16)
        self.features.requires_grad_(False)
        self.norm = nn.BatchNorm1d(16, momentum=0.1)
        self.head = nn.Linear(16, 1)
        self.offset = nn.Parameter(torch.zeros(1))


class LineObjective:
    def __init__(self, config: LineConfig | None = None) -> None:
        torch.manual_seed(0)
        self.config = config or LineConfig()
        self.module = Line()
        self.weights: Mapping[str, float] = {"error": 1.0, "size": 0.01}
        self.data = PointSteps(self.config.bad_step)
        self.device = torch.device("cpu")

    def counts(self, micro_batch: Points) -> dict[str, int]:
        return {"error": len(micro_batch.x), "size": 1}

    def losses(self, micro_batch: Points, generator: torch.Generator) -> dict[str, Term]:
        x = torch.from_numpy(micro_batch.x).to(self.device)
        y = torch.from_numpy(micro_batch.y).to(self.device)
        noise = torch.randn(x.shape, generator=generator, device=generator.device) * self.config.noise
        errors = (self._predict(x + noise) - y).float() ** 2
        size = self.module.head.weight.square().sum()
        return {"error": Term(errors.sum(), len(x)), "size": Term(size, 1)}

    def document_ids(self, micro_batch: Points) -> tuple[str, ...]:
        return micro_batch.ids

    def parameter_groups(self) -> list[ParameterGroup]:
        norm = list(self.module.norm.parameters())
        return [
            ParameterGroup(name="head", parameters=list(self.module.head.parameters()), weight_decay=True),
            ParameterGroup(name="offset", parameters=[self.module.offset, *norm], lr_scale=0.5),
        ]

    def tables(self) -> str:
        return "features frozen, head and offset trained"

    def sample(self, path: Path, step: int) -> None:
        self.module.eval()
        line = " ".join(f"{value:.3f}" for value in self._predict(torch.linspace(-1, 1, 5)).tolist())
        self.module.train()
        (path / "line.txt").write_text(line)

    def gate(self) -> GateResult:
        self.module.eval()
        x = torch.linspace(-1, 1, 21)
        error = (self._predict(x) - (2 * x + 1)).abs().mean().item()
        self.module.train()
        return GateResult(passed=error < 0.5, metrics={"error": error}, message=f"error {error:.3f}, bar 0.5")

    def export(self, path: Path) -> None:
        torch.save(self.module.state_dict(), path / "line.pt")

    def to(self, device: torch.device) -> None:
        self.module.to(device)
        self.device = device

    def _predict(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.module.norm(self.module.features(x[:, None])))
        hidden = nn.functional.dropout(hidden, self.config.dropout, training=self.module.training)
        return self.module.head(hidden)[:, 0] + self.module.offset


def line_run(*, steps: int = 6, **changes: object) -> RunConfig:
    """A run of the line objective: every key may be changed, those of the optimizer as `optim`."""
    settings: dict[str, object] = {
        "name": "line",
        "objective": LineConfig(),
        "optim": OptimConfig(lr=0.05, weight_decay=0.1, warmup_ratio=0.2),
        "device": "cpu",
        "log_every": 1,
        "save_every": 100,
        "tensorboard": False,
    }
    return RunConfig(steps=steps, **(settings | changes))  # type: ignore[arg-type]
