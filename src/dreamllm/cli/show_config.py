"""`dreamllm show-config`: what a run would be, without running it."""

from pathlib import Path
from typing import Annotated

import tyro

from dreamllm.config import load_config, to_yaml


def run(
    recipe: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY=VALUE ...]")
    ] = (),
    /,
) -> None:
    """Print a recipe as a run would see it: defaults filled in, overrides applied, everything checked.

    Args:
        recipe: Path of a YAML recipe.
        overrides: Dotted assignments, such as optim.lr=2e-5.
    """
    from dreamllm.train.run_config import RunConfig  # late, so that `--help` does not wait for torch

    print(to_yaml(load_config(RunConfig, recipe, overrides)), end="")
