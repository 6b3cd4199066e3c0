"""`dreamllm data check`: every document read once, and what there is to say about all of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table
from rich.text import Text

from dreamllm.cli.data import make_console, open_archive, sample_indices, with_progress

if TYPE_CHECKING:
    from rich.console import Console

    from dreamllm.data.statistics import Histogram, Statistics

FAULTS_FOUND = 1
_BAR = 40
_DEFAULT_REMEMBERED = 2**19


def run(
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")],
    /,
    *,
    format: str = "auto",
    format_options: tuple[str, ...] = (),
    limit: int | None = None,
    sample_seed: int | None = None,
    tokenizer: Path | None = None,
    decode: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Path | None = None,
    workers: int = 0,
    remembered: int = _DEFAULT_REMEMBERED,
    similarity: float = 0.8,
) -> int:
    """Read documents once and say how many there are, what is wrong, how long they are, and what repeats.

    Exits with 0 if every document can be used, with 1 if some are faulty, with 2 if nothing could be checked.
    A faulty document never ends the check. Memory does not grow with the number of documents.

    Args:
        path: A JSONL file, a folder of shards, or whatever --format names.
        format: How the documents are stored; auto finds out.
        format_options: KEY=VALUE, as the options of a source of that format in a recipe.
        limit: Check this many documents: the first ones, or drawn ones with --sample-seed.
        sample_seed: Draw the documents of --limit with this seed.
        tokenizer: Folder with a tokenizer.json, or a model folder: tokens of the text are counted too.
        decode: Decode every picture whole; otherwise its header is read, and damage further in is not seen.
        json: Write everything that was counted to this file.
        workers: Processes that read; 0 reads in this one. The result is the same.
        remembered: Near-duplicates are looked for among this many recent documents; 500 bytes each.
        similarity: Jaccard similarity from which on two texts are almost the same.
    """
    from dreamllm.data.filters import FilterRules
    from dreamllm.data.measures import MeasureOptions, measure_all
    from dreamllm.data.statistics import Statistics
    from dreamllm.document.atomic import write_bytes
    from dreamllm.document.jsonl import json_bytes

    FilterRules(similarity=similarity, remembered=remembered)  # the same limits hold here
    archive = open_archive(path, format, options=format_options)
    indices = sample_indices(len(archive), limit=limit, seed=sample_seed)
    statistics = Statistics(remembered=min(remembered, len(indices)), similarity=similarity)
    options = MeasureOptions(decode=decode, tokenizer=tokenizer)
    measured = measure_all(archive, indices, options=options, num_workers=workers)
    for index, facts in with_progress(measured, total=len(indices), what="checking"):
        statistics.add(index, facts)
    _print(statistics, path=path, size=len(archive), checked=len(indices), decode=decode)
    if json is not None:
        value = {"path": str(path), "size": len(archive), "checked": len(indices), **statistics.to_dict()}
        write_bytes(json, json_bytes(value, name="the report", indent=1) + b"\n")
    return FAULTS_FOUND if statistics.faults else 0


def _print(statistics: "Statistics", *, path: Path, size: int, checked: int, decode: bool) -> None:
    console = make_console()
    _heading(console, f"{path}: {checked:,} of {size:,} documents")
    console.print(counts_table(statistics))
    histograms = {
        "words a document": statistics.words,
        "tokens a document": statistics.tokens,
        "pictures a document": statistics.pictures,
        "shorter side of a picture, in pixels": statistics.picture_sides,
    }
    for name, histogram in histograms.items():
        if histogram.largest:
            _heading(console, name)
            console.print(histogram_table(histogram))
            console.print(summary_of(histogram), style="dim", soft_wrap=True)
    _heading(console, "what came before")
    console.print(repetition_table(statistics))
    console.print(_what_nearly_means(statistics, decode=decode), style="dim", soft_wrap=True)
    if statistics.faults:
        _heading(console, "what cannot be used")
        console.print(fault_table(statistics))
    console.print()
    faults = statistics.faults.total()
    verdict = f"{faults:,} of {checked:,} documents cannot be used" if faults else "no faults"
    if not decode and statistics.pictures.total:
        verdict += "; pictures were opened, not decoded: --decode looks closer"
    console.print(Text(verdict, style="red" if faults else "green"), soft_wrap=True)


def _heading(console: "Console", text: str) -> None:
    console.print()
    console.print(Text(text, "bold"), soft_wrap=True)


def counts_table(statistics: "Statistics") -> Table:
    """How many of everything."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    pictures = statistics.pictures.total
    rows = [
        ("usable documents", statistics.num_documents),
        ("  conversations", statistics.num_conversations),
        ("  plain documents", statistics.num_documents - statistics.num_conversations),
        ("  nothing to learn in them", statistics.num_unlearned),
        ("  neither text nor pictures", statistics.num_empty),
        ("faulty documents", statistics.faults.total()),
        ("words", statistics.words.total),
        ("tokens of the text", statistics.tokens.total),
        ("pictures", pictures),
        ("  drawn", statistics.num_drawn),
        ("  only read", pictures - statistics.num_drawn),
        *((f"  {shape}", count) for shape, count in statistics.picture_sizes.most_common()),
        *((f"parts of the {role}", count) for role, count in statistics.roles.most_common()),
    ]
    always = ("usable documents", "faulty documents", "words", "pictures")
    for name, count in rows:
        if count or name in always:
            table.add_row(name, f"{count:,}")
    return table


def histogram_table(histogram: "Histogram") -> Table:
    """Bars."""
    table = Table(show_header=False, box=None)
    rows = histogram.octaves()
    most = max(count for _, _, count in rows)
    for low, high, count in rows:
        label = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        table.add_row(Text(label, justify="right"), Text(f"{count:,}", justify="right"), Text(bar, "cyan"))
    return table


def summary_of(histogram: "Histogram") -> str:
    """The numbers that sum a distribution up."""
    return (
        f"smallest {histogram.smallest:,}, median {histogram.quantile(0.5):,}, mean {histogram.mean:,.1f}, "
        f"95 % up to {histogram.quantile(0.95):,}, largest {histogram.largest:,}"
    )


def repetition_table(statistics: "Statistics") -> Table:
    """What came before."""
    table = Table("repeated", "times", "such as")
    for name, count in statistics.repeated.items():
        examples = statistics.repeated_examples.get(name, [])
        shown = ", ".join(f"{index} like {earlier}" for index, earlier in examples)
        table.add_row(name, Text(f"{count:,}", justify="right"), shown)
    return table


def _what_nearly_means(statistics: "Statistics", *, decode: bool) -> str:
    picture = "a first picture that looks the same" if decode else "an equal first picture"
    among = ""
    if statistics.num_documents > statistics.remembered:
        among = f", among the last {statistics.remembered:,} documents"
    return f"nearly: almost the same text and {picture}{among}; exact repetitions are not counted there again"


def fault_table(statistics: "Statistics") -> Table:
    """A kind a row, up to three examples each."""
    from dreamllm.data.statistics import fault_rows

    table = Table("fault", "documents", "index", "what is wrong", show_lines=True)
    for kind, count, examples in fault_rows(statistics):
        for number, (index, message) in enumerate(examples):
            first = number == 0
            table.add_row(
                Text(kind if first else "", "red"),
                Text(f"{count:,}" if first else "", justify="right"),
                f"{index}",
                Text(message),
            )
    return table
