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
from dreamllm.checkpoint.jam import IMAGE_TOKENIZER, load_jam, load_jam_encoder
from dreamllm.checkpoint.model_folder import family_of
from dreamllm.checkpoint.pretrained import load_model
from dreamllm.errors import ConfigError
from dreamllm.eval.baseline import Baseline
from dreamllm.eval.scores import TaskResult
from dreamllm.eval.subject import EvalOptions, Kind, Subject
from dreamllm.eval.tasks import captions, deciding, documents, drawing, perplexity, vqa
from dreamllm.generate.codes import CodeGenerator
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
    "perplexity": perplexity.run,
}
TASKS_OF: dict[Kind, tuple[str, ...]] = {
    "DreamLLM": ("vqa", "captions", "drawing", "documents", "deciding"),
    "JAM": tuple(TASKS),
    "JAM of words alone": ("perplexity",),
}
"""What can be asked of whom."""
SUITE = "world"
"""Every task that can be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Everything a run found, and what it was."""

    model: str
    baseline: str | None
    options: EvalOptions
    judge: float
    """Share of true renders that the judge reads without any error, measured in this run."""
    num_judge_scenes: int
    kind: Kind = "DreamLLM"
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
            "kind": self.kind,
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


def kind_of(model: str | Path) -> Kind:
    """What a model folder holds, without loading it.

    Raises:
        CheckpointError: it is no model folder.
    """
    if family_of(model) == "DreamLLM":
        return "DreamLLM"
    return "JAM" if (Path(model) / IMAGE_TOKENIZER).is_dir() else "JAM of words alone"


def load_subject(model: str | Path, *, baseline: str | Path | None, device: str) -> Subject:
    """Read a model folder and the folder of its baseline.

    Raises:
        CheckpointError: a folder is missing or damaged, or the baseline belongs to another U-Net.
        ConfigError: there is a baseline for a JAM.
    """
    if family_of(model) == "JAM":
        if baseline is not None:
            raise ConfigError(
                f"{baseline} is a baseline that draws with the U-Net of a DreamLLM, but {model} is a JAM, "
                "which has none; leave it out"
            )
        jam = load_jam(model, device=device)
        return Subject(generator=CodeGenerator(jam, load_jam_encoder(model, jam)))
    loaded = load_model(model, device=device)
    return Subject(
        generator=InterleavedGenerator(loaded, load_encoder(model, loaded)),
        baseline=None if baseline is None else Baseline.load(baseline, loaded.image_decoder),
    )


def task_names(names: Sequence[str], kind: Kind = "DreamLLM") -> list[str]:
    """Tasks and the suite as tasks, each once, in the order of TASKS.

    Raises:
        ConfigError: a name is unknown, or cannot be asked of that kind of model.
    """
    possible = TASKS_OF[kind]
    chosen = {task for name in names for task in (possible if name == SUITE else (name,))}
    unknown = sorted(chosen - set(possible))
    if unknown or not chosen:
        raise ConfigError(
            f"tasks {', '.join(unknown) or '(none)'} cannot be run; expected "
            f"{', '.join([SUITE, *possible])} for a {kind}; choose among these"
        )
    return [name for name in TASKS if name in chosen]


def evaluate(
    subject: Subject, options: EvalOptions, names: Sequence[str]
) -> Iterator[tuple[str, TaskResult, float]]:
    """Run tasks by name, in order; yields each with its result and its seconds."""
    for name in task_names(names, subject.kind):
        start = time.perf_counter()
        result = TASKS[name](subject, options)
        yield name, result, time.perf_counter() - start


def measure_judge(options: EvalOptions) -> tuple[float, int]:
    """The judge's accuracy on true renders, and how many."""
    num = NUM_JUDGE_SCENES_QUICK if options.is_quick else NUM_JUDGE_SCENES
    return judge_accuracy(num, seed=options.seed), num
