"""Runs that build on each other: read a family, train its runs in order, skip what is finished.

A run is finished when its result and its gate are on disk and its config is the one that made them. The
record `family.json` keeps steps, minutes and gates over interruptions, and knows which result is older than
what it was made from.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from dreamllm.checkpoint.parts_config import PartsConfig, is_local
from dreamllm.checkpoint.store import latest
from dreamllm.config import load_config, to_dict
from dreamllm.document.atomic import write_bytes
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.runtime.distributed import ranks_of
from dreamllm.train.loop import Resume, train
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.objectives.objective import GateResult, Objective
from dreamllm.train.run_config import FREE_ON_RESUME, RunConfig

logger = logging.getLogger(__name__)

RECORD_FILE = "family.json"
Build = Callable[[RunConfig, Path], Objective]
"""How the config of a run, which reads and writes beside a folder, becomes an objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRun:
    """One run of a family."""

    folder: str
    """What overrides and `--only` call it, and the folder it writes to."""
    recipe: Path
    """Its recipe, relative to the family's file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyConfig:
    """Runs in the order they are trained."""

    name: str
    """What the family is called in logs and reports."""
    runs: tuple[FamilyRun, ...]
    """Each may read the results of those before it, as `../FOLDER/model`."""
    description: str = ""
    """What the family is for, for a person."""

    def __post_init__(self) -> None:
        folders = [run.folder for run in self.runs]
        if not folders or len(set(folders)) < len(folders):
            raise ConfigError(
                f"the runs write to {folders}; expected at least one, each in a folder of its own"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """A run, its config whole and checked."""

    name: str
    config: RunConfig
    out_dir: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """How far a run came."""

    name: str
    status: Literal["finished", "skipped", "interrupted"]
    """`skipped`: it was finished before."""
    steps: int
    """Optimizer steps done."""
    minutes: float | None = None
    """Time spent on it, over all interruptions; none if another program trained it."""
    gate: GateResult | None = None
    """None when interrupted."""
    times: Mapping[str, float] = field(default_factory=dict)
    """Seconds since the epoch at which it was first `started` and last `finished`."""

    @property
    def may_go_on(self) -> bool:
        """Whether the runs after it have what they need."""
        return self.gate is not None and self.gate.passed


def read_family(path: Path, out_dir: Path, overrides: Sequence[str] = ()) -> list[PlannedRun]:
    """Every run of a family file, with overrides such as `stage2.steps=100` given to the run they name.

    Raises:
        ConfigError: the family, one of its recipes or an override cannot be meant.
    """
    family = load_config(FamilyConfig, path)
    own: dict[str, list[str]] = {run.folder: [] for run in family.runs}
    for override in overrides:
        folder, dot, rest = override.partition(".")
        if not dot or folder not in own:
            raise ConfigError(
                f"the override {override!r} names no run of the family {family.name!r}; expected it to begin "
                f"with one of {', '.join(own)}; write it as in {family.runs[0].folder}.steps=100"
            )
        own[folder].append(rest)
    return [
        PlannedRun(
            name=run.folder,
            config=load_config(RunConfig, path.parent / run.recipe, own[run.folder]),
            out_dir=out_dir / run.folder,
        )
        for run in family.runs
    ]


def only(runs: Sequence[PlannedRun], name: str) -> list[PlannedRun]:
    """The run of that name, alone.

    Raises:
        ConfigError: there is none.
    """
    names = [run.name for run in runs]
    if name not in names:
        raise ConfigError(f"the family has no run {name!r}; expected one of {', '.join(names)}; choose one")
    return [runs[names.index(name)]]


def train_runs(
    runs: Sequence[PlannedRun],
    *,
    record: Path | None = None,
    resume: Resume = "auto",
    ignore_gates: bool = False,
    build: Build = build_objective,
) -> Iterator[RunRecord]:
    """Train the runs one after another and yield how each ended; `record` is the JSON file to keep.

    It stops after an interrupted run, and after a gate that was not passed unless told to ignore gates. For
    several runs `must` asks that at least one of them has begun, `never` that none has.

    Raises:
        CheckpointError: `resume` does not fit what is on disk, or a run began before its inputs were trained.
        ConfigError: an input of a run is missing.
        TrainingError: a run cannot go on.
    """
    _check_resume(runs, resume)
    records = {} if record is None else read_records(record)
    for run in runs:
        kept = resume if len(runs) == 1 else "auto"
        result = _train_or_skip(run, records, resume=kept, build=build)
        records[run.name] = result
        if record is not None and ranks_of().is_main:
            _write_records(record, records.values())
        yield result
        if result.status == "interrupted" or not (ignore_gates or result.may_go_on):
            return


def read_records(path: Path) -> dict[str, RunRecord]:
    """The records of a `family.json`, by run; none if there is no such file.

    Raises:
        CheckpointError: the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["runs"]
        found = [RunRecord(**{**entry, "gate": _gate(entry["gate"])}) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no record of a family: {error!r}; expected what training wrote there; remove it"
        ) from error
    return {entry.name: entry for entry in found}


