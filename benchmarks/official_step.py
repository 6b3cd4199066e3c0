"""Training throughput of this code against a step computed as the published DreamLLM code computes it.

    python benchmarks/official_step.py
    python benchmarks/official_step.py --pictures 1.5 --spread even
    python benchmarks/official_step.py --data world

Both sides train one model on the same documents of stage II and must compute the same loss. The published
step is stated again in `published_step.py`; in between stand steps with one measure of this code each.
Documents and model have the proportions of the published ones (`stage2_documents.py`, `stage2_model.py`), or
with `--data world` are those of the world that the shipped models learn.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from gemm_share import make_model, start_run, take_step
from published_step import CACHE, MEASURES, ONE_ROW, ROWS, WEIGHTS_OF_TERMS, PublishedStep
from rounds import parse_arguments, positive, print_table, report, spread, take_turns, use_one_thread
from stage2_documents import (
    CONTEXT,
    MEAN_PICTURES,
    MEAN_TOKENS,
    SLOT,
    Kind,
    Pages,
    Spread,
    outlines,
    write_stage2,
)
from stage2_model import Shares, flop_ratios, make_stage2_model, published_shares, shares_of
from torch import Tensor

from dreamllm.generate.pipeline import WEIGHTS
from dreamllm.losses.total import total
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.cached_pictures import CachedPictures
from dreamllm.sequence.pixels import Pixels
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.flops import document_lengths
from dreamllm.train.run_state import Run

PUBLISHED, OURS, CACHED = "published step", "this code", "this code, cached pictures"
MAX_LOSS_GAP = 1e-4
"""Of the loss, for rounding."""
SEED = 0
LONG_RUN = 2000
"""Steps whose FLOPs are counted without training."""
NUM_RANKS = 128
"""GPUs of the paper, of which the slowest counts."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What both sides train, and on what."""

    model: DreamLLM
    context: int
    """Positions of the longest document, at most."""
    first_step: int
    overrides: tuple[str, ...] = ()
    """Of the recipe."""


