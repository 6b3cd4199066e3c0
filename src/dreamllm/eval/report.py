"""Results for people: the same tables on a terminal, as Markdown and as JSON, with pictures and documents."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from dreamllm.document.export import documents_to_html
from dreamllm.eval.runner import Evaluation
from dreamllm.eval.scores import Row, Score, Table
from dreamllm.world.sheet import draw_sheet

SHEET, PAGE = "sheet.png", "documents.html"


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write results.json, report.md and, where there is something to see, sheet.png and documents.html."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "results.json", folder / "report.md"]
    paths[0].write_text(json.dumps(evaluation.to_json(), indent=2) + "\n", encoding="utf-8")
    rows = [row for result in evaluation.results.values() for row in result.sheet]
    documents = [document for result in evaluation.results.values() for document in result.documents]
    if rows:
        paths.append(folder / SHEET)
        draw_sheet(rows).save(paths[-1])
    if documents:
        paths.append(folder / PAGE)
        page = documents_to_html(documents, title="Documents written on request")
        paths[-1].write_text(page, encoding="utf-8")
    paths[1].write_text(to_markdown(evaluation, files=[path.name for path in paths[2:]]), encoding="utf-8")
    return paths


def headline(evaluation: Evaluation) -> list[str]:
    """What was evaluated, and how far the judge itself can be trusted."""
    options = evaluation.options
    drawn = (
        f"{options.num_inference_steps} denoising steps"
        if evaluation.kind == "DreamLLM"
        else f"picture codes at temperature {options.image_temperature:g}"
    )
    return [
        f"Model: {evaluation.model}. Baseline: {evaluation.baseline or 'none'}.",
        f"The judge reads {_percent(evaluation.judge)} % of {evaluation.num_judge_scenes} true renders "
        "without any error.",
        f"{options.num} items a cell, seed {options.seed}; guidance {options.guidance_scale:g}, {drawn}.",
        "Scores are in percent but for perplexities, with 95 % intervals in brackets.",
    ]


def to_markdown(evaluation: Evaluation, *, files: list[str]) -> str:
    """The report as one page."""
    blocks = ["# World benchmark", *headline(evaluation)]
    if SHEET in files:
        blocks.append(f"![Truth above, drawn pictures below, framed by the judge's verdict]({SHEET})")
    if PAGE in files:
        blocks.append(f"Some of the documents: [{PAGE}]({PAGE}).")
    for name, result in evaluation.results.items():
        blocks.append(f"## {name} ({evaluation.seconds[name]:.1f} s)")
        blocks += [_markdown_table(table) for table in result.tables]
        blocks += [f"{label}: {_percent(value)} %" for label, value in result.details.items()]
    return "\n\n".join(blocks) + "\n"


def to_rich(table: Table) -> RichTable:
    """The table for a terminal."""
    shown = RichTable(
        title=table.title, caption=table.note, box=SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    shown.add_column("")
    for column in _columns(table):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(row.label, *_cells(table, row))
    return shown


def _markdown_table(table: Table) -> str:
    columns = _columns(table)
    lines = [
        f"### {table.title}",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
        *(f"| {row.label} | " + " | ".join(_cells(table, row)) + " |" for row in table.rows),
        "",
        table.note,
    ]
    return "\n".join(lines)


def _columns(table: Table) -> list[str]:
    return [*(["chance"] if _has_chance(table) else []), *table.columns]


def _cells(table: Table, row: Row) -> list[str]:
    chance = "" if row.chance is None else _percent(row.chance)
    scores = [_cell(score) if table.unit == "share" else _number(score) for score in row.scores]
    return [*([chance] if _has_chance(table) else []), *scores]


def _has_chance(table: Table) -> bool:
    return any(row.chance is not None for row in table.rows)


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    if score.value is None:
        return "nothing to score"
    return f"{_percent(score.value)} [{100 * score.low:.0f}, {100 * score.high:.0f}] n={score.n}"


def _number(score: Score | None) -> str:
    if score is None:
        return ""
    if score.value is None:
        return "nothing to score"
    return f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}] n={score.n}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
