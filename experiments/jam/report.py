"""Tables, plots and verdicts of the experiments, from what `run.py` left.

    python experiments/jam/report.py runs/jam-experiments --out docs/results/jam
    python experiments/jam/report.py docs/results/jam/results.jsonl.gz --out again

The second makes the same report from the numbers that the first has put beside it.
A verdict is given only where the 95 % interval of a paired difference excludes zero.
"""

import argparse
from pathlib import Path

from measure import CAPTION, CODES, KINDS, TEXT
from pairing import Estimate, Results, difference, mean_drawn, mean_loss, read_results, write_results
from plot import interval_plot

MAIN = (
    "cross",
    "jam-x",
    "width",
    "uniform",
    "two towers, no cross blocks",
    "image parent, trained on",
    "text parent, trained on",
    "from scratch, size of a parent",
    "from scratch, size of cross",
)
COMPARISONS: dict[str, tuple[tuple[str, str, str, str, str], ...]] = {
    # claim: (kind of loss, when, first arm, second arm, what holds if the first loses less)
    "C1": (
        (CODES, "end", "cross", "width", "Cross before Width"),
        (CODES, "end", "width", "uniform", "Width before Uniform"),
        (CODES, "end", "cross", "two towers, no cross blocks", "cross blocks help pictures"),
        (TEXT, "end", "cross", "two towers, no cross blocks", "cross blocks help text"),
        (CODES, "end", "cross", "image parent, trained on", "Cross before the image parent, trained on"),
        (TEXT, "end", "cross", "text parent, trained on", "Cross before the text parent, trained on"),
        (CODES, "end", "cross", "from scratch, size of cross", "parents help at equal size"),
        (CODES, "end", "cross", "jam-x", "reading pictures with both towers helps"),
    ),
    "C2": (
        (TEXT, "start", "cross", "text parent, trained on", "text of the parent kept at step 0"),
        (CODES, "start", "cross", "image parent, trained on", "pictures of the parent kept at step 0"),
        (CODES, "start", "cross", "cross, shared table", "a table per tower keeps more"),
        (
            CODES,
            "start",
            "cross",
            "cross, shared table, half head, random blocks",
            "our start before the paper's",
        ),
    ),
    "C3": (
        (CODES, "end", "every 2, random", "every 1, random", "random: every 2 before every 1"),
        (CODES, "end", "every 2, random", "every 3, random", "random: every 2 before every 3"),
        (CODES, "end", "cross", "every 1, zero", "zero: every 2 before every 1"),
        (
            CODES,
            "end",
            "every 1, random, half width",
            "every 1, random",
            "the same size at half the width helps",
        ),
    ),
    "C4": (
        (CODES, "end", "width copy_row", "width avg", "copy_row before avg"),
        (CODES, "end", "width copy_col", "width avg", "copy_col before avg"),
        (CODES, "end", "width zero", "width copy_row", "zero before copy_row"),
        (CODES, "start", "width zero", "width copy_row", "zero before copy_row at step 0"),
        (CODES, "end", "width", "width copy_row", "half scale before full scale"),
    ),
    "C5": (
        (
            CODES,
            "end",
            "uniform",
            "from scratch, size of a parent",
            "averaging independent parents is a start",
        ),
        (
            CODES,
            "start",
            "uniform, common ancestor",
            "ancestor, trained on",
            "averaged branches before their ancestor",
        ),
    ),
    "C6": (
        (CODES, "end", "instruct, 10 % pairs", "instruct, 0 % pairs", "10 % pairs keep pictures"),
        (CODES, "end", "instruct, 30 % pairs", "instruct, 10 % pairs", "30 % keep more than 10 %"),
        (CODES, "end", "instruct, 50 % pairs", "instruct, 30 % pairs", "50 % keep more than 30 %"),
    ),
}


def verdict(gap: Estimate) -> str:
    """Of a claim that the first arm loses less."""
    if not gap.excludes_zero:
        return "inconclusive"
    return "supported" if gap.value < 0 else "contradicted"


def arm_table(results: dict[str, Results], names: tuple[str, ...]) -> str:
    """Every arm with its losses before and after, and what it draws."""
    head = ["arm", "seeds", "parameters"]
    head += [f"{kind}, {when}" for kind in KINDS for when in ("step 0", "end")] + [
        "attributes drawn",
        "all right",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in names:
        if name not in results:
            continue
        arm = results[name]
        cells = [name, str(len(arm.records)), f"{arm.parameters / 1e6:.2f} M"]
        for kind in KINDS:
            for when in ("start", "end"):
                losses = arm.losses(kind, when)
                cells.append("" if losses is None else str(mean_loss(losses)))
        drawn = arm.drawn()
        cells += ["", ""] if drawn is None else [str(mean_drawn(drawn, column)) for column in (0, 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_table(results: dict[str, Results], claim: str) -> str:
    """Paired differences and verdicts of a claim."""
    lines = ["| claim | seeds | nats a token more | verdict |", "|---|---|---|---|"]
    for kind, when, first, second, what in COMPARISONS[claim]:
        if first not in results or second not in results:
            continue
        losses = results[first].losses(kind, when), results[second].losses(kind, when)
        if losses[0] is None or losses[1] is None:
            continue
        gap, seeds = difference(losses[0], losses[1]), min(map(len, losses))
        lines.append(f"| {what} ({kind}) | {seeds} | {gap} | {verdict(gap)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", type=Path, help="folder of run.py, or the file results.jsonl.gz of a report"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and plots")
    options = parser.parse_args()
    results = read_results(options.results)
    options.out.mkdir(parents=True, exist_ok=True)
    write_results(results, options.out / "results.jsonl.gz")
    results = read_results(options.out / "results.jsonl.gz")
    sections = ["# Arms", arm_table(results, tuple(results))]
    for claim in COMPARISONS:
        sections += [f"## {claim}", comparison_table(results, claim)]
    (options.out / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    for kind in (TEXT, CODES, CAPTION):
        rows = {
            name: mean_loss(losses)
            for name in MAIN
            if name in results and (losses := results[name].losses(kind)) is not None
        }
        svg = interval_plot(rows, title=f"{kind}, nats a token after training")
        (options.out / f"{kind.replace(' ', '-')}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
