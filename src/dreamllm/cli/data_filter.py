"""`dreamllm data filter`: the documents that pass rules, as shards, and a report of those that do not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table
from rich.text import Text

from dreamllm.cli.data import make_console, open_archive, with_progress
from dreamllm.data.filters import Filter, FilterRules
from dreamllm.errors import ConfigError, DocumentError

if TYPE_CHECKING:
    from dreamllm.data.measures import Documents, MeasureOptions

REPORT = "filter.json"
DEFAULTS = FilterRules()


def run(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")],
    /,
    *,
    out: Path,
    format: str = "auto",
    format_options: tuple[str, ...] = (),
    rules: Annotated[FilterRules, tyro.conf.arg(name="")] = DEFAULTS,
    tokenizer: Path | None = None,
    decode: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    documents_per_shard: int = 1000,
    workers: int = 0,
) -> None:
    """Write the documents that pass the rules as shards, with a report of what was left out by which rule.

    Rules apply in the order in which they stand here, and a document counts under the first that it breaks.
    The folder appears whole or not at all; the report is in it, as filter.json.

    Args:
        path: A JSONL file, a folder of shards, or whatever --format names.
        out: Folder to write; it must not exist.
        format: How the documents are stored; auto finds out.
        format_options: KEY=VALUE, as the options of a source of that format in a recipe.
        rules: Which documents stay.
        tokenizer: Folder with a tokenizer.json, or a model folder; rules about tokens need it.
        decode: Decode every picture whole: damage behind its header is a fault, and pictures that look the
            same are duplicates, not only those of equal bytes.
        documents_per_shard: Documents of one shard.
        workers: Processes that measure documents; 0 measures in this one. The result is the same.
    """
    if rules.is_empty:
        raise ConfigError(
            "no rule is given, so that every document would stay; expected at least one, such as "
            "--min-pictures 1; add it, or use `dreamllm data shard`, whose --on-fault skip leaves out faults"
        )
    if rules.needs_tokens and tokenizer is None:
        raise ConfigError(
            f"min_tokens is {rules.min_tokens} and max_tokens is {rules.max_tokens}, but there is no "
            "tokenizer; expected --tokenizer FOLDER; add it"
        )
    from dreamllm.data.measures import MeasureOptions

    archive = open_archive(path, format, options=format_options)
    filter_ = Filter(rules, num_documents=len(archive))
    options = MeasureOptions(decode=decode, tokenizer=tokenizer, sketch=rules.duplicates == "near")
    write_kept(
        archive,
        out,
        filter_=filter_,
        options=options,
        documents_per_shard=documents_per_shard,
        num_workers=workers,
        source=path,
    )
    console = make_console()
    console.print(dropped_table(filter_, size=len(archive)))
    console.print(f"written to {out}, the report to {out / REPORT}", markup=False, soft_wrap=True)


def write_kept(
    documents: "Documents",
    out: Path,
    *,
    filter_: Filter,
    options: "MeasureOptions",
    documents_per_shard: int,
    num_workers: int,
    source: Path,
) -> None:
    """Write shards of the documents a filter keeps, and the filter's report, as one new folder.

    Raises:
        DocumentError: no document is kept.
        DiskError: the folder cannot be written.
    """
    from dreamllm.data.rewriting import kept_documents, new_folder
    from dreamllm.data.shards import write_shards
    from dreamllm.document.atomic import write_bytes
    from dreamllm.document.jsonl import json_bytes

    indices = range(len(documents))
    with new_folder(out) as aside:
        moving = with_progress(indices, total=len(documents), what="writing")
        kept = kept_documents(documents, moving, filter_=filter_, options=options, num_workers=num_workers)
        write_shards(kept, aside, documents_per_shard=documents_per_shard)
        if filter_.num_kept == 0:
            raise DocumentError(
                f"none of {len(documents):,} documents is kept: {dict(filter_.dropped)}; expected at "
                "least one; nothing was written; loosen the rules"
            )
        report = {"source": str(source), "documents": len(documents), **filter_.to_dict()}
        write_bytes(aside / REPORT, json_bytes(report, name="the report", indent=1) + b"\n")


def dropped_table(filter_: Filter, *, size: int) -> Table:
    """What went by which rule, and what stayed."""
    table = Table("rule", "documents", "share", "such as", title_justify="left")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for rule, count in filter_.dropped.most_common():
        examples = Text("\n".join(filter_.examples[rule]))
        table.add_row(Text(rule), f"{count:,}", f"{count / size:.1%}", examples)
    table.add_section()
    table.add_row("kept", f"{filter_.num_kept:,}", f"{filter_.num_kept / size:.1%}", "")
    return table
