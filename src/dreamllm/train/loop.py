"""The one training loop: every objective, every precision, one process or the many that torchrun starts.

Reads steps, calls `step.py`, and does all the writing: metrics, samples, checkpoints, the exported result.
What a step computes follows from (config, weights, step number) alone, so an interrupted and resumed run
equals an uninterrupted one to the last bit on the same machine. Of many ranks all train and write shards of
checkpoints; the main one writes everything else.

    out_dir/config.yaml  metrics.jsonl  samples/step-*/  checkpoints/step-*/  profile/  gate.json  model/
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dreamllm.checkpoint.store import ShardedSaves, latest, load_run, save_run
from dreamllm.config import to_dict, to_yaml
from dreamllm.document.atomic import replace_folder, write_bytes, writing
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.runtime.distributed import ALONE, Ranks, joined, ranks_of
from dreamllm.runtime.seeding import derive_seed, seed_everything
from dreamllm.train.feed import StepFeed
from dreamllm.train.flops import flops_of
from dreamllm.train.interrupt import StopRequest, stop_on_signals
from dreamllm.train.meters import StepMeter, peak_flops
from dreamllm.train.metrics import MetricsLog, gate_record, step_record
from dreamllm.train.objectives.objective import GateResult, Objective
from dreamllm.train.optim import set_lr
from dreamllm.train.profile import StepProfiler
from dreamllm.train.progress import RunProgress
from dreamllm.train.run_config import RunConfig
from dreamllm.train.run_state import Run
from dreamllm.train.schedule import lr_factor
from dreamllm.train.sinks import chosen_trackers, open_sinks
from dreamllm.train.source_meter import SourceMeter
from dreamllm.train.step import StepResult, optimizer_step

logger = logging.getLogger(__name__)

Resume = Literal["auto", "never", "must"]


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

    Where torchrun has started many processes, all of them call this, with objectives built alike; a signal
    to one stops all of them after the same step, and all return the same result.

    Raises:
        TrainingError: a loss or a gradient is not finite.
        CheckpointError: a checkpoint is not there, or does not belong to this run.
        DiskError: the disk is full, or takes no files; on all ranks, whichever cannot write. The run goes on
            from its last checkpoint when it is started again.
        MissingExtraError: a tracker is not installed.
        ConfigError: the device or a parameter group cannot be meant, or the objective cannot train on many
            ranks.
    """
    ranks = ranks_of()
    with joined(ranks, timeout_min=config.parallel.timeout_min):
        return _train(config, objective, out_dir, resume=resume, ranks=ranks)