def main() -> int:
    """Measure; 1 if not all sides compute the same loss."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=6)
    use_one_thread()
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.from_pretrained(WEIGHTS / "tiny" / "tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        stage = make_stage(arguments, tokenizer, Path(folder))
        runs = start_runs(stage, tokenizer, arguments.documents)
        names = (PUBLISHED, *MEASURES, OURS, CACHED)
        model: Any = runs[OURS].objective.module
        batches = {
            name: batches_for(name, runs, stage.first_step, arguments.rounds + 1, model) for name in names
        }
    run, special = runs[OURS], tokenizer.special
    objectives = {PUBLISHED: PublishedStep(model, special), OURS: run.objective, CACHED: run.objective}
    objectives |= {name: PublishedStep(model, special, [name]) for name in MEASURES}
    gap = largest_gap(objectives, {name: steps[0] for name, steps in batches.items()})
    for name in (PUBLISHED, OURS):  # warm-up
        move(run, objectives[name], batches[name][0])
    seconds = take_turns(
        {
            name: partial(
                lambda number, name: move(run, objectives[name], batches[name][number + 1]), name=name
            )
            for name in names
        },
        rounds=arguments.rounds,
    )
    ratios = {name: sum(seconds[PUBLISHED]) / sum(seconds[name]) for name in names}
    by_step = {
        name: [one / other for one, other in zip(seconds[PUBLISHED], seconds[name], strict=True)]
        for name in names
    }
    padding = {name: padding_of(batches[name][1:]) for name in (PUBLISHED, ROWS, ONE_ROW)}
    print_table(
        f"Documents per second, stage II, data {arguments.data}, {arguments.documents} documents a step",
        ("ratio", "by step"),
        {name: [f"{ratios[name]:.2f}", spread(by_step[name])] for name in names},
    )
    is_same = gap <= MAX_LOSS_GAP
    print("  Padding: " + ", ".join(f"{share:.1%} {name}" for name, share in padding.items()) + ".")
    print(f"  All sides compute {'the same' if is_same else 'NOT THE SAME'} loss: {gap:.1e} apart.")
    result = {"ratios": ratios, "by_step": by_step, "padding": padding, "loss_gap": gap}
    if arguments.data == "published":
        result |= tell_proportions(stage.model, batches[PUBLISHED][1:], arguments)
    report("official_step", arguments, result)
    return 0 if is_same else 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", choices=("published", "world"), default="published", help="(default: %(default)s)")
    add("--documents", type=positive, default=16, help="in a step (default: %(default)s)")
    add("--width", type=positive, help="of the Llama (default: 512, or 384 with the world)")
    add("--layers", type=positive, help="of the Llama (default: 5, or 4 with the world)")
    add("--vocabulary", type=positive, help="words of the head (default: those of the tokenizer)")
    add("--pictures", type=float, default=1.0, help="of a page, times the published mean (default: 1)")
    add("--tokens", type=float, default=1.0, help="of a page, times the published mean (default: 1)")
    add("--spread", choices=get_args(Spread), default="wide", help="of pages (default: %(default)s)")


def pages_of(arguments: argparse.Namespace) -> Pages:
    """What the pages are like."""
    return Pages(
        pictures=MEAN_PICTURES * arguments.pictures,
        tokens=MEAN_TOKENS * arguments.tokens,
        spread=arguments.spread,
    )


def make_stage(arguments: argparse.Namespace, tokenizer: Tokenizer, folder: Path) -> Stage:
    """Model and documents; the latter are written into the folder, or made as they are read."""
    if arguments.data == "world":
        arguments.width, arguments.layers = arguments.width or 384, arguments.layers or 4
        return Stage(model=make_model(tokenizer, arguments), context=512, first_step=1000)
    arguments.width, arguments.layers = arguments.width or 512, arguments.layers or 5
    num_documents = (arguments.rounds + 1) * arguments.documents
    path = write_stage2(folder / "stage2.jsonl", pages_of(arguments), num_documents=num_documents, seed=SEED)
    return Stage(
        model=make_stage2_model(
            tokenizer, width=arguments.width, layers=arguments.layers, vocabulary=arguments.vocabulary
        ),
        context=CONTEXT,
        first_step=0,
        overrides=(f"objective.phases=[{{until: 1.0, sources: [{{kind: jsonl, path: {path}}}]}}]",),
    )


def start_runs(stage: Stage, tokenizer: Tokenizer, num_documents: int) -> dict[str, Run]:
    """The layouts: a row a document, rows as long as the context, and one row for all."""
    weights = [f"{name}_weight={value}" for name, value in WEIGHTS_OF_TERMS.items()]
    plain = ("noises_per_image=1", "condition_dropout=0", f"rows_per_micro_batch={num_documents}", *weights)
    layouts = {
        PUBLISHED: ("packing=false", f"row_length={stage.context}"),
        ROWS: ("packing=true", f"row_length={stage.context}"),
        OURS: ("packing=true", f"row_length={stage.context * num_documents}"),
    }
    return {
        name: start_run(
            stage.model,
            tokenizer,
            num_documents,
            [*stage.overrides, *(f"objective.{change}" for change in (*plain, *layout))],
        )
        for name, layout in layouts.items()
    }


def tell_proportions(
    model: DreamLLM, batches: Sequence[Batch], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Print what the parts cost beside the published ones, and FLOPs of these steps and of a long run."""
    shares = {"here": shares_of(model, slot=SLOT, context=CONTEXT), "published": published_shares()}
    print_table(
        "FLOPs of a part, of those of the language model's blocks",
        tuple(shares),
        {
            name: [f"{getattr(each, name):.1%}" for each in shares.values()]
            for name in (field.name for field in fields(Shares))
        },
    )
    pages, size = pages_of(arguments), arguments.documents
    written = list(islice(outlines(pages, seed=SEED), (arguments.rounds + 1) * size))
    measured = [written[int(name.split("-")[1])] for batch in batches for name in batch.document_ids]
    long_run = list(islice(outlines(pages, seed=SEED + 1), LONG_RUN * size))
    ratios = {
        f"{steps}, sizes {kind}": flop_ratios(each, documents, documents_per_step=size)
        for steps, documents in (("these steps", measured), (f"{LONG_RUN} steps", long_run))
        for kind, each in shares.items()
    }
    for way, in_turn in (("dealt in turn", True), ("as here", False)):
        ratios[f"{LONG_RUN} steps, {NUM_RANKS} ranks {way}"] = flop_ratios(
            shares["published"],
            long_run,
            documents_per_step=size,
            num_ranks=NUM_RANKS,
            in_turn=in_turn,
        )
    print_table(
        "FLOPs of the published step, of those of this code",
        ("", "cached", "padding"),
        {
            name: [f"{ours:.2f}", f"{cached:.2f}", f"{padding:.1%}"]
            for name, (ours, cached, padding) in ratios.items()
        },
    )
    return {"shares": {name: asdict(each) for name, each in shares.items()}, "flop_ratios": ratios}


