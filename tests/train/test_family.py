"""Families: order, skipping, resuming, gates, and results that are older than what they were made from."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tests.train.line_objective import LineObjective, Points, line_run

from dreamllm.checkpoint.store import latest
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.losses.total import Term
from dreamllm.recipes import find_recipe
from dreamllm.train.family import Build, PlannedRun, only, read_family, read_records, train_runs
from dreamllm.train.objectives.objective import GateResult, Objective
from dreamllm.train.run_config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LineFrom:
    """A line that reads the result of another run."""

    kind: Literal["line"] = "line"
    source: Path = Path("../first/model")


class Gated(LineObjective):
    """A line whose gate says what it is told to."""

    def __init__(self, *, passed: bool = True, signal_at: int | None = None) -> None:
        super().__init__()
        self.passed, self.signal_at = passed, signal_at

    def losses(self, micro_batch: Points, generator: torch.Generator) -> dict[str, Term]:
        if micro_batch.ids[0] == f"point-{self.signal_at}-0":
            os.kill(os.getpid(), signal.SIGINT)
        return super().losses(micro_batch, generator)

    def gate(self) -> GateResult:
        return GateResult(passed=self.passed, metrics={"error": 0.25}, message="error 0.25")


class Builder:
    """Builds lines and remembers for which runs."""

    def __init__(self, make: Callable[[str], LineObjective] = lambda name: Gated()) -> None:
        self.make = make
        self.built: list[str] = []

    def __call__(self, config: RunConfig, out_dir: Path) -> Objective:
        self.built.append(out_dir.name)
        return self.make(out_dir.name)


def never_build(config: RunConfig, out_dir: Path) -> Objective:
    raise AssertionError(f"{out_dir} was built, and should not have been")


def planned(folder: Path, *names: str, steps: int = 4) -> list[PlannedRun]:
    return [PlannedRun(name=n, config=line_run(name=n, steps=steps), out_dir=folder / n) for n in names]


def changed(run: PlannedRun, **changes: object) -> PlannedRun:
    return replace(run, config=replace(run.config, **changes))  # type: ignore[arg-type]


def statuses(runs: list[PlannedRun], folder: Path, build: Build, **options: object) -> list[tuple[str, str]]:
    record = folder / "family.json"
    ended = train_runs(runs, record=record, build=build, **options)  # type: ignore[arg-type]
    return [(each.name, each.status) for each in ended]


def test_runs_are_trained_in_order_and_the_record_says_what_happened(tmp_path: Path) -> None:
    build = Builder()

    ended = list(
        train_runs(planned(tmp_path, "first", "second"), record=tmp_path / "family.json", build=build)
    )

    assert build.built == ["first", "second"]
    assert [(each.name, each.status, each.steps) for each in ended] == [
        ("first", "finished", 4),
        ("second", "finished", 4),
    ]
    written = json.loads((tmp_path / "family.json").read_text())["runs"]
    assert [(each["name"], each["steps"], each["gate"]["metrics"]) for each in written] == [
        ("first", 4, {"error": 0.25}),
        ("second", 4, {"error": 0.25}),
    ]
    assert read_records(tmp_path / "family.json") == {each.name: each for each in ended}


def test_finished_runs_are_skipped_and_keep_their_minutes(tmp_path: Path) -> None:
    runs = planned(tmp_path, "first", "second")
    first = list(train_runs(runs, record=tmp_path / "family.json", build=Builder()))

    again = list(train_runs(runs, record=tmp_path / "family.json", build=never_build))

    assert again == [replace(each, status="skipped") for each in first]


def test_a_run_that_another_program_finished_is_skipped_without_minutes(tmp_path: Path) -> None:
    runs = planned(tmp_path, "first")
    list(train_runs(runs, build=Builder()))

    (record,) = train_runs(runs, record=tmp_path / "family.json", build=never_build)

    assert (record.status, record.steps, record.minutes) == ("skipped", 4, None)


def test_a_key_that_moves_no_weight_does_not_make_a_finished_run_unfinished(tmp_path: Path) -> None:
    (run,) = planned(tmp_path, "first")
    list(train_runs([run], build=Builder()))

    (record,) = train_runs([changed(run, log_every=3, description="new")], build=never_build)

    assert record.status == "skipped"


def test_a_key_that_moves_weights_is_refused_and_named(tmp_path: Path) -> None:
    (run,) = planned(tmp_path, "first")
    list(train_runs([run], build=Builder()))

    with pytest.raises(CheckpointError, match=r"optim\.lr was 0\.05 and is 0\.5"):
        list(train_runs([changed(run, optim=replace(run.config.optim, lr=0.5))], build=Builder()))


def test_more_steps_go_on_from_where_the_run_had_ended(tmp_path: Path) -> None:
    (run,) = planned(tmp_path, "first", steps=4)
    list(train_runs([run], build=Builder()))

    (record,) = train_runs([changed(run, steps=6)], build=Builder())

    steps = [json.loads(line)["step"] for line in (run.out_dir / "metrics.jsonl").read_text().splitlines()]
    assert (record.status, record.steps) == ("finished", 6)
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("missing", ["model", "gate.json"])
def test_a_run_killed_before_its_result_was_written_is_not_finished(tmp_path: Path, missing: str) -> None:
    (run,) = planned(tmp_path, "first")
    list(train_runs([run], build=Builder()))
    path = run.out_dir / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    (record,) = train_runs([run], build=Builder())

    assert record.status == "finished"
    assert path.exists()


def test_a_gate_that_is_not_passed_stops_the_family_every_time(tmp_path: Path) -> None:
    runs = planned(tmp_path, "first", "second")
    build = Builder(lambda name: Gated(passed=name != "first"))

    assert statuses(runs, tmp_path, build) == [("first", "finished")]
    assert statuses(runs, tmp_path, never_build) == [("first", "skipped")]
    assert not (tmp_path / "second").exists()


def test_ignored_gates_stop_nothing_and_are_recorded_all_the_same(tmp_path: Path) -> None:
    runs = planned(tmp_path, "first", "second")

    ended = statuses(runs, tmp_path, Builder(lambda name: Gated(passed=False)), ignore_gates=True)

    assert ended == [("first", "finished"), ("second", "finished")]
    gates = [record.gate for record in read_records(tmp_path / "family.json").values()]
    assert [gate is not None and gate.passed for gate in gates] == [False, False]


def test_ctrl_c_saves_and_ends_the_family_and_the_next_time_it_goes_on(tmp_path: Path) -> None:
    runs = planned(tmp_path, "first", "second", "third")
    build = Builder(lambda name: Gated(signal_at=1 if name == "second" else None))

    ended = statuses(runs, tmp_path, build)

    assert ended == [("first", "finished"), ("second", "interrupted")]
    saved = latest(tmp_path / "second" / "checkpoints")
    assert saved is not None
    assert saved.name == "step-00000002"
    before = read_records(tmp_path / "family.json")["second"]
    assert (before.gate, before.may_go_on) == (None, False)

    again = statuses(runs, tmp_path, Builder())

    assert again == [("first", "skipped"), ("second", "finished"), ("third", "finished")]
    after = read_records(tmp_path / "family.json")["second"]
    assert after.steps == 4
    assert after.times["started"] == before.times["started"]
    assert (after.minutes or 0) >= (before.minutes or 0)


def test_a_run_that_began_before_its_input_was_trained_again_is_refused(tmp_path: Path) -> None:
    first, second = planned(tmp_path, "first", "second")
    second = changed(second, objective=LineFrom())
    statuses([first, second], tmp_path, Builder())

    with pytest.raises(
        CheckpointError, match=r"second began before first was trained again.*delete .*second"
    ):
        statuses([changed(first, steps=6), second], tmp_path, Builder())

    shutil.rmtree(second.out_dir)
    ended = statuses([changed(first, steps=6), second], tmp_path, Builder())
    assert ended == [("first", "skipped"), ("second", "finished")]


def test_a_missing_input_is_named_before_anything_is_built(tmp_path: Path) -> None:
    (run,) = planned(tmp_path, "second")

    with pytest.raises(ConfigError, match=r"run second reads .*first/model, which is not there"):
        list(train_runs([changed(run, objective=LineFrom())], build=never_build))


def test_resume_never_refuses_a_family_that_has_begun(tmp_path: Path) -> None:
    runs = planned(tmp_path, "first", "second")
    statuses(runs[:1], tmp_path, Builder())

    with pytest.raises(CheckpointError, match=r"first already holds a checkpoint"):
        statuses(runs, tmp_path, never_build, resume="never")


def test_resume_must_refuses_a_family_that_has_not_begun_and_goes_on_with_one_that_has(
    tmp_path: Path,
) -> None:
    runs = planned(tmp_path, "first", "second")

    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        statuses(runs, tmp_path, never_build, resume="must")

    statuses(runs[:1], tmp_path, Builder())
    assert statuses(runs, tmp_path, Builder(), resume="must") == [
        ("first", "skipped"),
        ("second", "finished"),
    ]


def test_a_record_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "family.json").write_text('{"runs": [{"name": "first"}]}')

    with pytest.raises(CheckpointError, match=r"family\.json is no record of a family.*remove it"):
        read_records(tmp_path / "family.json")


# ---- reading a family -------------------------------------------------------------------------------------


def test_an_override_goes_to_the_run_it_names(tmp_path: Path) -> None:
    plain = read_family(find_recipe("nano"), tmp_path)

    told = read_family(find_recipe("nano"), tmp_path, ["vae.steps=7", "stage2.optim.lr=0.5"])

    assert [run.name for run in told if run not in plain] == ["vae", "stage2"]
    by_name = {run.name: run for run in told}
    assert by_name["vae"].config.steps == 7
    assert by_name["stage2"].config.optim == replace(only(plain, "stage2")[0].config.optim, lr=0.5)
    assert by_name["vae"].out_dir == tmp_path / "vae"


@pytest.mark.parametrize("override", ["steps=7", "vea.steps=7"])
def test_an_override_that_names_no_run_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"names no run of the family 'nano'.*vae"):
        read_family(find_recipe("nano"), tmp_path, [override])


def test_a_wrong_key_is_found_before_the_first_run_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        read_family(find_recipe("nano"), tmp_path, ["stage3.stps=7"])


def test_only_an_unknown_run_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run 'stage9'.*stage1, stage2, stage3"):
        only(read_family(find_recipe("nano"), tmp_path), "stage9")


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    family = tmp_path / "family.yaml"
    family.write_text("name: twice\nruns:\n- {folder: a, recipe: a.yaml}\n- {folder: a, recipe: b.yaml}\n")

    with pytest.raises(ConfigError, match=r"write to \['a', 'a'\].*a folder of its own"):
        read_family(family, tmp_path)
