"""What README.md says can be typed: verbs and flags parse, Python compiles, recipes and documents load."""

import ast
import functools
import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro
import yaml
from PIL import Image as PILImage

import dreamllm
from dreamllm.cli import GROUPS, VERBS
from dreamllm.config import load_config
from dreamllm.document.jsonl import read_documents
from dreamllm.recipes import find_recipe, recipe_names
from dreamllm.train.run_config import RunConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [
    line
    for block in blocks("bash")
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


def parsed(line: str) -> tuple[str, tuple[object, ...], dict[str, object]]:
    """The verb of a command, and the arguments its `run` would get."""
    program, verb, *rest = shlex.split(line, comments=True)
    assert program == "dreamllm"
    if verb in GROUPS:
        verbs = importlib.import_module(f"dreamllm.cli.{verb}").VERBS
        assert rest[0] in verbs
        verb, rest = f"{verb}_{rest[0]}", rest[1:]
    else:
        assert verb in VERBS
    run = importlib.import_module(f"dreamllm.cli.{verb.replace('-', '_')}").run
    keep = functools.wraps(run)(lambda *given, **named: (given, named))
    given, named = tyro.cli(keep, args=rest)
    return verb, given, named


def test_there_is_something_of_every_kind() -> None:
    assert all(len(blocks(language)) >= 1 for language in ("python", "bash", "yaml", "json"))
    assert {line.split()[1] for line in COMMANDS} == {
        "generate",
        "show-config",
        "train",
        "eval",
        "fuse",
        "data",
    }


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    verb, given, _ = parsed(line)

    if verb in ("train", "show-config") and not str(given[0]).endswith(".yaml"):
        assert find_recipe(str(given[0])).is_file()


def test_a_flag_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(SystemExit):
        parsed("dreamllm train tiny --out runs/tiny --onli stage2")


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_uses_public_names(block: str) -> None:
    tree = ast.parse(block)

    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dreamllm":
            assert {alias.name for alias in node.names} <= set(dreamllm.__all__)
    methods = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert methods - {"save", "open"} <= set(dir(dreamllm.DreamLLM))


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_recipe_loads(block: str) -> None:
    config = load_config(RunConfig, yaml.safe_load(block))

    assert config.name


def test_the_documents_can_be_read(tmp_path: Path) -> None:
    PILImage.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (tmp_path / "documents.jsonl").write_text("".join(blocks("json")), encoding="utf-8")

    documents = read_documents(tmp_path / "documents.jsonl")

    assert [document.is_conversation for document in documents] == [False, True]
    assert [len(document.images) for document in documents] == [1, 1]


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)

    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_family_is_told_of() -> None:
    families = {name for name in recipe_names() if "/" not in name}

    assert families <= set(re.findall(r"`([\w-]+)`", TEXT))