def batches_for(
    name: str, runs: Mapping[str, Run], first_step: int, num_steps: int, model: DreamLLM
) -> list[Batch]:
    """A micro-batch a step, laid out and with the pictures cached as a side has them."""
    layout = ROWS if name == ROWS else OURS if name in (ONE_ROW, OURS, CACHED) else PUBLISHED
    data = runs[layout].objective.data
    steps = [data[first_step + number] for number in range(num_steps)]
    batches = [step[0] for step in steps]
    assert all(len(step) == 1 for step in steps)  # so the mean of a micro-batch is that of the step
    check_lengths(batches)
    return [with_cache(model, batch) if name in (CACHE, CACHED) else batch for batch in batches]


def check_lengths(batches: Sequence[Batch]) -> None:
    """Hold documents of published proportions to their outlines, which end their names."""
    for batch in batches:
        names = [name.split("-") for name in batch.document_ids]
        if names[0][0] in get_args(Kind):
            assert document_lengths(batch).tolist() == [int(name[-1]) for name in names]


def with_cache(model: Any, batch: Batch) -> Batch:
    """The batch with the features and moments of all its pictures in place of their pixels."""
    return replace(
        batch,
        vision_pixels=Pixels(batch.vision_pixels.levels[:0]),
        target_pixels=Pixels(batch.target_pixels.levels[:0]),
        cached_images=_all_cached(model.vision_encoder(batch.vision_pixels.scaled())),
        cached_targets=_all_cached(model.image_decoder.moments(batch.target_pixels.scaled())),
    )


def _all_cached(records: Tensor) -> CachedPictures:
    return CachedPictures(records, torch.arange(len(records)), torch.zeros(0, dtype=torch.int64))


@torch.no_grad()
def largest_gap(objectives: Mapping[str, Any], batches: Mapping[str, Batch]) -> float:
    """How far apart the losses of all sides are on their first batch, of the loss."""
    losses = []
    for name, objective in objectives.items():
        terms = objective.losses(batches[name], torch.Generator())
        loss = total(terms, counts=objective.counts(batches[name]), weights=WEIGHTS_OF_TERMS)
        losses.append(float(loss))
    return (max(losses) - min(losses)) / max(losses)


def move(run: Run, objective: Any, batch: Batch) -> None:
    """One optimizer step of a side; all move the same model."""
    take_step(replace(run, objective=objective), [batch])


def padding_of(batches: Sequence[Batch]) -> float:
    """Positions that belong to no document."""
    padding = sum(int((batch.document_index == 0).sum()) for batch in batches)
    return padding / sum(batch.input_ids.numel() for batch in batches)


if __name__ == "__main__":
    raise SystemExit(main())
