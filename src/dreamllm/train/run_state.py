"""The live state of a run, and its way into and out of a checkpoint.

Saved are the parameters that require a gradient, persistent buffers, the optimizer, the moving average and
the loss scale. Frozen parameters are rebuilt from the config. No generator state: see `runtime/seeding.py`.
"""

import copy
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamllm.checkpoint.store import RunState, read_header, read_parts
from dreamllm.config import to_dict
from dreamllm.errors import CheckpointError
from dreamllm.runtime.distributed import ALONE, Ranks
from dreamllm.train.ema import WeightAverage
from dreamllm.train.objectives.objective import Objective
from dreamllm.train.optim import build_optimizer, trainable_parameters
from dreamllm.train.run_config import FREE_ON_RESUME, RunConfig
from dreamllm.train.sharding import Losses, compile_layers, gather_into, shard, shardable
from dreamllm.train.step import LossesOf
from dreamllm.version import __version__

MAX_NAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """A config and an objective with everything that moves while they train."""

    config: RunConfig
    objective: Objective
    device: torch.device
    optimizer: torch.optim.AdamW
    average: WeightAverage | None
    scaler: torch.amp.GradScaler | None
    ranks: Ranks = ALONE
    """Those that train together."""
    root: Losses | None = None
    """What computes the losses where the objective is sharded."""
    nothing: Any = None
    """A micro-batch for a rank that has none."""
    shown: Objective | None = None
    """On the main of many ranks: the objective as one process has it, for samples, gates and exports."""

    @classmethod
    def start(
        cls, config: RunConfig, objective: Objective, device: torch.device, ranks: Ranks = ALONE
    ) -> "Run":
        """Move the objective to the device, spread it over the ranks and build what trains it.

        Raises:
            ConfigError: it cannot train on so many ranks, or in this way.
        """
        root, nothing, shown = None, None, None
        if config.parallel.compile:
            compile_layers(objective)
        if not ranks.is_alone:
            spread = shardable(objective, config, ranks)
            nothing = spread.nothing()
            if ranks.is_main:
                shown, spread = objective, copy.copy(spread)
                setattr(spread, "module", copy.deepcopy(objective.module))  # noqa: B010  (read-only in the protocol)
            root = shard(spread, config, device=device, ranks=ranks)
            objective = spread
        objective.to(device)
        optimizer = build_optimizer(objective.module, objective.parameter_groups(), config.optim)
        parameters = trainable_parameters(objective.module)
        return cls(
            config=config,
            objective=objective,
            device=device,
            optimizer=optimizer,
            average=None if config.ema_decay is None else WeightAverage(parameters, config.ema_decay),
            scaler=torch.amp.GradScaler(device.type) if config.precision == "float16" else None,
            ranks=ranks,
            root=root,
            nothing=nothing,
            shown=shown,
        )

    @property
    def losses(self) -> LossesOf:
        """What computes the losses of a micro-batch."""
        return self.objective.losses if self.root is None else self.root.terms

    def gather(self) -> None:
        """Bring the weights that others are to see, averaged where there is an average, to the main rank."""
        tensors = _model_tensors(self.objective.module)
        gather_into(
            None if self.shown is None else self.shown.module,
            tensors if self.average is None else {**tensors, **self.average.averages},
        )

    def capture(self, step: int) -> RunState:
        """What a checkpoint of this step holds."""
        names = {id(value): name for name, value in trainable_parameters(self.objective.module).items()}
        optimizer = {
            f"{names[id(parameter)]}/{key}": value
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        tensors: dict[str, Mapping[str, Tensor]] = {
            "model": _model_tensors(self.objective.module),
            "optimizer": optimizer,
        }
        if self.average is not None:
            tensors["ema"] = self.average.averages
        info = {
            "config": to_dict(self.config),
            "versions": {
                "dreamllm": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema_updates": 0 if self.average is None else self.average.num_updates,
        }
        return RunState(step=step, tensors=tensors, info=info)

    def restore(self, state: RunState) -> None:
        """Go back to a checkpoint.

        Raises:
            CheckpointError: it was saved by a different config, or its tensors do not fit the model.
        """
        check_same_config(state.info["config"], to_dict(self.config), state.step)
        _fill(_model_tensors(self.objective.module), state.tensors["model"], "model")
        self._restore_optimizer(state.tensors["optimizer"])
        if self.average is not None:
            _fill(self.average.averages, state.tensors["ema"], "moving average")
            self.average.num_updates = state.info["ema_updates"]
        if self.scaler is not None:
            self.scaler.load_state_dict(state.info["scaler"])

    def restore_from(self, path: Path) -> int:
        """Go back to a checkpoint folder, every rank reading its part; the number of steps done.

        Raises:
            CheckpointError: it was saved by a different config, or its tensors do not fit the model.
        """
        saved = read_header(path)
        check_same_config(saved.info["config"], to_dict(self.config), saved.step)
        parameters = trainable_parameters(self.objective.module)
        optimizer = {
            full_name: _like(shape, parameters[full_name.rpartition("/")[0]])
            for full_name, shape in saved.shapes["optimizer"].items()
            if full_name.rpartition("/")[0] in parameters
        }
        targets: dict[str, Mapping[str, Tensor]] = {
            "model": _model_tensors(self.objective.module),
            "optimizer": optimizer,
        }
        if self.average is not None:
            targets["ema"] = self.average.averages
            self.average.num_updates = saved.info["ema_updates"]
        for part, tensors in targets.items():
            _check_fit(
                {name: tensor.shape for name, tensor in tensors.items()}, saved.shapes.get(part, {}), part
            )
        read_parts(path, targets)
        self._restore_optimizer(optimizer)
        return saved.step

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        places = {id(p): i for i, p in enumerate(p for g in self.optimizer.param_groups for p in g["params"])}
        parameters = trainable_parameters(self.objective.module)
        states: dict[int, dict[str, Tensor]] = {}
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition("/")
            if name not in parameters:
                raise CheckpointError(
                    f"the checkpoint has optimizer state for {name!r}, which the model does not train, "
                    "expected a trainable parameter of that name; resume with the code that wrote it"
                )
            states.setdefault(places[id(parameters[name])], {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})


def check_same_config(saved: Mapping[str, Any], current: Mapping[str, Any], step: int) -> None:
    """Refuse to resume another run than the one that was saved.

    Raises:
        CheckpointError: a key outside `FREE_ON_RESUME` differs, or the run is already longer than its steps.
    """
    old, new = _flat(saved), _flat(current)
    absent = "absent"
    changes = [
        f"{key} was {old.get(key, absent)!r} and is {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in FREE_ON_RESUME and old.get(key, absent) != new.get(key, absent)
    ]
    if changes:
        raise CheckpointError(
            f"the checkpoint of step {step} was saved by another config: {'; '.join(changes)}; expected the "
            "same values; change them back, or start in another folder"
        )
    if step > current["steps"]:
        raise CheckpointError(
            f"the checkpoint has {step} steps, expected at most the config's {current['steps']}; raise "
            "steps, or start in another folder"
        )


def _model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and persistent buffers, by name; these are the live tensors, not copies."""
    tensors: dict[str, Tensor] = dict(trainable_parameters(module))
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    state = module.state_dict(keep_vars=True)
    return tensors | {name: value for name, value in state.items() if name in buffers}


def _like(shape: torch.Size, parameter: nn.Parameter) -> Tensor:
    """Room for a value of the optimizer: one for each weight, spread as the weights are, or one number."""
    return torch.zeros_like(parameter) if shape == parameter.shape and shape else torch.zeros(shape)


def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], what: str) -> None:
    _check_fit(
        {name: target.shape for name, target in targets.items()},
        {name: value.shape for name, value in values.items()},
        what,
    )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def _check_fit(own: Mapping[str, torch.Size], saved: Mapping[str, torch.Size], what: str) -> None:
    for names, fault in (
        (own.keys() - saved.keys(), "lacks"),
        (saved.keys() - own.keys(), "has, and the run does not,"),
        ({name for name in own.keys() & saved.keys() if own[name] != saved[name]}, "has in another shape"),
    ):
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            raise CheckpointError(
                f"the checkpoint's {what} {fault} {', '.join(sorted(names)[:MAX_NAMES])}{more}; expected the "
                "trained tensors of this run; resume with the code and the frozen parts that wrote it"
            )


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree:
        items = [(str(index), value) for index, value in enumerate(tree)]
    else:
        return {place: tree}
    return {
        key: value
        for name, below in items
        for key, value in _flat(below, f"{place}.{name}" if place else name).items()
    }