def finished_gate(run: PlannedRun) -> GateResult | None:
    """What the gate said of a run that is finished with this very config; None if it has work left.

    Keys that move no weight, such as `log_every`, may differ.
    """
    gate_file, model = run.out_dir / "gate.json", run.out_dir / "model"
    newest = latest(run.out_dir / "checkpoints")
    if newest is None or newest.name != f"step-{run.config.steps:08d}":
        return None
    # The gate is measured first, then the model is written: an older model is left from a shorter run.
    if not gate_file.is_file() or not model.is_dir():
        return None
    if model.stat().st_mtime_ns < gate_file.stat().st_mtime_ns:
        return None
    made_by = yaml.safe_load((run.out_dir / "config.yaml").read_text(encoding="utf-8"))
    if _deciding(made_by) != _deciding(to_dict(run.config)):
        return None
    return _gate(json.loads(gate_file.read_text(encoding="utf-8")))


def input_paths(run: PlannedRun) -> list[Path]:
    """The folders of other runs' results that a run reads."""
    return [(run.out_dir / path).resolve() for path in _paths(run.config.objective)]


def _train_or_skip(
    run: PlannedRun, records: Mapping[str, RunRecord], *, resume: Resume, build: Build
) -> RunRecord:
    before = records.get(run.name)
    _check_inputs(run, records)
    gate = finished_gate(run)
    if gate is not None:
        logger.info("run %s: finished before, skipped; its result is in %s", run.name, run.out_dir / "model")
        if before is None:
            return RunRecord(name=run.name, status="skipped", steps=run.config.steps, gate=gate)
        return replace(before, status="skipped", steps=run.config.steps, gate=gate)
    kept = before if _has_begun(run) else None
    clock, began = time.time(), time.monotonic()
    objective = build(run.config, run.out_dir)
    if ranks_of().is_main:
        (run.out_dir / "gate.json").unlink(missing_ok=True)  # it speaks of a shorter run
    result = train(run.config, objective, run.out_dir, resume=resume)
    minutes = (time.monotonic() - began) / 60 + ((kept.minutes or 0.0) if kept else 0.0)
    times = {"started": kept.times.get("started", clock) if kept else clock}
    if result.status == "finished":
        times["finished"] = time.time()
    return RunRecord(
        name=run.name,
        status=result.status,
        steps=result.step,
        minutes=round(minutes, 2),
        gate=result.gate,
        times=times,
    )


def _check_resume(runs: Sequence[PlannedRun], resume: Resume) -> None:
    begun = [run.out_dir for run in runs if _has_begun(run)]
    if resume == "never" and begun:
        raise CheckpointError(
            f"{', '.join(map(str, begun))} already holds a checkpoint, expected none for a new run; choose "
            "another folder, resume with auto, or delete it"
        )
    if resume == "must" and not begun:
        raise CheckpointError(
            f"there is no checkpoint in {', '.join(str(run.out_dir) for run in runs)}, expected one to "
            "resume from; check the folder, or resume with auto to start anew"
        )


def _has_begun(run: PlannedRun) -> bool:
    return any((run.out_dir / "checkpoints").glob("step-*"))


def _check_inputs(run: PlannedRun, records: Mapping[str, RunRecord]) -> None:
    """Everything a run reads is there, and was there before the run began."""
    for path in input_paths(run):
        if not path.exists():
            raise ConfigError(
                f"run {run.name} reads {path}, which is not there; expected the result of an earlier run; "
                "train that one first"
            )
    if run.name not in records or not _has_begun(run):
        return
    siblings = run.out_dir.resolve().parent
    for path in input_paths(run):
        source = path.relative_to(siblings).parts[0] if path.is_relative_to(siblings) else ""
        made = records[source].times.get("finished", 0.0) if source in records else 0.0
        if made > records[run.name].times.get("started", made):
            raise CheckpointError(
                f"run {run.name} began before {source} was trained again, expected a result made from the "
                f"present one; delete {run.out_dir} to train it anew"
            )


def _paths(config: Any) -> Iterator[Path]:
    """Every path of an objective and the configs inside it; those of data sources are the user's own."""
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Path):
            yield value
        elif is_dataclass(value):
            yield from _paths(value)
    if isinstance(config, PartsConfig):
        yield from (Path(source).expanduser() for _, source in config.sources() if is_local(source))


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    free = FREE_ON_RESUME - {"steps"}
    return {key: value for key, value in config.items() if key not in free}


def _gate(value: Mapping[str, Any] | None) -> GateResult | None:
    if value is None:
        return None
    return GateResult(passed=value["passed"], metrics=value["metrics"], message=value["message"])


def _write_records(path: Path, records: Iterable[RunRecord]) -> None:
    entries = [{**asdict(replace(each, gate=None)), "gate": _gate_json(each.gate)} for each in records]
    write_bytes(path, (json.dumps({"runs": entries}, indent=1) + "\n").encode())


def _gate_json(gate: GateResult | None) -> dict[str, Any] | None:
    if gate is None:
        return None
    return {"passed": gate.passed, "metrics": dict(gate.metrics), "message": gate.message}
