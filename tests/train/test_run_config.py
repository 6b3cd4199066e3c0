import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
from tests.train.line_objective import line_run

from dreamllm.errors import ConfigError
from dreamllm.train.run_config import FREE_ON_RESUME, OptimConfig, RunConfig


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", 0.0, "lr is 0.0, expected a number above 0; try 1e-4"),
        ("betas", (0.9, 1.0), r"betas is \(0.9, 1.0\), expected \[0, 1\)"),
        ("weight_decay", -0.1, "weight_decay is -0.1, expected 0 or more"),
        ("warmup_ratio", 1.0, r"warmup_ratio is 1.0, expected \[0, 1\)"),
        ("final_lr_ratio", 1.5, r"final_lr_ratio is 1.5, expected \[0, 1\]"),
        ("clip_norm", 0.0, "clip_norm is 0.0, expected a number above 0"),
        ("lr", float("nan"), "lr is nan, expected a number above 0"),
    ],
)
def test_an_optimizer_that_cannot_be_meant_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(OptimConfig(lr=1e-3), **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", " "),
        ("steps", 0),
        ("seed", -1),
        ("ema_decay", 1.0),
        ("num_threads", 0),
        ("num_workers", -1),
        ("log_every", 0),
        ("sample_every", 0),
        ("save_every", 0),
        ("keep_checkpoints", 0),
        ("profile", (1, 3)),
        ("profile", (4, 3)),
    ],
)
def test_a_run_that_cannot_be_meant_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key} is {re.escape(repr(value))}, expected "):
        replace(line_run(), **{key: value})


def test_tensorboard_that_is_named_and_refused_is_an_error() -> None:
    with pytest.raises(ConfigError, match="tensorboard is False, expected true or null where trackers names"):
        line_run(tensorboard=False, trackers=("tensorboard",))


def test_the_keys_free_on_resume_are_keys_of_a_run() -> None:
    assert {field.name for field in fields(RunConfig)} >= FREE_ON_RESUME


def test_recipes_are_read_without_loading_torch() -> None:
    code = "import sys, dreamllm.train.run_config; sys.exit('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join(sys.path)})

    assert done.returncode == 0
