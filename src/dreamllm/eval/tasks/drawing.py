"""Pictures from captions, read back by the judge: the model, and the baseline on the same captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage

from dreamllm.document.document import Document, Text
from dreamllm.eval.scores import Row, Table, TaskResult, attribute_rows, proportion
from dreamllm.eval.subject import HELD_OUT, EvalOptions, Subject
from dreamllm.eval.written import picture_of
from dreamllm.world.agreement import Agreement, agreement
from dreamllm.world.documents import draw_prompt
from dreamllm.world.judge import Judge
from dreamllm.world.language import CAPTION_STYLES, CaptionStyle, caption
from dreamllm.world.reading import read_text
from dreamllm.world.render import render_image
from dreamllm.world.scene import Scene
from dreamllm.world.sheet import SheetRow
from dreamllm.world.splits import sample_scene

MODEL, BASELINE = "model", "baseline"
SHEET_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Item:
    """One caption to be drawn."""

    style: CaptionStyle
    cell: str
    scene: Scene
    text: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture and what the judge found in it."""

    picture: PILImage.Image
    agreement: Agreement


Gallery = dict[str, list[Drawn]]
"""By who drew them (`model`, `baseline`), in the order of the items."""


def run(subject: Subject, options: EvalOptions) -> TaskResult:
    """Draw `options.num` captions of every style and cell (full captions of test scenes alone, if quick)."""
    items = make_items(options)
    gallery: Gallery = {
        MODEL: judge_pictures(subject.judge, items, _draw_with_model(subject, items, options))
    }
    details: dict[str, float] = {}
    if subject.baseline is not None:
        pictures = subject.baseline.draw(
            [item.text for item in items],
            seed=options.seed,
            guidance_scale=options.guidance_scale,
            num_inference_steps=options.num_inference_steps,
            batch_size=options.max_batch_size,
        )
        gallery[BASELINE] = judge_pictures(subject.judge, items, pictures)
        for style in dict.fromkeys(item.style for item in items):
            cut = [subject.baseline.is_cut(item.text) for item in items if item.style == style]
            details[f"share of {style} captions the baseline's text tower cuts"] = sum(cut) / len(cut)
    tables = [summary_table(items, gallery), *_tables(items, gallery)]
    return TaskResult(tables=tuple(tables), details=details, sheet=tuple(sheet_rows(items, gallery)))


def make_items(options: EvalOptions) -> list[Item]:
    """Captions in random order of words, the same for everyone who draws."""
    rng = np.random.default_rng([options.seed, 3])
    styles: tuple[CaptionStyle, ...] = ("full",) if options.is_quick else CAPTION_STYLES
    items = []
    for style in styles:
        for cell, split, counts in options.cells:
            if cell == HELD_OUT and style != "full":
                continue
            for _ in range(options.num):
                scene = sample_scene(rng, split, num_objects=counts)
                items.append(Item(style, cell, scene, caption(scene, style, rng)))
    return items


def _draw_with_model(subject: Subject, items: Sequence[Item], options: EvalOptions) -> list[PILImage.Image]:
    prompts = [
        Document(parts=(Text(text=draw_prompt(item.text), role="user", learn=False),), id=f"drawing {index}")
        for index, item in enumerate(items)
    ]
    documents = subject.generate(prompts, options, "image", max_images=1)
    return [picture_of(prompt, document) for prompt, document in zip(prompts, documents, strict=True)]


def judge_pictures(judge: Judge, items: Sequence[Item], pictures: Sequence[PILImage.Image]) -> list[Drawn]:
    """Read the pictures of the items and compare them with their captions."""
    readings = judge.read_many(pictures)
    return [
        Drawn(picture, agreement(read_text(item.text), reading))
        for item, picture, reading in zip(items, pictures, readings, strict=True)
    ]


def _of(items: Sequence[Item], drawn: Sequence[Drawn], style: str, cell: str) -> list[Agreement]:
    return [d.agreement for i, d in zip(items, drawn, strict=True) if (i.style, i.cell) == (style, cell)]


def summary_table(items: Sequence[Item], gallery: Gallery) -> Table:
    """All-correct pictures of everyone who drew, side by side."""
    cells = dict.fromkeys((item.style, item.cell) for item in items)
    rows = [
        Row(
            label=f"{style}, {cell}",
            scores=tuple(
                proportion([a.all_correct for a in _of(items, drawn, style, cell)])
                for drawn in gallery.values()
            ),
        )
        for style, cell in cells
    ]
    return Table(
        title="Pictures from captions, all correct",
        columns=tuple(gallery),
        rows=tuple(rows),
        note="The judge finds everything the caption asserts."
        + (" Both draw with the same U-Net and VAE." if BASELINE in gallery else ""),
    )


def _tables(items: Sequence[Item], gallery: Gallery) -> list[Table]:
    tables = []
    for who, drawn in gallery.items():
        for style in dict.fromkeys(item.style for item in items):
            cells = dict.fromkeys(item.cell for item in items if item.style == style)
            found = [[[a] for a in _of(items, drawn, style, cell)] for cell in cells]
            tables.append(
                Table(
                    title=f"Pictures from {style} captions, {who}",
                    columns=tuple(cells),
                    rows=tuple(attribute_rows(found)),
                    note="Share of the caption's assertions that the picture bears out.",
                )
            )
    return tables


def sheet_rows(items: Sequence[Item], gallery: Gallery) -> list[SheetRow]:
    """For each cell: the truth, and below it what was drawn, framed by the judge's verdict."""
    rows = []
    for cell in dict.fromkeys(item.cell for item in items):
        chosen = [i for i, item in enumerate(items) if (item.style, item.cell) == ("full", cell)]
        chosen = chosen[:SHEET_COLUMNS]
        rows.append(SheetRow(f"{cell}, truth", [render_image(items[i].scene) for i in chosen]))
        for who, drawn in gallery.items():
            verdicts = [drawn[i].agreement.all_correct for i in chosen]
            rows.append(SheetRow(f"{cell}, {who}", [drawn[i].picture for i in chosen], verdicts))
    return rows
