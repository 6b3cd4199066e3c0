"""Everything that decides a run: frozen, typed, checked at birth, saved in every checkpoint.

This file imports no torch: a recipe can be read and checked before anything heavy is loaded.
"""

from dataclasses import dataclass, field
from typing import Literal

from dreamllm.errors import ConfigError
from dreamllm.train.objectives import ObjectiveConfig
from dreamllm.train.schedule import Schedule

Precision = Literal["float32", "bfloat16", "float16"]
Tracker = Literal["tensorboard", "wandb", "trackio"]

FREE_ON_RESUME = frozenset(
    {
        "steps",
        "log_every",
        "gate_every",
        "sample_every",
        "save_every",
        "keep_checkpoints",
        "tensorboard",
        "trackers",
        "measure_peak",
        "profile",
        "num_workers",
        "num_threads",
        "device",
        "description",
        "expected_result",
        "parallel",
    }
)
"""Keys a resumed run may change: they move no weight, or (steps, device) are what resuming is for."""


def _require(holds: bool, what: str, seen: object, expected: str, cure: str) -> None:
    if not holds:
        raise ConfigError(f"{what} is {seen!r}, expected {expected}; {cure}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW, its learning-rate schedule and the clipping of gradients."""

    lr: float
    """Peak learning rate; a parameter group may scale it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay, for the groups that want it."""
    warmup_ratio: float = 0.003
    """Part of all steps spent on the linear warm-up, rounded up to whole steps."""
    schedule: Schedule = "cosine"
    """Decay after the warm-up."""
    final_lr_ratio: float = 0.0
    """Where the decay ends, as a part of the peak."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; longer ones are scaled down to it."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr", self.lr, "a number above 0", "try 1e-4")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "[0, 1)", "try [0.9, 0.999]")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more", "0 turns it off")
        _require(0 <= self.warmup_ratio < 1, "warmup_ratio", self.warmup_ratio, "[0, 1)", "0 turns it off")
        _require(
            0 <= self.final_lr_ratio <= 1, "final_lr_ratio", self.final_lr_ratio, "[0, 1]", "0 decays fully"
        )
        _require(
            self.clip_norm > 0, "clip_norm", self.clip_norm, "a number above 0", "use .inf for no clipping"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How a run is spread over the processes that torchrun starts; one alone has nothing to spread."""

    shard: Literal["full", "hybrid", "none"] = "full"
    """`full`: every parameter, its gradient and its optimizer state are cut over all ranks. `hybrid`: over a
    part of them (those of a machine, say), in `replicas` copies. `none`: every rank has a copy."""
    replicas: int = 1
    """Copies of a `hybrid` run; the number of machines keeps the gathering of parameters inside each."""
    reshard_after_forward: bool = True
    """Free the gathered parameters of a layer after its forward pass and gather them again for the backward
    pass: less memory, more traffic."""
    param_dtype: Literal["float32", "bfloat16"] | None = None
    """Type in which parameters are gathered and used; none takes bfloat16 where it is the run's precision.
    Master weights, summed gradients and the optimizer stay float32."""
    cast_frozen: bool = False
    """Hold the frozen eye and brush in that type too; what is exported keeps theirs."""
    compile: bool = False
    """Compile each layer of the language model by torch.compile; also for one process."""
    timeout_min: int = 60
    """Minutes a rank waits for the others; the main one samples and measures the gate meanwhile."""

    def __post_init__(self) -> None:
        _require(self.replicas >= 1, "parallel.replicas", self.replicas, "1 or more", "try the machines")
        _require(
            self.shard == "hybrid" or self.replicas == 1,
            "parallel.replicas",
            self.replicas,
            f"1 where parallel.shard is {self.shard!r}",
            "set parallel.shard to hybrid",
        )
        _require(self.timeout_min >= 1, "parallel.timeout_min", self.timeout_min, "1 or more", "try 60")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training run, whole."""

    name: str
    """What the run is called in logs and reports."""
    objective: ObjectiveConfig
    """What is trained, on which data."""
    steps: int
    """Optimizer steps of the whole run."""
    optim: OptimConfig
    """How weights move."""
    seed: int = 0
    """Decides everything random: initial weights, data order, noise, dropout."""
    precision: Precision = "float32"
    """Type of the forward and backward pass; weights and optimizer stay float32."""
    ema_decay: float | None = None
    """Decay of the moving average of weights used for samples, gate and export; none keeps no average."""
    device: str = "auto"
    """`auto` takes cuda, then mps, then cpu; or a torch device string."""
    num_threads: int | None = None
    """CPU threads of torch; none leaves torch's choice."""
    num_workers: int = 0
    """Processes that prepare steps ahead of the loop; none of them changes a result."""
    log_every: int = 10
    """Steps between two lines of metrics; the last step is always logged."""
    sample_every: int | None = None
    """Steps between two samples; none samples only at the end."""
    gate_every: int | None = None
    """Steps between two measurements of the gate while the run goes on; none measures only at the end."""
    save_every: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How it is spread over many processes."""
    tensorboard: bool | None = None
    """True writes TensorBoard events and needs the extra; false does not; none does when it is installed."""
    trackers: tuple[Tracker, ...] = ()
    """What shows the metrics besides, each an extra of its name."""
    measure_peak: bool = False
    """Time some matrix products at the start where the device's own rate is not known, so that `mfu` is."""
    profile: tuple[int, int] | None = None
    """First and last step to trace into `profile/`, counted from where this start of the run begins."""
    description: str = ""
    """What the run is for, for a person."""
    expected_result: str = ""
    """What a person should see when it worked."""

    def __post_init__(self) -> None:
        _require(bool(self.name.strip()), "name", self.name, "a name", "it labels logs and reports")
        for key in ("steps", "log_every", "save_every", "keep_checkpoints"):
            value = getattr(self, key)
            _require(value >= 1, key, value, "1 or more", "set it in the recipe or as an override")
        for key in ("num_threads", "sample_every", "gate_every"):
            value = getattr(self, key)
            _require(value is None or value >= 1, key, value, "1 or more, or null", "null leaves it out")
        _require(
            self.profile is None or 2 <= self.profile[0] <= self.profile[1],
            "profile",
            self.profile,
            "two steps in order, the first 2 or more, or null",
            "try [3, 6]",
        )
        _require(
            self.tensorboard is not False or "tensorboard" not in self.trackers,
            "tensorboard",
            self.tensorboard,
            "true or null where trackers names it",
            "leave tensorboard out",
        )
        _require(self.seed >= 0, "seed", self.seed, "0 or more", "any whole number will do")
        _require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more", "0 uses no processes")
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "ema_decay",
            self.ema_decay,
            "a number between 0 and 1, or null",
            "try 0.999",
        )
