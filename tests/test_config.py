import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamllm.config import load_config, to_dict, to_yaml
from dreamllm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Diffusion:
    kind: Literal["diffusion"] = "diffusion"
    num_steps: int = 50
    guidance: float = 7.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    source: Path
    kind: Literal["copy"] = "copy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}, expected a number above 0; try 1e-4")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    name: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    name: str
    steps: int = 10
    decoder: Diffusion | Copy = field(default_factory=Diffusion)
    optim: Optim = field(default_factory=lambda: Optim(lr=3e-4, schedule="linear"))
    parts: tuple[Part, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    folder: Path | None = None
    is_fast: bool = False
    limit: int | str | None = None
    tags: list[str] = field(default_factory=list)


def message_of(tree: Mapping[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Config, tree, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_recipe_becomes_a_config(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """
name: stage1
decoder: {kind: copy, source: pictures/a.png}
optim:
  lr: 2e-5
parts:
  - name: captions
    weight: 2
  - {name: stories}
weights: {denoising: 10, next_token: 1e0}
folder: runs/a
limit: 4
"""
    )

    assert load_config(Config, path) == Config(
        name="stage1",
        decoder=Copy(source=Path("pictures/a.png")),
        optim=Optim(lr=2e-5, schedule="linear"),
        parts=(Part(name="captions", weight=2.0), Part(name="stories")),
        weights={"denoising": 10.0, "next_token": 1.0},
        folder=Path("runs/a"),
        limit=4,
    )


def test_keys_left_out_keep_the_default_even_inside_a_default_that_is_a_config() -> None:
    config = load_config(Config, {"name": "a"}, ["optim.betas=[0.8, 0.9]", "decoder.num_steps=5"])

    assert config.optim == Optim(lr=3e-4, schedule="linear", betas=(0.8, 0.9))
    assert config.decoder == Diffusion(num_steps=5)


def test_changing_the_kind_takes_nothing_over_from_the_default() -> None:
    config = load_config(Config, {"name": "a"}, ["decoder.kind=copy", "decoder.source=b"])

    assert config.decoder == Copy(source=Path("b"))


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("optim.lr=2e-5", "optim.lr", 2e-5),
        ("optim.lr=3", "optim.lr", 3.0),
        ("steps=1e4", "steps", 10_000),
        ("steps=20_000", "steps", 20_000),
        ("is_fast=true", "is_fast", True),
        ("folder=null", "folder", None),
        ("folder=a=b/c", "folder", Path("a=b/c")),
        ("limit=all", "limit", "all"),
        ("tags=[a, b]", "tags", ["a", "b"]),
        ("weights.extra=1.5", "weights.extra", 1.5),
        ("parts.1.weight=0", "parts.1.weight", 0.0),
        ("optim.schedule=cosine", "optim.schedule", "cosine"),
        ("decoder.guidance=inf", "decoder.guidance", math.inf),
    ],
)
def test_overrides_reach_every_place_with_the_type_of_the_field(
    override: str, key: str, expected: Any
) -> None:
    tree = {"name": "a", "folder": "x", "parts": [{"name": "p"}, {"name": "q"}], "limit": 3}

    value: Any = load_config(Config, tree, [override])
    for step in key.split("."):
        if isinstance(value, Sequence):
            value = value[int(step)]
        else:
            value = value[step] if isinstance(value, dict) else getattr(value, step)

    assert value == expected
    assert type(value) is type(expected)


def test_the_last_override_wins_and_the_source_is_not_changed() -> None:
    tree = {"name": "a", "optim": {"lr": 1.0}}

    config = load_config(Config, tree, ["optim.lr=2", "optim.lr=3"])

    assert config.optim.lr == 3.0
    assert tree == {"name": "a", "optim": {"lr": 1.0}}


@pytest.mark.parametrize(
    ("tree", "override", "message"),
    [
        ({"stepz": 3}, "", "unknown key 'stepz', expected a key of Config; did you mean 'steps'?"),
        ({}, "optim.rl=3", "unknown key 'optim.rl', expected a key of Optim; did you mean 'lr'?"),
        (
            {},
            "optim.zzz=3",
            "unknown key 'optim.zzz', expected a key of Optim; its keys are lr, betas, schedule",
        ),
        ({"parts": [{"name": "a"}, {"nam": "b"}]}, "", "unknown key 'parts.1.nam', expected a key of Part"),
        ({"parts": [{}]}, "", "the key 'parts.0.name' is missing, expected text; add it"),
        ({"steps": "many"}, "", "steps is 'many' (text), expected a whole number; round it"),
        ({"steps": 2.5}, "", "steps is 2.5 (a number), expected a whole number; round it"),
        ({"steps": True}, "", "steps is True (true or false), expected a whole number"),
        ({"steps": None}, "", "steps is nothing, expected a whole number"),
        ({}, "optim.lr=fast", "optim.lr is 'fast' (text), expected a number; write it without quotes"),
        ({"is_fast": 1}, "", "is_fast is 1 (a number), expected true or false; write true or false"),
        ({"name": 3}, "", "name is 3 (a number), expected text; put it in quotes"),
        ({"optim": {"betas": [0.9]}}, "", "optim.betas is [0.9] (a list), expected a list of 2 items"),
        ({"tags": "a"}, "", "tags is 'a' (text), expected a list; write it as [a, b]"),
        ({"weights": [1]}, "", "weights is [1] (a list), expected a mapping of keys to values"),
        ({"weights": {"a": "b"}}, "", "weights.a is 'b' (text), expected a number"),
        ({"limit": [1]}, "", "limit is [1] (a list), expected a whole number or text"),
        ({"optim": 3}, "", "optim is 3 (a number), expected a mapping with the keys of Optim"),
        ({}, "optim.schedule=cosin", "expected one of cosine, linear; did you mean 'cosine'?"),
        ({}, "decoder.kind=difusion", "expected one of diffusion, copy; did you mean 'diffusion'?"),
        ({}, "decoder.kind=copy", "the key 'decoder.source' is missing, expected a path"),
        ({}, "decoder.source=x", "unknown key 'decoder.source', expected a key of Diffusion"),
        ({}, "optim.lr=-1", "in optim: lr is -1.0, expected a number above 0; try 1e-4"),
        ({}, "optim.lr", "the override 'optim.lr' has no value, expected key=value"),
        ({}, "optim..lr=3", "the override 'optim..lr=3' has no value, expected key=value"),
        ({}, "tags=[a", "the value of the override 'tags=[a' is not YAML"),
        ({"parts": [{"name": "a"}]}, "parts.1.name=b", "asks for item '1' of parts, which has 1 items"),
        ({"steps": 3}, "steps.a=1", "goes below steps, which is 3 (a number), expected a mapping or a list"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place_and_its_cure(
    tree: dict[str, Any], override: str, message: str
) -> None:
    assert message in message_of({"name": "a"} | tree, *([override] if override else []))


def test_a_union_without_a_kind_lists_the_kinds() -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Either:
        decoder: Diffusion | Copy

    with pytest.raises(ConfigError, match=r"'decoder\.kind' is missing, expected one of diffusion, copy;"):
        load_config(Either, {"decoder": {"num_steps": 3}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nsteps: 3\nname: b\n", "the key 'name' stands here twice"),
        ("optim: {lr: 1, lr: 2}", "the key 'lr' stands here twice"),
        ("name: [a", "is not YAML"),
        ("- a\n- b\n", "expected a mapping of keys to values"),
        ("", "holds nothing, expected a mapping"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_config(Config, path)

    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml cannot be read: No such file"):
        load_config(Config, tmp_path / "none.yaml")


FINITE = st.floats(allow_nan=False, width=64)
# PyYAML writes U+0085 as it is and reads it back as a line break.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), max_size=8)
CONFIGS = st.builds(
    Config,
    name=TEXT,
    steps=st.integers(),
    decoder=st.builds(Diffusion, num_steps=st.integers(), guidance=FINITE)
    | st.builds(Copy, source=st.sampled_from([Path("a/b"), Path("c")])),
    optim=st.builds(
        Optim,
        lr=st.floats(min_value=1e-300, allow_nan=False),
        betas=st.tuples(FINITE, FINITE),
        schedule=st.sampled_from(["cosine", "linear"]),
    ),
    parts=st.lists(st.builds(Part, name=TEXT, weight=FINITE), max_size=3).map(tuple),
    weights=st.dictionaries(TEXT, FINITE, max_size=3),
    folder=st.none() | st.just(Path("x")),
    is_fast=st.booleans(),
    limit=st.none() | st.integers() | TEXT,
    tags=st.lists(TEXT, max_size=3),
)


@settings(deadline=None)
@given(CONFIGS)
def test_a_config_written_as_yaml_is_read_back_equal(config: Config) -> None:
    assert load_config(Config, to_dict(config)) == config
    assert load_config(Config, yaml.safe_load(to_yaml(config))) == config


def test_a_config_as_a_dict_holds_only_plain_values_in_field_order() -> None:
    config = Config(name="a", folder=Path("x/y"), parts=(Part(name="p"),), decoder=Copy(source=Path("s")))

    assert list(to_dict(config).items())[:5] == [
        ("name", "a"),
        ("steps", 10),
        ("decoder", {"source": "s", "kind": "copy"}),
        ("optim", {"lr": 3e-4, "betas": [0.9, 0.999], "schedule": "linear"}),
        ("parts", [{"name": "p", "weight": 1.0}]),
    ]
