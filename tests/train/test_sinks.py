import importlib.util
from pathlib import Path

import pytest

from dreamllm.errors import ConfigError, MissingExtraError
from dreamllm.train.metrics import MetricsLog
from dreamllm.train.run_config import Tracker
from dreamllm.train.sinks import chosen_trackers, open_sinks

CONFIG = {"optim": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("trackers", "tensorboard", "expected"),
    [
        ((), False, ()),
        ((), True, ("tensorboard",)),
        (("wandb",), False, ("wandb",)),
        (("tensorboard", "wandb"), True, ("tensorboard", "wandb")),
    ],
)
def test_trackers_are_those_named_and_tensorboard_where_it_is_wanted(
    trackers: tuple[Tracker, ...], tensorboard: bool, expected: tuple[Tracker, ...]
) -> None:
    assert chosen_trackers(trackers, tensorboard=tensorboard) == expected


def test_tensorboard_reads_back_the_scalars_and_hides_those_after_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, value in ((0, 0.5), (2, 0.25)):
        sinks = open_sinks(("tensorboard",), tmp_path, name="run", config=CONFIG, step=first)
        with MetricsLog(tmp_path, step=first, sinks=sinks) as log:
            for step in range(first + 1, 5):
                log.write({"step": step, "loss.denoising": value})

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in events.Scalars("loss/denoising")]
    assert points == [(1, 0.5), (2, 0.5), (3, 0.25), (4, 0.25)]


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_names_its_pip_line(tracker: Tracker, tmp_path: Path) -> None:
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip("it is installed")

    with pytest.raises(MissingExtraError, match=rf"by {tracker}, which is not .*dreamllm\[{tracker}\]"):
        open_sinks((tracker,), tmp_path, name="run", config=CONFIG, step=0)


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    for step in (1, 2):
        sinks = open_sinks(("wandb",), tmp_path, name="run", config=CONFIG, step=step)
        with MetricsLog(tmp_path, step=step, sinks=sinks) as log:
            log.write({"step": step + 1, "loss": 0.5})

    run_id = (tmp_path / "wandb" / "run_id").read_text()
    written = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert written
    assert {path.name for path in written} == {f"run-{run_id}.wandb"}


def test_wandb_that_does_not_take_the_run_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**options: object) -> None:
        raise wandb.errors.UsageError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)

    with pytest.raises(ConfigError, match=r"does not take the run 'run': no API key; .*wandb offline"):
        open_sinks(("wandb",), tmp_path, name="run", config=CONFIG, step=0)


def test_trackio_keeps_the_numbers_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    sinks = open_sinks(("trackio",), tmp_path, name="run", config=CONFIG, step=0)
    with MetricsLog(tmp_path, sinks=sinks) as log:
        log.write({"step": 1, "loss": 0.5})

    assert list((tmp_path / "trackio").rglob("*.db"))
