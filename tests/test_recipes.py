"""Every shipped recipe says what it can mean, is found by its name, and trains."""

from pathlib import Path

import pytest
import torch

from dreamllm.config import load_config
from dreamllm.errors import ConfigError
from dreamllm.recipes import find_recipe, is_family, recipe_names
from dreamllm.train.family import FamilyConfig, PlannedRun, input_paths, read_family
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.optim import build_optimizer
from dreamllm.train.run_config import RunConfig
from dreamllm.train.step import optimizer_step

FAMILIES = [name for name in recipe_names() if is_family(find_recipe(name))]
RECIPES = [name for name in recipe_names() if name not in FAMILIES]
REDUCED = {
    "language_model": ("hidden_size=32", "num_layers=1", "num_heads=2", "documents_per_step=2"),
    "clip": ("hidden_size=32", "num_layers=1", "num_text_layers=1", "num_heads=2", "scenes_per_step=2"),
    "image_tokenizer": ("block_out_channels=[8, 8, 8, 8]", "scenes_per_step=2"),
    "jam": ("parent.hidden_size=32", "parent.num_layers=1", "parent.num_heads=2", "documents_per_step=2"),
    "vae": ("block_out_channels=[8, 8, 8, 8, 8]", "scenes_per_step=2"),
}
"""Overrides that keep two steps short; objectives that read other results train in the nano family."""


def load(name: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    return load_config(RunConfig, find_recipe(name), overrides)


def needs_nothing(name: str, folder: Path = Path("anywhere")) -> bool:
    """Whether a recipe makes all it needs; a stage of DreamLLM is made of parts."""
    config = load(name)
    reads = input_paths(PlannedRun(name=name, config=config, out_dir=folder))
    return not reads and config.objective.kind != "dreamllm"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads(name: str) -> None:
    config = load(name)

    family, stem = name.split("/")
    assert config.name.startswith(f"{family}-{stem.replace('_', '-')}")
    assert config.description


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_all_recipes_of_its_folder_each_after_what_it_reads(
    name: str, tmp_path: Path
) -> None:
    runs = read_family(find_recipe(name), tmp_path)

    listed = {run.recipe.stem for run in load_config(FamilyConfig, find_recipe(name)).runs}
    assert {f"{name}/{stem}" for stem in listed} == {each for each in RECIPES if each.startswith(f"{name}/")}
    for number, run in enumerate(runs):
        made_before = {earlier.out_dir / "model" for earlier in runs[:number]}
        for path in input_paths(run):
            assert made_before & {path, *path.parents}, (
                f"{run.name} reads {path}, which nothing before it makes"
            )


@pytest.mark.parametrize("name", [name for name in RECIPES if needs_nothing(name)])
def test_a_recipe_that_reads_no_other_result_takes_two_steps(name: str, tmp_path: Path) -> None:
    kind = load(name).objective.kind
    config = load(name, tuple(f"objective.{override}" for override in REDUCED[kind]))
    objective = build_objective(config, tmp_path)
    optimizer = build_optimizer(objective.module, objective.parameter_groups(), config.optim)
    before = [parameter.detach().clone() for parameter in objective.module.parameters()]

    losses = [
        optimizer_step(
            objective,
            optimizer,
            objective.data[step],
            step=step,
            seed=config.seed,
            device=torch.device("cpu"),
            clip_norm=config.optim.clip_norm,
        ).loss
        for step in range(2)
    ]

    assert all(0 < loss < 100 for loss in losses)
    moved = [
        not torch.equal(old, new) for old, new in zip(before, objective.module.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)  # a bias before a norm of one channel may stand still


def test_a_shipped_name_and_a_path_lead_to_the_same_file() -> None:
    path = find_recipe("nano/vae")

    assert path.name == "vae.yaml"
    assert find_recipe(str(path)) == path
    assert find_recipe("nano") == path.parent / "family.yaml"


@pytest.mark.parametrize(
    ("wrong", "right"), [("nano/vea", "'nano/vae'"), ("nanno", "'nano'"), ("tiny/stage-2", "'tiny/stage2'")]
)
def test_an_unknown_name_offers_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown recipe '{wrong}'.*did you mean {right}"):
        find_recipe(wrong)


def test_a_path_without_a_file_lists_what_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe .*mine\.yaml.*nano/vae.*check the path"):
        find_recipe(tmp_path / "mine.yaml")
