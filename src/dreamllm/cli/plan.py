"""`dreamllm plan`: what a recipe needs, before anything is downloaded or trained."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from dreamllm.config import load_config
from dreamllm.errors import ConfigError
from dreamllm.recipes import FOLDER, find_recipe, is_family

if TYPE_CHECKING:
    from dreamllm.train.plan.documents import DocumentShape, SourceShape
    from dreamllm.train.plan.plan import Plan

DOES_NOT_FIT = 1
GIB = 2**30
MIN_WIDTH = 118
"""Columns the widest table needs; a pipe or a file gets these."""


def run(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY=VALUE ...]")
    ] = (),
    /,
    *,
    gpus: int = 1,
    gpu_memory: float = 80.0,
    sharding: Literal["none", "full"] = "none",
    tflops: float = 312.0,
    mfu: float = 0.35,
    text_tokens: float | None = None,
    images_read: float | None = None,
    images_drawn: float | None = None,
    out: Path | None = None,
) -> int:
    """Say what a stage of DreamLLM needs: parameters, memory of a GPU, tokens, pictures, time.

    Nothing is downloaded but configuration files, and those of well-known parts come with the package. The
    memory is that of a real forward and backward pass over tensors without storage. Exits with 1 if it does
    not fit.

    Args:
        recipe: A YAML file, or a shipped recipe such as dreamllm-7b/stage1.
        overrides: Dotted assignments, such as objective.rows_per_micro_batch=2.
        gpus: How many share the documents of a step; training runs on one today.
        gpu_memory: GiB of one GPU.
        sharding: full divides the language model, gradients and moments among the GPUs.
        tflops: Peak rate of one GPU in dense matrix products, in 10^12 operations a second.
        mfu: Share of that rate which training reaches.
        text_tokens: Of a document on the average; with the two below, in place of what its data says.
        images_read: Image slots of a document; a drawn picture that is fed back has one.
        images_drawn: Dream slots of a document.
        out: Folder of the run, from which relative paths start; as `dreamllm train` would choose if left out.
    """
    path = find_recipe(recipe)
    if is_family(path):
        raise ConfigError(
            f"{recipe!r} is a family of runs, expected the recipe of one run; plan one of them, such as "
            f"`dreamllm plan {path.parent.name}/stage1`"
        )
    from dreamllm.train.plan import documents, memory, plan, shapes  # late, so that `--help` does not wait
    from dreamllm.train.run_config import RunConfig

    config = load_config(RunConfig, path, overrides)
    objective = plan.stage_of(config)
    sources = _given(text_tokens, images_read, images_drawn) or documents.source_shapes(
        objective, seed=config.seed
    )
    made = plan.plan(
        config,
        shapes.find_shapes(objective, recipe=path, out_dir=out or _default_out(path, config.name)),
        hardware=memory.Hardware(
            gpus=gpus, gpu_memory_gib=gpu_memory, sharding=sharding, peak_tflops=tflops, utilisation=mfu
        ),
        document=documents.mean_document(sources),
    )
    _print(made, sources)
    return 0 if made.fits else DOES_NOT_FIT


def _default_out(path: Path, name: str) -> Path:
    """Where `dreamllm train` would write."""
    is_shipped = path.parent.parent == FOLDER
    return Path("runs") / path.parent.name / path.stem if is_shipped else Path("runs") / name


def _given(
    text_tokens: float | None, images_read: float | None, images_drawn: float | None
) -> "tuple[SourceShape, ...] | None":
    """The documents that the options describe; None where there are no such options."""
    from dreamllm.train.plan.documents import DocumentShape, SourceShape

    values = (text_tokens, images_read, images_drawn)
    if values == (None, None, None):
        return None
    if None in values:
        raise ConfigError(
            f"a document has text tokens, pictures read and pictures drawn, and {values} are given; expected "
            "all of --text-tokens, --images-read and --images-drawn, or none"
        )
    document = DocumentShape(
        text_tokens=text_tokens or 0, images_read=images_read or 0, images_drawn=images_drawn or 0
    )
    return (SourceShape(source="--text-tokens and so on", share=1.0, document=document, origin="given"),)


def _print(plan: "Plan", sources: "tuple[SourceShape, ...]") -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else MIN_WIDTH)
    for table in (parts_table(plan), documents_table(plan, sources), step_table(plan), memory_table(plan)):
        console.print(table)
    for line in (*time_lines(plan), *advice_lines(plan)):
        console.print(line, markup=False, soft_wrap=True)


def parts_table(plan: "Plan") -> Table:
    """What the model is made of."""
    table = _table("the model", "part", "class", "parameters", "trained", "GiB")
    for part in plan.parts:
        size = _gib(4 * part.num_parameters)
        table.add_row(part.name, part.class_name, f"{part.num_parameters:,}", f"{part.num_trained:,}", size)
    whole = sum(part.num_parameters for part in plan.parts)
    trained = sum(part.num_trained for part in plan.parts)
    table.add_section()
    table.add_row("all", "", f"{whole:,}", f"{trained:,}", _gib(4 * whole))
    return table


def documents_table(plan: "Plan", sources: "tuple[SourceShape, ...]") -> Table:
    """What a document is, source by source."""
    table = _table(
        "a document, on the average", "source", "share", "text tokens", "read", "drawn", "how known"
    )
    for each in sources:
        table.add_row(each.source, f"{each.share:.0%}", *_document(each.document), each.origin)
    table.add_section()
    table.add_row("all", "100%", *_document(plan.document), "")
    return table


def step_table(plan: "Plan") -> Table:
    """Rows, positions and pictures."""
    work, gpus = plan.workload, plan.hardware.gpus
    table = _table("a step", "", "a pass of one GPU", "a step of one GPU", "a step of all", "the run")
    documents = getattr(plan.config.objective, "documents_per_step", 0)

    def row(name: str, a_pass: str, of_one: float, everywhere: float) -> None:
        table.add_row(
            name, a_pass, f"{of_one:,.0f}", f"{everywhere:,.0f}", _short(everywhere * plan.config.steps)
        )

    row("documents", "", documents / gpus, documents)
    row(
        "positions",
        f"{work.rows} x {work.positions}",
        work.positions_per_step,
        work.positions_per_step * gpus,
    )
    row("pictures read", f"{work.images_read}", work.images_read_per_step, work.images_read_per_step * gpus)
    row(
        "pictures drawn",
        f"{work.images_drawn}",
        work.images_drawn_per_step,
        work.images_drawn_per_step * gpus,
    )
    table.add_row("passes", "1", f"{work.passes:.1f}", f"{work.passes * gpus:.1f}", "")
    table.add_row("steps", "", "", "1", f"{plan.config.steps:,}")
    table.caption = "rows count as full; what packing leaves empty comes on top"
    return table


def memory_table(plan: "Plan") -> Table:
    """One GPU at the worst moment of a step."""
    table = _table(
        f"memory of one GPU, {plan.config.precision}", "for", "GiB at the peak", "GiB at its own peak"
    )
    for name, size in plan.memory.items():
        own = plan.own_peaks.get(name)
        table.add_row(name, _gib(size), "" if own is None else _gib(own))
    for name in sorted(set(plan.own_peaks) - set(plan.memory)):
        table.add_row(name, "-", _gib(plan.own_peaks[name]))
    table.add_section()
    verdict = "fits" if plan.fits else "does NOT fit"
    table.add_row("all", _gib(plan.total_bytes), f"of {plan.hardware.gpu_memory_gib:g}: {verdict}")
    table.caption = "; ".join(_assumptions(plan))
    return table


def _assumptions(plan: "Plan") -> list[str]:
    lines = [
        "counted over one pass of the real model; weights and moments are float32 unless they are quantised; "
        "device and allocator are 1 GiB and 5 % of what the pass takes"
    ]
    if plan.hardware.gpus > 1:
        division = {
            "none": "each holding the whole model",
            "full": "language model, gradients and moments divided among them, one block gathered at a time",
        }[plan.hardware.sharding]
        lines.append(
            f"assumed: {plan.hardware.gpus} GPUs share the documents, {division}; the trainer uses one GPU "
            "today"
        )
    return lines


def time_lines(plan: "Plan") -> list[str]:
    """FLOPs by part, and the time they take."""
    whole = sum(plan.flops.values())
    shares = sorted(plan.flops.items(), key=lambda item: -item[1])
    hardware = plan.hardware
    named = ", ".join(f"{name} {flops / whole:.0%}" for name, flops in shares if flops >= whole / 200)
    return [
        f"compute: {plan.flops_per_step:.3g} FLOPs a step, as executed ({named})",
        f"time: about {_duration(plan.hours)} for {plan.config.steps:,} steps on {hardware.gpus} "
        f"GPU{'s' * (hardware.gpus > 1)}, if {hardware.utilisation:.0%} of {hardware.peak_tflops:g} TFLOPS "
        "are reached",
    ]


def advice_lines(plan: "Plan") -> list[str]:
    """What else could be chosen, and what must be changed where it does not fit."""
    capacity = f"{plan.hardware.gpu_memory_gib:g} GiB"
    lines = [_changed(plan.checkpointing.overrides, plan.checkpointing.total_bytes, plan.total_bytes)]
    if plan.fits:
        return lines
    lines = [
        f"it does not fit: {_gib(plan.total_bytes)} GiB are needed and a GPU has {capacity}. What helps:"
    ]
    lines += ["  " + _changed(each.overrides, each.total_bytes, plan.total_bytes) for each in plan.advice]
    enough = bool(plan.advice) and plan.advice[-1].total_bytes <= plan.hardware.gpu_memory_gib * GIB
    lines.append("  with the last of these it fits" if enough else f"  no override brings it to {capacity}")
    if plan.gpus_if_sharded is not None:
        lines.append(
            f"  unchanged it would fit {plan.gpus_if_sharded} GPUs with --sharding full; the trainer uses "
            "one GPU today"
        )
    return lines


def _changed(overrides: tuple[str, ...], now: int, before: int) -> str:
    difference = before - now
    word = "less" if difference >= 0 else "more"
    return f"{' '.join(overrides)}: {_gib(now)} GiB, {_gib(abs(difference))} {word}"


def _table(title: str, *columns: str) -> Table:
    """Text to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        is_text = column in ("part", "class", "source", "for", "", "how known")
        table.add_column(column, justify="left" if is_text else "right")
    return table


def _document(document: "DocumentShape") -> tuple[str, str, str]:
    return f"{document.text_tokens:.0f}", f"{document.images_read:.2f}", f"{document.images_drawn:.2f}"


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:,.2f}"


def _short(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def _duration(hours: float) -> str:
    if hours < 2:
        return f"{hours * 60:,.1f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"
