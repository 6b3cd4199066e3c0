"""What the benchmarks share: one thread, variants that take turns, a table, and a line of JSON.

Seconds are CPU seconds of this process, so the work must stay on the CPU and in one thread. Other work on
the machine lengthens them far less than it lengthens time on the clock. Only ratios of one run are shown.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def parse_arguments(
    description: str | None, add: Callable[[argparse.ArgumentParser], None], *, rounds: int
) -> argparse.Namespace:
    """The arguments of a script: those that `add` adds, `--rounds` and `--json`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add(parser)
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help="times each side is measured (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the result there instead of printing it")
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def use_one_thread() -> None:
    """Bind torch to one thread, and keep the libraries' progress bars out of the output."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds that a piece of work takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def take_turns(variants: Mapping[str, Callable[[int], object]], *, rounds: int) -> dict[str, list[float]]:
    """Run every variant once a round, each round in another order; CPU seconds by variant and round.

    A variant is given the number of the round.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [0.0] * rounds for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name][number] = cpu_seconds(partial(variants[name], number))
    return seconds


def spread(values: Sequence[float]) -> str:
    """The smallest and the largest, for a reader who asks how steady a median is."""
    return f"{min(values):.2f} to {max(values):.2f}"


def print_table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """A table for a terminal: one label a row, numbers right-aligned."""
    label_size = max(map(len, rows))
    sizes = [max(len(cell) for cell in column) for column in zip(columns, *rows.values(), strict=True)]
    print(f"\n{title}\n")
    for label, cells in {"": columns, **rows}.items():
        numbers = "   ".join(cell.rjust(size) for cell, size in zip(cells, sizes, strict=True))
        print(f"  {label.ljust(label_size)}   {numbers}")
    print()


def report(benchmark: str, arguments: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Arguments and result as one line of JSON, printed or written to a file."""
    chosen = {name: value for name, value in vars(arguments).items() if name != "json"}
    line = json.dumps({"benchmark": benchmark, "arguments": chosen, **result})
    if arguments.json is None:
        print(line)
    else:
        arguments.json.write_text(line + "\n", encoding="utf-8")
