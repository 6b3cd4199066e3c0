"""The live state of a run, and its way into and out of a checkpoint.

Saved are the parameters that require a gradient, persistent buffers, the optimizer, the moving average and
the loss scale. Frozen parameters are rebuilt from the config. No generator state: see `runtime/seeding.py`.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamllm.checkpoint.store import RunState
from dreamllm.config import to_dict
from dreamllm.errors import CheckpointError
from dreamllm.train.ema import WeightAverage
from dreamllm.train.objectives.objective import Objective
from dreamllm.train.optim import build_optimizer, trainable_parameters
from dreamllm.train.run_config import FREE_ON_RESUME, RunConfig
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

    @classmethod
    def start(cls, config: RunConfig, objective: Objective, device: torch.device) -> "Run":
        """Move the objective to the device and build what trains it."""
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


def _fill(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], what: str) -> None:
    for names, fault in (
        (targets.keys() - values.keys(), "lacks"),
        (values.keys() - targets.keys(), "has, and the run does not,"),
        (
            {n for n in targets.keys() & values.keys() if targets[n].shape != values[n].shape},
            "has in another shape",
        ),
    ):
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            raise CheckpointError(
                f"the checkpoint's {what} {fault} {', '.join(sorted(names)[:MAX_NAMES])}{more}; expected the "
                "trained tensors of this run; resume with the code and the frozen parts that wrote it"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


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
