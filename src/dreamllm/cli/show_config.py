"""`dreamllm show-config`: what a run would be, without running it."""

from typing import Annotated

import tyro

from dreamllm.config import load_config, to_yaml
from dreamllm.errors import ConfigError
from dreamllm.recipes import find_recipe, is_family


def run(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY=VALUE ...]")
    ] = (),
    /,
) -> None:
    """Print a recipe as a run would see it: defaults filled in, overrides applied, everything checked.

    Args:
        recipe: A YAML file, or a shipped recipe such as tiny/vae.
        overrides: Dotted assignments, such as optim.lr=2e-5.
    """
    path = find_recipe(recipe)
    if is_family(path):
        raise ConfigError(
            f"{recipe!r} is a family of runs, expected the recipe of one run; "
            f"show one of them, such as `dreamllm show-config {path.parent.name}/vae`"
        )
    from dreamllm.train.run_config import RunConfig  # late, so that `--help` does not wait for torch

    print(to_yaml(load_config(RunConfig, path, overrides)), end="")
