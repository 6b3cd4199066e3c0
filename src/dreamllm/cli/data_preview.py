"""`dreamllm data preview`: a page that shows a sample of documents as a model will see them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dreamllm.cli.data import make_console, open_archive, sample_indices, with_progress
from dreamllm.errors import ConfigError

if TYPE_CHECKING:
    from dreamllm.data.measures import Documents, MeasureOptions


def run(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")],
    /,
    *,
    out: Path,
    format: str = "auto",
    format_options: tuple[str, ...] = (),
    num: int = 24,
    sample_seed: int = 0,
    first: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    faults: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    tokenizer: Path | None = None,
    workers: int = 0,
) -> None:
    """Write a page that shows a sample of documents: text, pictures, what is learned, how long they are.

    The page is one file that needs no network. Its pictures are decoded, so damage shows.

    Args:
        path: A JSONL file, a folder of shards, or whatever --format names.
        out: The page to write, such as page.html.
        format: How the documents are stored; auto finds out.
        format_options: KEY=VALUE, as the options of a source of that format in a recipe.
        num: How many documents to show.
        sample_seed: Which ones.
        first: Show the first ones instead.
        faults: Show only documents with a fault: they are looked for from the start until there are enough.
        tokenizer: Folder with a tokenizer.json, or a model folder: tokens of the text are counted too.
        workers: Processes that look for faults; 0 looks in this one.
    """
    if num < 1:
        raise ConfigError(f"num is {num}; expected at least 1; raise it")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"out is {out}; expected a name that ends in .html; rename it")
    from dreamllm.data.measures import MeasureOptions, usable
    from dreamllm.data.preview import preview_item, preview_page
    from dreamllm.document.atomic import write_bytes

    archive = open_archive(path, format, options=format_options)
    size = len(archive)
    options = MeasureOptions(decode=True, tokenizer=tokenizer, sketch=False)
    if faults:
        chosen, looked_at = _faulty(archive, num, options=options, num_workers=workers)
        summary = f"{len(chosen):,} documents with a fault, found among the first {looked_at:,} of {size:,}"
    else:
        chosen = list(sample_indices(size, limit=num, seed=None if first else sample_seed))
        which = "the first" if first else f"drawn with seed {sample_seed}"
        summary = f"{len(chosen):,} of {size:,} documents, {which}" if len(chosen) < size else "all documents"
    items = [preview_item(index, usable(archive, index), options=options) for index in chosen]
    write_bytes(out, preview_page(items, title=str(path), summary=summary).encode("utf-8"))
    num_faults = sum(item.fault is not None for item, _ in items)
    console = make_console()
    if not faults:
        summary += f"; {num_faults} of those shown have a fault"
    console.print(summary, markup=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False, soft_wrap=True)


def _faulty(
    documents: "Documents", num: int, *, options: "MeasureOptions", num_workers: int
) -> tuple[list[int], int]:
    """The first indices with a fault, and how many documents were looked at to find them."""
    from dreamllm.data.measures import measure_all
    from dreamllm.document.jsonl import FaultError

    found: list[int] = []
    looked_at = 0
    size = len(documents)

    def measured() -> Iterator[tuple[int, bool]]:
        for index, facts in measure_all(documents, range(size), options=options, num_workers=num_workers):
            yield index, isinstance(facts, FaultError)

    for index, is_fault in with_progress(measured(), total=size, what="looking for faults"):
        looked_at += 1
        if is_fault:
            found.append(index)
            if len(found) == num:
                break
    return found, looked_at
