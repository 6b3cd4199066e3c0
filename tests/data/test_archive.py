"""The formats, as the documentation has them, and the example it gives."""

import re
from dataclasses import fields
from pathlib import Path

import yaml

from dreamllm.config import load_config
from dreamllm.data.archive import formats
from dreamllm.data.sources import PhaseConfig
from dreamllm.document.jsonl import FaultKind

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """Last cells of the table below a heading, by its first."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {cell[0]: cell[-1].rstrip("|") for cell in cells}


def test_every_format_and_every_option_is_documented() -> None:
    told = {
        name.strip("` "): set(re.findall(r"`(\w+)`", options)) for name, options in rows("Formats").items()
    }

    assert told == {
        name: {field.name for field in fields(format.options)} - {"index_folder"}
        for name, format in formats().items()
    }


def test_every_kind_of_fault_is_documented() -> None:
    told = {kind for cell in rows("Faults") for kind in re.findall(r"`(\w+)`", cell)}

    assert told == set(FaultKind.__args__)  # type: ignore[attr-defined]


def test_the_recipe_of_the_page_is_one() -> None:
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0])

    phases = [load_config(PhaseConfig, phase) for phase in example["phases"]]

    for source in phases[0].sources:
        assert source.kind == "archive"
        assert source.format == "auto" or load_config(formats()[source.format].options, source.options)
