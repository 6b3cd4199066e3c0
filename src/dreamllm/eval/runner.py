"""Runs the tasks of a benchmark on one model: a folder in, results out."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from dreamllm.checkpoint.encoder import load_encoder
from dreamllm.checkpoint.pretrained import load_model
from dreamllm.errors import ConfigError
from dreamllm.eval.baseline import Baseline
from dreamllm.eval.scores import TaskResult
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.eval.tasks import captions, deciding, documents, drawing, vqa
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.version import __version__
from dreamllm.world.judge import judge_accuracy

NUM_JUDGE_SCENES = 1000
NUM_JUDGE_SCENES_QUICK = 200

Task = Callable[[Subject, EvalOptions], TaskResult]
TASKS: dict[str, Task] = {
    "vqa": vqa.run,
    "captions": captions.run,
    "drawing": drawing.run,
    "documents": documents.run,
    "deciding": deciding.run,
}
SUITES: dict[str, tuple[str, ...]] = {"world": tuple(TASKS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Everything a run found, and what it was."""

    model: str
    baseline: str | None
    options: EvalOptions
    judge: float
    """Share of true renders that the judge reads without any error, measured in this run."""
    num_judge_scenes: int
    results: dict[str, TaskResult] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By task."""

    def with_result(self, name: str, result: TaskResult, seconds: float) -> "Evaluation":
        """The evaluation with one task more."""
        return replace(self, results={**self.results, name: result}, seconds={**self.seconds, name: seconds})

    def to_json(self) -> dict[str, Any]:
        """A JSON value with every number."""
        return {
            "model": self.model,
            "baseline": self.baseline,
            "options": asdict(self.options),
            "versions": {
                "dreamllm": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "diffusers": diffusers.__version__,
            },
            "judge": {"accuracy": self.judge, "n": self.num_judge_scenes},
            "tasks": {
                name: {
                    "tables": [table.to_json() for table in result.tables],
                    "details": dict(result.details),
                    "seconds": round(self.seconds[name], 2),
                }
                for name, result in self.results.items()
            },
            "seconds": round(sum(self.seconds.values()), 2),
        }


def load_subject(model: str | Path, *, baseline: str | Path | None, device: str) -> Subject:
    """Read a model folder and the folder of its baseline.

    Raises:
        CheckpointError: a folder is missing or damaged, or the baseline belongs to another U-Net.
    """
    loaded = load_model(model, device=device)
    return Subject(
        generator=InterleavedGenerator(loaded, load_encoder(model, loaded)),
        baseline=None if baseline is None else Baseline.load(baseline, loaded.image_decoder),
    )


def task_names(names: Sequence[str]) -> list[str]:
    """Tasks and suites as tasks, each once, in the order of TASKS.

    Raises:
        ConfigError: a name is unknown.
    """
    chosen = {task for name in names for task in SUITES.get(name, (name,))}
    unknown = sorted(chosen - TASKS.keys())
    if unknown or not chosen:
        raise ConfigError(
            f"tasks {', '.join(unknown) or '(none)'} cannot be run; expected {', '.join([*SUITES, *TASKS])}; "
            "choose among these"
        )
    return [name for name in TASKS if name in chosen]


def evaluate(
    subject: Subject, options: EvalOptions, names: Sequence[str]
) -> Iterator[tuple[str, TaskResult, float]]:
    """Run tasks by name, in order; yields each with its result and its seconds."""
    for name in task_names(names):
        start = time.perf_counter()
        result = TASKS[name](subject, options)
        yield name, result, time.perf_counter() - start


def measure_judge(options: EvalOptions) -> tuple[float, int]:
    """The judge's accuracy on true renders, and how many."""
    num = NUM_JUDGE_SCENES_QUICK if options.is_quick else NUM_JUDGE_SCENES
    return judge_accuracy(num, seed=options.seed), num
