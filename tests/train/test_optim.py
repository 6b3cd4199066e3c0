import pytest
import torch
from tests.train.line_objective import LineObjective
from torch import nn

from dreamllm.errors import ConfigError
from dreamllm.train.objectives.objective import ParameterGroup
from dreamllm.train.optim import build_optimizer, set_lr, trainable_parameters
from dreamllm.train.run_config import OptimConfig

CONFIG = OptimConfig(lr=0.5, weight_decay=0.1, betas=(0.8, 0.9))


def test_groups_keep_their_learning_rate_scale_and_weight_decay() -> None:
    objective = LineObjective()

    optimizer = build_optimizer(objective.module, objective.parameter_groups(), CONFIG)
    set_lr(optimizer, 0.2)

    head, offset = optimizer.param_groups
    assert (head["lr"], head["weight_decay"], head["betas"]) == (0.2, 0.1, (0.8, 0.9))
    assert (offset["lr"], offset["weight_decay"]) == (0.1, 0.0)


def test_the_first_step_moves_every_weight_by_the_learning_rate() -> None:
    """AdamW's first step is lr * sign(gradient), after decay: 2 - 0.5 * 0.1 * 2 - 0.5 = 1.4."""
    weight = nn.Linear(1, 1, bias=False)
    weight.weight.data.fill_(2.0)
    group = ParameterGroup(name="all", parameters=list(weight.parameters()), weight_decay=True)
    optimizer = build_optimizer(weight, [group], CONFIG)

    weight(torch.ones(1, 1)).sum().backward()
    optimizer.step()

    torch.testing.assert_close(weight.weight.detach(), torch.tensor([[1.4]]))


def test_frozen_parameters_are_not_trainable_and_tied_ones_count_once() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    module["a"].bias.requires_grad_(False)

    assert list(trainable_parameters(module)) == ["a.weight", "b.bias"]


def test_a_trainable_parameter_without_a_group_is_named() -> None:
    module = nn.Linear(2, 2)
    group = ParameterGroup(name="all", parameters=[module.weight])

    with pytest.raises(ConfigError, match=r"in no group: bias; .*add them, or freeze them"):
        build_optimizer(module, [group], CONFIG)


def test_a_parameter_in_two_groups_is_named() -> None:
    module = nn.Linear(2, 2)
    groups = [
        ParameterGroup(name="all", parameters=list(module.parameters())),
        ParameterGroup(name="again", parameters=[module.bias]),
    ]

    with pytest.raises(ConfigError, match="bias is in the parameter groups 'all' and 'again'"):
        build_optimizer(module, groups, CONFIG)


def test_a_grouped_parameter_that_is_frozen_or_half_is_named() -> None:
    module = nn.Linear(2, 2).to(torch.bfloat16)

    with pytest.raises(ConfigError, match=r"weight in .*requires_grad=True and torch.bfloat16"):
        build_optimizer(module, [ParameterGroup(name="a", parameters=list(module.parameters()))], CONFIG)


def test_a_grouped_parameter_of_another_module_is_refused() -> None:
    module, other = nn.Linear(2, 2), nn.Linear(3, 1)
    group = ParameterGroup(name="a", parameters=[*module.parameters(), *other.parameters()])

    with pytest.raises(ConfigError, match=r"\(1, 3\) parameter that is not in the objective's module"):
        build_optimizer(module, [group], CONFIG)


def test_a_module_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter requires a gradient"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), [], CONFIG)
