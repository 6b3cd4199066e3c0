"""The one training loop: every objective, every precision, every machine with one accelerator or none.

Reads steps, calls `step.py`, and does all the writing: metrics, samples, checkpoints, the exported result.
What a step computes follows from (config, weights, step number) alone, so an interrupted and resumed run
equals an uninterrupted one to the last bit on the same machine.

    out_dir/config.yaml  metrics.jsonl  samples/step-*/  checkpoints/step-*/  gate.json  model/
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from dreamllm.checkpoint.store import latest, load_run, save_run
from dreamllm.config import to_yaml
from dreamllm.document.atomic import write_bytes
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.runtime.logs import stderr_console
from dreamllm.runtime.seeding import derive_seed, seed_everything
from dreamllm.train.interrupt import StopRequest, leave_sigint_to_parent, stop_on_signals
from dreamllm.train.metrics import MetricsLog, gate_record, step_record
from dreamllm.train.objectives.objective import GateResult, Objective
from dreamllm.train.optim import set_lr
from dreamllm.train.run_config import RunConfig
from dreamllm.train.run_state import Run
from dreamllm.train.schedule import lr_factor
from dreamllm.train.step import StepResult, optimizer_step

logger = logging.getLogger(__name__)

Resume = Literal["auto", "never", "must"]
Item = TypeVar("Item")


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
    """Run what is left of `config.steps` optimizer steps of an objective; then sample, gate and export.

    `resume` decides what an earlier checkpoint in `out_dir` means: `auto` goes on from it, `must` fails
    without one, `never` fails with one. Ctrl-C or SIGTERM finishes the step at hand, saves, and returns
    `interrupted`. A gate that was not passed is reported in the result; the caller says what follows from it.

    Raises:
        TrainingError: a loss or a gradient is not finite.
        CheckpointError: a checkpoint cannot be written, or does not belong to this run.
        ConfigError: the device or a parameter group cannot be meant.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    run = Run.start(config, objective, pick_device(config.device))
    start = _resume(run, out_dir / "checkpoints", resume)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_bytes(out_dir / "config.yaml", to_yaml(config).encode())
    logger.info(objective.tables())
    logger.info("run %s: step %d of %d on %s, in %s", config.name, start, config.steps, run.device, out_dir)
    with (
        MetricsLog(out_dir, step=start, tensorboard=config.tensorboard) as metrics,
        stop_on_signals() as stop,
    ):
        step, checkpoint = _train_steps(run, start, out_dir, metrics=metrics, stop=stop)
    if stop.signal_name is not None:
        logger.warning(
            "run %s: interrupted by %s after step %d of %d, saved in %s; start it again to go on",
            config.name,
            stop.signal_name,
            step,
            config.steps,
            checkpoint,
        )
        return TrainResult(status="interrupted", step=step, checkpoint=checkpoint, gate=None, model=None)
    gate, model = _finish(run, out_dir)
    return TrainResult(status="finished", step=step, checkpoint=checkpoint, gate=gate, model=model)


