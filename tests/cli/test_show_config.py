"""`dreamllm show-config` prints a recipe that means what the recipe means."""

import pytest
import yaml

from dreamllm.cli import main
from dreamllm.config import load_config
from dreamllm.recipes import find_recipe, is_family, recipe_names
from dreamllm.train.run_config import RunConfig

RECIPES = [name for name in recipe_names() if not is_family(find_recipe(name))]


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_printed_loads_to_the_config_of_the_recipe(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["show-config", name])

    printed = yaml.safe_load(capsys.readouterr().out)
    assert status == 0
    assert load_config(RunConfig, printed) == load_config(RunConfig, find_recipe(name))


def test_a_family_of_recipes_is_not_one_config(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["show-config", "tiny"])

    assert status == 2
    assert "'tiny' is a family of runs" in capsys.readouterr().err


def test_overrides_are_applied_and_defaults_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["show-config", "tiny/vae", "optim.lr=0.25", "seed=7"])

    printed = yaml.safe_load(capsys.readouterr().out)
    assert status == 0
    assert (printed["optim"]["lr"], printed["seed"], printed["precision"]) == (0.25, 7, "float32")


def test_an_override_of_an_unknown_key_offers_the_nearest_and_prints_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = main(["show-config", "tiny/vae", "optim.ler=0.25"])

    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert "unknown key 'optim.ler'" in shown.err
    assert "did you mean 'lr'" in shown.err
