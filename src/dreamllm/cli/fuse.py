"""`dreamllm fuse`: a text parent and an image parent become one JAM."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.fusion.config import FusionConfig

if TYPE_CHECKING:
    from dreamllm.checkpoint.fused import Parents
    from dreamllm.fusion.compatibility import Report

DEFAULTS = FusionConfig()
MIN_WIDTH = 118
"""Columns the table gets in a pipe or a file."""
_STYLES = {"same": "green", "differs, bridged": "yellow"}
"""Of a verdict; every other one is red."""


def run(
    text_model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT_MODEL")],
    image_model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE_MODEL")],
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OUT]")] = None,
    /,
    *,
    fusion: Annotated[FusionConfig, tyro.conf.arg(name="")] = DEFAULTS,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Fuse two parents of one vocabulary into a JAM, and save it with its self-test and its card.

    What the parents have in common is shown first. Nothing is written if they cannot be fused in this way.

    Args:
        text_model: Folder or hub id of the parent that knows words; its tokenizer is taken.
        image_model: Folder or hub id of the parent that knows pictures; its image tokenizer is taken.
        out: Folder to write; it appears whole or not at all.
        fusion: How they become one.
        dtype: Type of all weights on disk; they are fused in float32.
        seed: Of new weights.
        dry_run: Only show what the parents have in common.
    """
    _check(out, fusion, dry_run=dry_run)
    from dreamllm.checkpoint.fused import load_parents  # late, so that `--help` does not wait for torch
    from dreamllm.runtime.logs import configure_logging
    from dreamllm.runtime.seeding import seed_everything

    configure_logging()
    seed_everything(seed)
    parents = load_parents(text_model, image_model)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else MIN_WIDTH)
    console.print(table_of(parents.report))
    allowed = ", ".join(parents.report.allows) or "none"
    console.print(f"these parents allow: {allowed}", markup=False, soft_wrap=True)
    parents.report.check(fusion.method)
    for line in _sizes(fusion, parents):
        console.print(line, markup=False, soft_wrap=True)
    if not dry_run and out is not None:
        _write(fusion, parents, out, dtype=dtype)
        console.print(f"written to {out}", markup=False, soft_wrap=True)


def table_of(report: "Report") -> Table:
    """A row a property, with what a difference means."""
    table = Table("property", "text parent", "image parent", "verdict", "note", title_justify="left")
    for row in report.rows:
        verdict = Text(row.verdict, style=_STYLES.get(row.verdict, "red"))
        if row.prevents:
            verdict.append(f": {', '.join(row.prevents)}")
        table.add_row(Text(row.name), Text(row.text), Text(row.image), verdict, Text(row.note))
    return table


def _check(out: Path | None, fusion: FusionConfig, *, dry_run: bool) -> None:
    """Mistakes that need no parent to be found."""
    if out is None and not dry_run:
        raise ConfigError("there is no OUT; expected a folder to write; name one, or ask for --dry-run")
    if out is not None and out.exists():
        raise CheckpointError(f"{out} exists; parents are fused into a new folder; choose another name")
    for method in ("uniform", "width", "cross"):
        if method != fusion.method and getattr(fusion, method) != getattr(DEFAULTS, method):
            raise ConfigError(
                f"there are options of method {method!r}, but the method is {fusion.method!r}; expected "
                f"those of one method; leave --{method}.* out, or choose --method {method}"
            )


def _sizes(fusion: FusionConfig, parents: "Parents") -> list[str]:
    """Parameters of the parents, and of what comes of them."""
    from dreamllm.fusion.sizes import num_fused

    text, image = (each.model.language_model for each in (parents.text, parents.image))
    fused = num_fused(fusion, text.config, image.config, tokens=parents.text.encoder.tokens)
    sizes = [sum(tensor.numel() for tensor in model.parameters()) for model in (text, image)]
    return [
        f"parameters of the language models: text parent {sizes[0]:,}, image parent {sizes[1]:,}, "
        f"fused by {fusion.method} {fused:,}"
    ]


def _write(fusion: FusionConfig, parents: "Parents", out: Path, *, dtype: str) -> None:
    import torch

    from dreamllm.checkpoint.card import facts_of, write_card
    from dreamllm.checkpoint.fused import fuse_parents
    from dreamllm.checkpoint.jam import load_jam, load_jam_encoder, save_jam
    from dreamllm.checkpoint.self_test import write_self_test

    fused = fuse_parents(fusion, parents)
    save_jam(
        fused.model,
        out,
        tokenizer=fused.encoder.tokenizer,
        target_transform=fused.encoder.target_transform,
        sources=fused.sources,
        dtype=getattr(torch, dtype),
    )
    written = load_jam(out)  # what is on disk may be rounded
    write_self_test(out, written, load_jam_encoder(out, written))
    write_card(facts_of(out), out)