def pick_device(name: str) -> torch.device:
    """The device a config names; `auto` takes cuda, then mps, then cpu."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}, expected auto, cpu, cuda, cuda:1 or mps; mend it") from error


def _resume(run: Run, folder: Path, resume: Resume) -> int:
    """Restore the newest checkpoint where there is one and it is wanted; the number of steps done."""
    path = latest(folder)
    if path is None:
        if resume == "must":
            raise CheckpointError(
                f"there is no whole checkpoint in {folder}, expected one to resume from; check the folder, "
                "or resume with auto to start anew"
            )
        return 0
    if resume == "never":
        raise CheckpointError(
            f"{folder} already holds {path.name}, expected no checkpoint for a new run; choose another "
            "folder, resume with auto, or delete it"
        )
    state = load_run(path)
    run.restore(state)
    logger.info("resuming from %s", path)
    return state.step


def _train_steps(
    run: Run, start: int, out_dir: Path, *, metrics: MetricsLog, stop: StopRequest
) -> tuple[int, Path]:
    """Every step that is left, until asked to stop; the number of steps done and their checkpoint."""
    config, checkpoints = run.config, out_dir / "checkpoints"
    step = start
    saved = (start, latest(checkpoints) if start else None)
    with _progress() as progress:
        bar = progress.add_task(config.name, total=config.steps, completed=start, loss="")
        began = time.perf_counter()
        for micro_batches in _read_steps(run, start, stop):
            result, lr = _one_step(run, micro_batches, step)
            step += 1
            seconds = time.perf_counter() - began
            if step % config.log_every == 0 or step == config.steps:
                metrics.write(step_record(result, step=step, lr=lr, seconds=seconds))
            progress.update(bar, completed=step, loss=f"loss {result.loss:.4f}")
            if step % config.save_every == 0:
                saved = (step, save_run(checkpoints, run.capture(step), keep=config.keep_checkpoints))
            if config.sample_every is not None and step % config.sample_every == 0 and step < config.steps:
                _sample(run, out_dir, step)
            if config.gate_every is not None and step % config.gate_every == 0 and step < config.steps:
                metrics.write(gate_record(_gate(run, step), step=step))
            if stop.signal_name is not None:
                break
            began = time.perf_counter()
    last_step, path = saved
    if path is None or last_step != step:
        path = save_run(checkpoints, run.capture(step), keep=config.keep_checkpoints)
    return step, path


def _one_step(run: Run, micro_batches: Sequence[Any], step: int) -> tuple[StepResult, float]:
    """Set the learning rate, move the weights, update their average; what happened, and the rate."""
    optim = run.config.optim
    lr = optim.lr * lr_factor(
        step,
        num_steps=run.config.steps,
        schedule=optim.schedule,
        warmup_ratio=optim.warmup_ratio,
        final_ratio=optim.final_lr_ratio,
    )
    set_lr(run.optimizer, lr)
    result = optimizer_step(
        run.objective,
        run.optimizer,
        micro_batches,
        step=step,
        seed=run.config.seed,
        device=run.device,
        clip_norm=optim.clip_norm,
        precision=run.config.precision,
        scaler=run.scaler,
    )
    if run.average is not None and not result.is_skipped:
        run.average.update()
    return result, lr


def _read_steps(run: Run, start: int, stop: StopRequest) -> Iterator[Sequence[Any]]:
    """The micro-batches of every step that is left, prepared ahead by workers when there are any."""
    loader = DataLoader(
        run.objective.data,
        sampler=range(start, run.config.steps),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=run.config.num_workers,
        worker_init_fn=leave_sigint_to_parent,
    )
    steps = iter(loader)
    while True:
        try:
            micro_batches = next(steps)
        except StopIteration:
            return
        except RuntimeError:
            # A SIGTERM to the whole process group also ends the workers; what is done so far is still saved.
            if stop.signal_name is None or run.config.num_workers == 0:
                raise
            return
        yield micro_batches


def _as_it_is(micro_batches: Item) -> Item:
    """Keeps the loader from turning arrays into tensors."""
    return micro_batches


def _progress() -> Progress:
    """A bar where someone watches; nothing in a log file."""
    console = stderr_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        console=console,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def _result_weights(run: Run, step: int, purpose: str) -> Iterator[None]:
    """The weights others will see, averaged where there is an average; no gradients, own seeds."""
    seed_everything(derive_seed(run.config.seed, step, purpose))
    lent = contextlib.nullcontext() if run.average is None else run.average.lent()
    with torch.no_grad(), lent:
        yield


def _sample(run: Run, out_dir: Path, step: int) -> None:
    folder = out_dir / "samples" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    with _result_weights(run, step, "sample"):
        run.objective.sample(folder, step)


def _gate(run: Run, step: int) -> GateResult:
    with _result_weights(run, step, "gate"):
        gate = run.objective.gate()
    verdict = "passed" if gate.passed else "NOT passed"
    logger.info("gate after step %d %s: %s", step, verdict, gate.message)
    return gate


def _finish(run: Run, out_dir: Path) -> tuple[GateResult, Path]:
    """Sample, measure and export the result; an export replaces an earlier one only when it is whole."""
    steps = run.config.steps
    _sample(run, out_dir, steps)
    gate = _gate(run, steps)
    record = {"passed": gate.passed, "metrics": dict(gate.metrics), "message": gate.message}
    write_bytes(out_dir / "gate.json", (json.dumps(record, indent=1) + "\n").encode())
    model, aside = out_dir / "model", out_dir / ".unfinished-model"
    if aside.exists():
        shutil.rmtree(aside)
    aside.mkdir()
    with _result_weights(run, steps, "export"):
        run.objective.export(aside)
    if model.exists():
        shutil.rmtree(model)
    aside.rename(model)
    return gate, model
