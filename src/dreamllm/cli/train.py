"""`dreamllm train`: one recipe, or a family of recipes that build on each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from dreamllm.config import load_config
from dreamllm.errors import ConfigError
from dreamllm.recipes import FOLDER, find_recipe, is_family

if TYPE_CHECKING:
    from dreamllm.train.family import PlannedRun, RunRecord

GATE_NOT_PASSED = 1
INTERRUPTED = 130
PROFILED_STEPS = "profile=[3,6]"


def run(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY=VALUE ...]")
    ] = (),
    /,
    *,
    out: Path | None = None,
    resume: Literal["auto", "never", "must"] = "auto",
    only: str | None = None,
    ignore_gates: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    profile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Train a recipe or a family; run it again to go on where it was stopped.

    Exits with 1 at a gate that is not passed, with 130 after Ctrl-C, which saves first. On many GPUs:
    torchrun --nproc-per-node 8 -m dreamllm train RECIPE; see docs/scale.md.

    Args:
        recipe: A YAML file, a shipped recipe such as tiny/vae, or a family such as tiny.
        overrides: Dotted assignments, such as optim.lr=2e-5; in a family they name a run: vae.optim.lr=2e-5.
        out: Folder to write to; runs/RECIPE if left out.
        resume: With an earlier checkpoint in the folder: go on from it, or fail; or fail without one.
        only: Train this one run of a family.
        ignore_gates: Go on after a gate that is not passed.
        profile: Trace four of the first steps into profile/ of the run's folder, and log the most costly
            operators; profile=[20,22] traces others. In a family, with --only.
    """
    path = find_recipe(recipe)
    from dreamllm.runtime.distributed import joined, ranks_of
    from dreamllm.runtime.logs import configure_logging
    from dreamllm.train import family  # late, so that `--help` does not wait for torch

    ranks = ranks_of()
    configure_logging(0 if ranks.is_main else -1)
    record: Path | None = None
    if profile:
        overrides = (*overrides, _profile_override(recipe, only, is_one_run=not is_family(path)))
    if is_family(path):
        out = out or _default_out(path, load_config(family.FamilyConfig, path).name)
        runs = family.read_family(path, out, overrides)
        runs = family.only(runs, only) if only else runs
        record = out / family.RECORD_FILE
    else:
        if only is not None:
            raise ConfigError(
                f"--only {only} chooses a run of a family, but {recipe} is one run; leave it out"
            )
        runs = [_single(path, out, overrides)]

    console = Console(highlight=False, quiet=not ranks.is_main)
    records = []
    with joined(ranks, timeout_min=max(run.config.parallel.timeout_min for run in runs)):
        for ended in family.train_runs(runs, record=record, resume=resume, ignore_gates=ignore_gates):
            records.append(ended)
            _say(ended, console)
    console.print(results_table(records))
    return _conclude(records[-1], runs[len(records) - 1], console, ignore_gates=ignore_gates, record=record)


def results_table(records: "list[RunRecord]") -> Table:
    """Run, steps, minutes and the numbers of its gate, one line a run."""
    table = Table("run", "status", "steps", "minutes", "gate", "measured")
    for record in records:
        minutes = "-" if record.minutes is None else f"{record.minutes:.1f}"
        verdict, measured = "-", ""
        if record.gate is not None:
            verdict = "passed" if record.gate.passed else "NOT passed"
            measured = ", ".join(f"{name} {value:.3g}" for name, value in record.gate.metrics.items())
        table.add_row(record.name, record.status, str(record.steps), minutes, verdict, measured)
    return table


def _profile_override(recipe: str, only: str | None, *, is_one_run: bool) -> str:
    if not is_one_run and only is None:
        raise ConfigError(
            f"--profile traces one run, but {recipe} is a family; choose one of its runs with --only, or set "
            "profile in its recipe"
        )
    return PROFILED_STEPS if is_one_run else f"{only}.{PROFILED_STEPS}"


def _single(path: Path, out: Path | None, overrides: tuple[str, ...]) -> "PlannedRun":
    from dreamllm.train.family import PlannedRun
    from dreamllm.train.run_config import RunConfig

    config = load_config(RunConfig, path, overrides)
    return PlannedRun(name=config.name, config=config, out_dir=out or _default_out(path, config.name))


def _default_out(path: Path, name: str) -> Path:
    """Shipped recipes of a family find each other below runs/FAMILY."""
    if path.parent.parent == FOLDER and not is_family(path):
        return Path("runs") / path.parent.name / path.stem
    return Path("runs") / name


def _say(record: "RunRecord", console: Console) -> None:
    if record.gate is not None:
        verdict = "[green]passed[/]" if record.gate.passed else "[red]NOT passed[/]"
        console.print(f"[bold]{record.name}[/]: gate {verdict}: ", end="")
        console.print(record.gate.message, markup=False, soft_wrap=True)


def _conclude(
    last: "RunRecord", run: "PlannedRun", console: Console, *, ignore_gates: bool, record: Path | None
) -> int:
    """Say how it ended and what to do next; the exit status."""
    if record is not None:
        console.print(f"the same table is in {record}", markup=False, soft_wrap=True)
    if last.status == "interrupted":
        console.print(
            f"interrupted; {last.name} is saved after step {last.steps}; run the same command again to go on",
            markup=False,
            soft_wrap=True,
        )
        return INTERRUPTED
    if not last.may_go_on and not ignore_gates:
        console.print(
            f"stopped: the gate of {last.name} is not passed. Look at {run.out_dir / 'samples'} and "
            f"{run.out_dir / 'metrics.jsonl'}; train it longer (steps), or go on with --ignore-gates",
            markup=False,
            soft_wrap=True,
        )
        return GATE_NOT_PASSED
    console.print(f"the result is in {run.out_dir / 'model'}", markup=False, soft_wrap=True)
    return 0
