"""Metrics of a run: one JSON line a logged step, and the same numbers to trackers where wanted."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from dreamllm.document.atomic import write_bytes, writing
from dreamllm.errors import TrainingError
from dreamllm.train.objectives.objective import GateResult
from dreamllm.train.sinks import Sink
from dreamllm.train.step import StepResult


def step_record(
    result: StepResult, *, step: int, lr: float, seconds: float, rates: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """One line of metrics; `step` counts the steps done, `seconds` is the time of this step with its data.

    `rates` is the reading of a meter over the steps since the last line (`meters.py`), whose `seconds` take
    the place of this step's. Rates of what was supervised are those of this step.
    """
    return {
        "step": step,
        "loss": result.loss,
        **{f"loss.{name}": value for name, value in result.terms.items()},
        "lr": lr,
        "grad_norm": None if result.is_skipped else result.grad_norm,
        "is_skipped": result.is_skipped,
        "seconds": round(seconds, 6),
        **{f"{name}_per_s": round(count / max(seconds, 1e-9), 3) for name, count in result.counts.items()},
        **{name: float(f"{value:.6g}") for name, value in (rates or {}).items()},
    }


def gate_record(gate: GateResult, *, step: int) -> dict[str, Any]:
    """One line of metrics for a gate measured on the way."""
    return {
        "step": step,
        "gate.passed": gate.passed,
        **{f"gate.{name}": value for name, value in gate.metrics.items()},
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order; a last line cut short by a kill is left out.

    Raises:
        TrainingError: a line before the last is not JSON.
    """
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise TrainingError(
                f"line {number} of {path} is not JSON: {line[:80]!r}; expected one record a line; remove it"
            ) from error
    return records


class MetricsLog:
    """Appends records to `metrics.jsonl` and passes their numbers on to sinks; use it as a context manager,
    which closes them all.

    Opening drops the records after `step`: a killed run may have logged steps its checkpoint does not have.
    """

    def __init__(self, folder: Path, *, step: int = 0, sinks: Sequence[Sink] = ()) -> None:
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            kept = [record for record in read_metrics(self._path) if record["step"] <= step]
            write_bytes(self._path, "".join(_line(record) for record in kept).encode())
        self._sinks = sinks
        with writing(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it.

        Raises:
            DiskError: it cannot be written; a part of a line that may be left is dropped at the next start.
        """
        with writing(self._path):
            self._file.write(_line(record))
            self._file.flush()
        values = {
            name.replace(".", "/"): float(value)
            for name, value in record.items()
            if isinstance(value, int | float) and name != "step"
        }
        with writing(self._path.parent):
            for sink in self._sinks:
                sink.write(record["step"], values)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self._path.parent), ExitStack() as closing:
            for sink in self._sinks:
                closing.callback(sink.close)
            with writing(self._path):
                self._file.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
