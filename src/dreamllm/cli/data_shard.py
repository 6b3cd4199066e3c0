"""`dreamllm data shard`: documents of any format as shards, which open at once whatever their number."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from dreamllm.cli.data import make_console, open_archive
from dreamllm.cli.data_filter import REPORT, dropped_table, write_kept


def run(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")],
    /,
    *,
    out: Path,
    format: str = "auto",
    format_options: tuple[str, ...] = (),
    documents_per_shard: int = 1000,
    on_fault: Literal["raise", "skip"] = "raise",
    decode: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    workers: int = 0,
) -> None:
    """Write documents as shards, in their order, pictures as the bytes they are.

    The folder appears whole or not at all. It opens without being read through, and its documents can be read
    in any order.

    Args:
        path: A JSONL file, or whatever --format names.
        out: Folder to write; it must not exist.
        format: How the documents are stored; auto finds out.
        format_options: KEY=VALUE, as the options of a source of that format in a recipe.
        documents_per_shard: Documents of one shard.
        on_fault: raise ends at the first document that cannot be used; skip leaves those out and counts them.
        decode: Decode every picture whole, so that damage behind its header is a fault too.
        workers: Processes that look at documents; 0 looks in this one. The result is the same.
    """
    from dreamllm.data.filters import Filter, FilterRules
    from dreamllm.data.measures import MeasureOptions

    archive = open_archive(path, format, options=format_options)
    filter_ = Filter(FilterRules(on_fault=on_fault))
    write_kept(
        archive,
        out,
        filter_=filter_,
        options=MeasureOptions(decode=decode, sketch=False),
        documents_per_shard=documents_per_shard,
        num_workers=workers,
        source=path,
    )
    console = make_console()
    if filter_.dropped:
        console.print(dropped_table(filter_, size=len(archive)))
    kept = f"{filter_.num_kept:,} of {len(archive):,} documents written to {out}"
    console.print(f"{kept}, the report to {out / REPORT}", markup=False, soft_wrap=True)
