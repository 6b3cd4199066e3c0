"""The one training loop: every objective, every precision, every machine with one accelerator or none.

Reads steps, calls `step.py`, and does all the writing: metrics, samples, checkpoints, the exported result.
What a step computes follows from (config, weights, step number) alone, so an interrupted and resumed run
equals an uninterrupted one to the last bit on the same machine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreamllm.train.objectives.objective import GateResult, Objective
from dreamllm.train.run_config import RunConfig

Resume = Literal["auto", "never", "must"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a run ended."""

    status: Literal["finished", "interrupted"]
    step: int
    """Optimizer steps done, those before a resume included."""
    checkpoint: Path
    """The run checkpoint of that step."""
    gate: GateResult | None
    """What the gate said; none when interrupted."""
    model: Path | None
    """Folder with the exported result; none when interrupted."""


def train(config: RunConfig, objective: Objective, out_dir: Path, *, resume: Resume = "auto") -> TrainResult:
    """Run `config.steps` optimizer steps of an objective, or what is left of them."""
    raise NotImplementedError