def _train(
    config: RunConfig, objective: Objective, out_dir: Path, *, resume: Resume, ranks: Ranks
) -> TrainResult:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    run = Run.start(config, objective, pick_device(config.device, ranks), ranks)
    start = _resume(run, out_dir / "checkpoints", resume)
    with ranks.agreed():
        if ranks.is_main:
            write_bytes(out_dir / "config.yaml", to_yaml(config).encode())
    logger.info(objective.tables())
    logger.info(
        "run %s: step %d of %d on %s, %d ranks, in %s",
        config.name, start, config.steps, run.device, ranks.size, out_dir,
    )  # fmt: skip
    with (
        _open_metrics(config, out_dir, start, ranks) as metrics,
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


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device a config names; `auto` takes cuda, then mps, then cpu. Of many ranks each has a GPU."""
    if not ranks.is_alone and name in ("auto", "cuda"):
        has_gpus = torch.cuda.is_available()
        return torch.device(f"cuda:{ranks.local_rank}" if has_gpus else "cpu")
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
    path = run.ranks.broadcast(latest(folder) if run.ranks.is_main else None)
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
    logger.info("resuming from %s", path)
    if not run.ranks.is_alone:
        return run.restore_from(path)
    state = load_run(path)
    run.restore(state)
    return state.step


def _train_steps(
    run: Run, start: int, out_dir: Path, *, metrics: MetricsLog | None, stop: StopRequest
) -> tuple[int, Path]:
    """Every step that is left, until asked to stop; the number of steps done and their checkpoint."""
    config = run.config
    step = start
    saves = _Saves(run, out_dir / "checkpoints", start)
    meter, sources, feed = _meter(run), SourceMeter(run.ranks), StepFeed(run, start, stop)
    with (
        RunProgress(config.name, steps=config.steps, start=start, is_main=run.ranks.is_main) as progress,
        StepProfiler(
            config.profile if run.ranks.is_main else None, out_dir / "profile", device=run.device
        ) as profiler,
        saves,
    ):
        meter.begin()
        for micro_batches in feed:
            meter.data_ready()
            result, lr = _one_step(run, micro_batches, step)
            step += 1
            seconds = meter.step_done(micro_batches)
            sources.step_done(step, result, micro_batches)
            profiler.step_done()
            progress.step_done(step, loss=result.loss, rates=meter.so_far())
            if step % config.log_every == 0 or step == config.steps:
                rates = meter.reading() | sources.reading()
                with run.ranks.agreed():
                    if metrics is not None:
                        metrics.write(step_record(result, step=step, lr=lr, seconds=seconds, rates=rates))
                progress.logged(step, loss=result.loss, rates=rates)
                feed.warn_of_waiting(rates)
            saves.settle()
            if step % config.save_every == 0:
                saves.save(step)
            if config.sample_every is not None and step % config.sample_every == 0 and step < config.steps:
                _sample(run, out_dir, step)
            if config.gate_every is not None and step % config.gate_every == 0 and step < config.steps:
                gate = _gate(run, step)
                with run.ranks.agreed():
                    if metrics is not None:
                        metrics.write(gate_record(gate, step=step))
            if _is_to_stop(run, stop):
                break
            meter.begin()
        else:
            _is_to_stop(run, stop)  # a signal may have taken the data of the steps that are left
        path = saves.finish(step)
    return step, path


class _Saves:
    """The checkpoints of a run: written at once by one process, in the background by many."""

    def __init__(self, run: Run, folder: Path, start: int) -> None:
        self._run = run
        self._folder = folder
        keep = run.config.keep_checkpoints
        self._sharded: ShardedSaves | None = None
        if not run.ranks.is_alone:
            self._sharded = ShardedSaves(
                folder, run.ranks, keep=keep, timeout_min=run.config.parallel.timeout_min
            )
        self._last = (start, latest(folder) if start else None)

    def save(self, step: int) -> Path:
        """Write a checkpoint, or begin to."""
        state = self._run.capture(step)
        if self._sharded is None:
            path = save_run(self._folder, state, keep=self._run.config.keep_checkpoints)
        else:
            path = self._sharded.begin(state)
        self._last = (step, path)
        return path

    def finish(self, step: int) -> Path:
        """The checkpoint of the last step, on the disk."""
        saved, path = self._last
        if path is None or saved != step:
            path = self.save(step)
        if self._sharded is not None:
            self._sharded.finish()
        return path

    def settle(self) -> None:
        """Let what was written in the meantime appear."""
        if self._sharded is not None:
            self._sharded.settle()

    def __enter__(self) -> "_Saves":
        return self

    def __exit__(self, *error: object) -> None:
        if self._sharded is not None:
            self._sharded.leave()


def _is_to_stop(run: Run, stop: StopRequest) -> bool:
    """Whether someone asked one of the ranks to stop; then it is known to all."""
    if not run.ranks.any(flag=stop.signal_name is not None):
        return False
    stop.signal_name = next(name for name in run.ranks.gather(stop.signal_name) if name is not None)
    return True


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
        ranks=run.ranks,
        losses=run.losses,
        nothing=run.nothing,
    )
    if run.average is not None and not result.is_skipped:
        run.average.update()
    return result, lr


@contextlib.contextmanager
def _open_metrics(config: RunConfig, out_dir: Path, start: int, ranks: Ranks) -> Iterator[MetricsLog | None]:
    """The log of metrics, with the trackers that a run asks for; the main rank has it, the others None."""
    log: MetricsLog | None = None
    with ranks.agreed(), writing(out_dir):
        if ranks.is_main:
            trackers = chosen_trackers(config.trackers, tensorboard=config.tensorboard)
            sinks = open_sinks(trackers, out_dir, name=config.name, config=to_dict(config), step=start)
            log = MetricsLog(out_dir, step=start, sinks=sinks)
    with contextlib.ExitStack() as closing:
        if log is not None:
            closing.enter_context(log)
        yield log
        with ranks.agreed():
            closing.close()


def _meter(run: Run) -> StepMeter:
    """What measures the steps of a run."""
    noises = getattr(run.config.objective, "noises_per_image", 1)
    return StepMeter(
        run.device,
        flops=flops_of(run.objective.module, noises_per_image=noises),
        peak_flops=peak_flops(run.device, measure=run.config.measure_peak),
        ranks=run.ranks,
    )


@contextlib.contextmanager
def _result(
    run: Run, step: int, purpose: str, *, device: torch.device | None = None
) -> Iterator[Objective | None]:
    """The objective with the weights others will see, averaged where there is an average; no gradients, own
    seeds. Of many ranks the main one has it, in one piece and on the device asked for; the others have None.
    """
    seed_everything(derive_seed(run.config.seed, step, purpose))
    if run.ranks.is_alone:
        lent = contextlib.nullcontext() if run.average is None else run.average.lent()
        with torch.no_grad(), lent:
            yield run.objective
        return
    run.gather()
    if run.shown is not None:
        run.shown.to(device or run.device)
    with torch.no_grad():
        yield run.shown
    if run.shown is not None:
        run.shown.to(torch.device("cpu"))


def _sample(run: Run, out_dir: Path, step: int) -> None:
    folder = out_dir / "samples" / f"step-{step:08d}"
    with run.ranks.agreed(), _result(run, step, "sample") as objective, writing(folder):
        if objective is not None:
            folder.mkdir(parents=True, exist_ok=True)
            objective.sample(folder, step)


def _gate(run: Run, step: int) -> GateResult:
    """The same on all ranks."""
    with run.ranks.agreed(), _result(run, step, "gate") as objective:
        measured = None if objective is None else objective.gate()
    gate = run.ranks.broadcast(measured)
    assert gate is not None  # the main rank has measured it
    verdict = "passed" if gate.passed else "NOT passed"
    logger.info("gate after step %d %s: %s", step, verdict, gate.message)
    return gate


def _finish(run: Run, out_dir: Path) -> tuple[GateResult, Path]:
    """Sample, measure and export the result; an export replaces an earlier one only when it is whole."""
    steps = run.config.steps
    _sample(run, out_dir, steps)
    gate = _gate(run, steps)
    with (
        run.ranks.agreed(),
        _result(run, steps, "export", device=torch.device("cpu")) as objective,
    ):
        if objective is not None:
            _write_result(objective, gate, out_dir)
    return gate, out_dir / "model"


def _write_result(objective: Objective, gate: GateResult, out_dir: Path) -> None:
    record = {"passed": gate.passed, "metrics": dict(gate.metrics), "message": gate.message}
    write_bytes(out_dir / "gate.json", (json.dumps(record, indent=1) + "\n").encode())
    model, aside = out_dir / "model", out_dir / ".unfinished-model"
    with writing(model):
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir()
        try:
            objective.export(aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        replace_folder(aside, model)
