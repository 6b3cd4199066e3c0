"""`dreamllm data VERB`: what is done with documents before a model is trained on them.

A verb is a module of this folder, `data_check.py` for `check`, as the verbs of the command line are.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dreamllm.cli import dispatch, list_verbs

if TYPE_CHECKING:
    from rich.console import Console

    from dreamllm.data.archive import DocumentArchive

T = TypeVar("T")

VERBS = {
    "check": "read every document once: counts, faults, lengths, repetitions",
    "preview": "a page that shows a sample of the documents",
    "shard": "write the documents as shards, which open at once whatever their number",
    "filter": "write the documents that pass rules as shards",
    "cache": "compute once what a recipe needs of every document",
}
"""Every verb and its line in `dreamllm data --help`."""

MIN_WIDTH = 118
"""Columns a table gets in a pipe or a file."""


def run(arguments: Sequence[str]) -> int:
    """Run one verb of `dreamllm data`, and return its exit status."""
    return dispatch(
        arguments,
        VERBS,
        program="dreamllm data",
        show_help=_help,
        module_of=lambda verb: f"dreamllm.cli.data_{verb}",
    )


def _help() -> str:
    return (
        "usage: dreamllm data VERB ...\n\n"
        "Look after documents before a model is trained on them.\n\n"
        f"verbs:\n{list_verbs(VERBS)}\n\n"
        "`dreamllm data VERB --help` lists the options of a verb."
    )


def make_console() -> "Console":
    """For results, on stdout: the width of the terminal, or a fixed one in a pipe."""
    import sys

    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else MIN_WIDTH)


def open_archive(path: Path, format_: str, *, options: Sequence[str]) -> "DocumentArchive":
    """The documents at a path, which are at least one; options are KEY=VALUE.

    Raises:
        DreamLLMError: the path, the format or an option cannot be meant, or there are no documents.
    """
    from dreamllm.config import load_config
    from dreamllm.data.archive import open_documents
    from dreamllm.errors import DocumentError

    given = load_config(_Assignments, {}, [f"option.{assignment}" for assignment in options])
    archive = open_documents(path, format_, given.option)
    if len(archive) == 0:
        raise DocumentError(f"{path} holds 0 documents; expected at least one; check the path and the format")
    return archive


@dataclass(frozen=True, kw_only=True, slots=True)
class _Assignments:
    """Options of a format, read as the overrides of a recipe are."""

    option: dict[str, Any] = field(default_factory=dict)
    """By name."""


def sample_indices(num: int, *, limit: int | None, seed: int | None) -> "range | list[int]":
    """All indices; the first `limit`; or with a seed that many drawn ones, in rising order.

    Raises:
        ConfigError: the limit is below 1, or there is a seed and no limit.
    """
    from dreamllm.errors import ConfigError

    if limit is None and seed is not None:
        raise ConfigError(f"sample_seed is {seed} without a limit; expected both or none; add --limit")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; expected at least 1; raise it or leave it out")
    if limit is None or limit >= num:
        return range(num)
    if seed is None:
        return range(limit)
    import numpy as np

    chosen = np.random.default_rng(seed).choice(num, limit, replace=False)
    return sorted(int(index) for index in chosen)


def with_progress(items: Iterable[T], *, total: int, what: str) -> Iterator[T]:
    """The items, while a bar on stderr moves; without a terminal there is none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=what)
