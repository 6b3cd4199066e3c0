"""`dreamllm eval`: what a model can do, in numbers with intervals, pictures and documents."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console

from dreamllm.errors import ConfigError

if TYPE_CHECKING:
    from dreamllm.eval.scores import TaskResult
    from dreamllm.eval.subject import EvalOptions

MIN_WIDTH = 118
"""Columns the widest table needs; a pipe or a file gets at least these."""


def run(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    tasks: tuple[str, ...] = ("world",),
    num: int | None = None,
    seed: int = 0,
    out: Path = Path("evaluation"),
    baseline: str = "auto",
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    guidance_scale: float = 2.0,
    num_inference_steps: int | None = None,
    image_temperature: float | None = None,
    device: str = "cpu",
) -> None:
    """Evaluate a model on the world benchmark: questions, captions, pictures, illustrated documents.

    Writes results.json, report.md, sheet.png and documents.html. The same seed gives the same scores.

    Args:
        model: Folder of a saved model, a DreamLLM or a JAM.
        tasks: `world` for all, or some of vqa, captions, drawing, documents, deciding and, for a JAM,
            perplexity.
        num: Items a cell; 150 by default, 12 with --quick.
        seed: Seed of items and noise.
        out: Folder for the results.
        baseline: Folder of the Stable Diffusion to compare with, or none; MODEL/baseline if there is one.
        quick: Few items, fewer cells and 10 denoising steps: a first look in about 20 s on one core.
        guidance_scale: Classifier-free guidance of model and baseline.
        num_inference_steps: Denoising steps of a DreamLLM and its baseline; 20 by default, 10 with --quick.
        image_temperature: Of a JAM: 0 takes the likeliest picture code, 1 (the default) samples.
        device: Where to compute, such as cpu or cuda.
    """
    from dreamllm.eval.runner import kind_of, task_names  # late, so that `--help` does not wait for torch
    from dreamllm.eval.subject import EvalOptions

    kind = kind_of(model)
    names = task_names(tasks, kind)
    _check_drawing(kind, num_inference_steps=num_inference_steps, image_temperature=image_temperature)
    options = EvalOptions(
        num=num if num is not None else 12 if quick else 150,
        seed=seed,
        is_quick=quick,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps if num_inference_steps is not None else 10 if quick else 20,
        image_temperature=1.0 if image_temperature is None else image_temperature,
    )
    _evaluate(model, _baseline_folder(model, baseline), options=options, names=names, device=device, out=out)


def _evaluate(
    model: Path, baseline: Path | None, *, options: "EvalOptions", names: list[str], device: str, out: Path
) -> None:
    """Load, measure and show, task by task, and write the report."""
    from dreamllm.eval.report import headline, write_report
    from dreamllm.eval.runner import Evaluation, evaluate, load_subject, measure_judge

    subject = load_subject(model, baseline=baseline, device=device)
    accuracy, num_scenes = measure_judge(options)
    evaluation = Evaluation(
        model=str(model),
        baseline=None if baseline is None else str(baseline),
        options=options,
        judge=accuracy,
        num_judge_scenes=num_scenes,
        kind=subject.kind,
    )
    (console := _console()).print("\n".join(headline(evaluation)), markup=False)
    for name, result, seconds in evaluate(subject, options, names):
        evaluation = evaluation.with_result(name, result, seconds)
        _show(console, name, result, seconds)
    paths = write_report(evaluation, out)
    console.print(f"Written to {out}: {', '.join(path.name for path in paths)}", markup=False)


def _check_drawing(kind: str, **given: float | None) -> None:
    """Refuse what only the other family of models draws by."""
    foreign = "image_temperature" if kind == "DreamLLM" else "num_inference_steps"
    if given[foreign] is not None:
        raise ConfigError(f"{foreign} is {given[foreign]}, which a {kind} cannot obey; leave it out")


def _show(console: Console, name: str, result: "TaskResult", seconds: float) -> None:
    from dreamllm.eval.report import to_rich

    for table in result.tables:
        console.print(to_rich(table))
    for label, value in result.details.items():
        console.print(f"{label}: {100 * value:.1f} %")
    console.print(f"{name}: {seconds:.1f} s", style="dim")


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, MIN_WIDTH))


def _baseline_folder(model: Path, choice: str) -> Path | None:
    if choice == "auto":
        return folder if (folder := model / "baseline").is_dir() else None
    return None if choice == "none" else Path(choice)
