"""AdamW over the parameter groups of an objective, and its state under parameter names."""

from collections.abc import Iterable

import torch
from torch import nn

from dreamllm.errors import ConfigError
from dreamllm.train.objectives.objective import ParameterGroup
from dreamllm.train.run_config import OptimConfig

FUSED_DEVICES = frozenset({"cpu", "cuda"})


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter that requires a gradient, by name; a tied parameter appears once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def build_optimizer(
    module: nn.Module, groups: Iterable[ParameterGroup], config: OptimConfig
) -> torch.optim.AdamW:
    """AdamW with one group for each `ParameterGroup`; fused where the device has it.

    Raises:
        ConfigError: a trainable parameter is in no group or in two, a grouped one is frozen or not float32,
            or nothing is trainable.
    """
    groups = list(groups)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    trainable = trainable_parameters(module)
    _check_groups(groups, names, trainable)
    fused = {parameter.device.type for parameter in trainable.values()} <= FUSED_DEVICES
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters),
                "name": group.name,
                "lr_scale": group.lr_scale,
                "weight_decay": config.weight_decay if group.weight_decay else 0.0,
            }
            for group in groups
            if group.parameters
        ],
        lr=config.lr,
        betas=config.betas,
        fused=fused,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _check_groups(
    groups: list[ParameterGroup], names: dict[int, str], trainable: dict[str, nn.Parameter]
) -> None:
    if not trainable:
        raise ConfigError(
            "no parameter requires a gradient, expected at least one; unfreeze a part of the model"
        )
    place: dict[int, str] = {}
    for group in groups:
        for parameter in group.parameters:
            name = names.get(id(parameter))
            if name is None:
                raise ConfigError(
                    f"parameter group {group.name!r} holds a {tuple(parameter.shape)} parameter that is not "
                    "in the objective's module, expected only its own; register it, or it would not be saved"
                )
            if not parameter.requires_grad or parameter.dtype != torch.float32:
                raise ConfigError(
                    f"{name} in parameter group {group.name!r} has requires_grad={parameter.requires_grad} "
                    f"and {parameter.dtype}, expected True and torch.float32; leave frozen parameters out "
                    "of the groups and keep master weights in float32"
                )
            if id(parameter) in place:
                raise ConfigError(
                    f"{name} is in the parameter groups {place[id(parameter)]!r} and {group.name!r}, "
                    "expected one; remove it from the other"
                )
            place[id(parameter)] = group.name
    left_out = [name for name, parameter in trainable.items() if id(parameter) not in place]
    if left_out:
        raise ConfigError(
            f"{len(left_out)} parameters require a gradient but are in no group: {', '.join(left_out[:8])}; "
            "expected every one in exactly one group; add them, or freeze them"
        )
