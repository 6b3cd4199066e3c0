"""Where the numbers of a run go besides `metrics.jsonl`: TensorBoard, Weights & Biases, trackio.

Each is an optional package, loaded where a run asks for it, behind one small interface. How to reach a
service (account, offline or not) is its own affair, said by its own settings.
"""

import importlib.util
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from dreamllm.document.atomic import write_bytes
from dreamllm.errors import ConfigError, MissingExtraError
from dreamllm.train.run_config import Tracker

PROJECT: Final = "dreamllm"
"""What runs are filed under in services that have projects."""


class Sink(Protocol):
    """Takes the numbers of a step, and is closed at the end."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Names may have slashes, which group them."""
        ...

    def close(self) -> None:
        """Nothing is written afterwards."""
        ...


def chosen_trackers(trackers: Sequence[Tracker], *, tensorboard: bool | None) -> tuple[Tracker, ...]:
    """Those that are named; TensorBoard too where it is wanted, or installed and not refused."""
    is_wanted = _is_installed("tensorboard") if tensorboard is None else tensorboard
    named: list[Tracker] = ["tensorboard"] if is_wanted else []
    return tuple(dict.fromkeys([*named, *trackers]))


def open_sinks(
    trackers: Sequence[Tracker], folder: Path, *, name: str, config: Mapping[str, Any], step: int
) -> list[Sink]:
    """Open a sink for every tracker; a run that goes on after `step` goes on in each of them.

    `folder` is that of the run, `name` and `config` are shown beside its numbers.

    Raises:
        MissingExtraError: a package is not installed. No sink is open then.
        ConfigError: a service does not take the run.
    """
    for tracker in trackers:
        if not _is_installed(tracker):
            extra = "train" if tracker == "tensorboard" else tracker
            raise MissingExtraError(
                f"the run is to be tracked by {tracker}, which is not installed, expected the {extra} extra; "
                f"run `pip install 'dreamllm[{extra}]'`, or take {tracker} out of trackers and tensorboard"
            )
    makers: dict[Tracker, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoardSink(folder / "tensorboard", step=step),
        "wandb": lambda: WandbSink(folder, name=name, config=config),
        "trackio": lambda: TrackioSink(name=name, config=config),
    }
    return [makers[tracker]() for tracker in trackers]


class TensorBoardSink:
    """Event files in a folder."""

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Points after the step, of a run that was killed, are hidden.
        self._writer: Any = SummaryWriter(log_dir=str(folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point a value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbSink:
    """A run of Weights & Biases, the same one whenever this run goes on."""

    def __init__(self, folder: Path, *, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        id_file = folder / "wandb" / "run_id"
        if not id_file.is_file():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(id_file, uuid.uuid4().hex.encode())
        try:
            self._run: Any = wandb.init(
                project=PROJECT,
                name=name,
                id=id_file.read_text(encoding="ascii"),
                resume="allow",
                dir=str(folder),
                config=dict(config),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"W&B does not take the run {name!r}: {error}; expected a login, or offline mode; "
                "run `wandb login` or `wandb offline`, or take wandb out of trackers"
            ) from error
        # Its own steps can only rise, and a run that goes on may begin before the last one that was logged.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of its history."""
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class TrackioSink:
    """A run of trackio, on this machine unless trackio is told otherwise; the same name goes on."""

    def __init__(self, *, name: str, config: Mapping[str, Any]) -> None:
        import trackio

        self._run: Any = trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of its history."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
