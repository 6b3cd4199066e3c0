"""Training throughput of packed rows against one document a row.

    python benchmarks/packing.py
    python benchmarks/packing.py objective.mode=comprehension     # without image decoder

Both sides train the shipped tiny model on the same documents of stage II, a step in one forward pass. What is
supervised is the same, so the ratio of their times is the ratio of supervised tokens and pictures per second.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from rounds import parse_arguments, print_table, report, spread, take_turns, use_one_thread

from dreamllm.config import load_config
from dreamllm.generate.pipeline import WEIGHTS
from dreamllm.recipes import find_recipe
from dreamllm.sequence.batch import Batch
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.run_config import RunConfig
from dreamllm.train.run_state import Run
from dreamllm.train.step import StepResult, optimizer_step

FIRST_STEP = 100
"""Of the recipe's 350: in the phase that mixes all kinds of documents."""
MAX_LOSS_GAP = 1e-3
"""By how much the mean next-token loss of equal weights and documents may differ, for rounding."""


def main() -> int:
    """Measure; 1 if the two sides do not compute the same loss."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=8)
    use_one_thread()
    runs = {
        "packed": start_run(arguments.overrides, packing=True),
        "one a row": start_run(arguments.overrides, packing=False),
    }
    gap = warm_up(list(runs.values()))
    steps = range(FIRST_STEP, FIRST_STEP + arguments.rounds)
    batches = {name: [run.objective.data[step] for step in steps] for name, run in runs.items()}
    seconds = take_turns(
        {
            name: lambda number, run=run, name=name: move(run, batches[name][number], FIRST_STEP + number)
            for name, run in runs.items()
        },
        rounds=arguments.rounds,
    )
    ratios = [alone / packed for packed, alone in zip(seconds["packed"], seconds["one a row"], strict=True)]
    padding = {name: share_of_padding(made) for name, made in batches.items()}
    positions = {name: num_positions(made) for name, made in batches.items()}
    gain = median(ratios)
    print_table(
        f"DreamLLM, stage II: {arguments.rounds} steps on each side, the same documents",
        tuple(runs),
        {
            "padding, of all positions": [f"{padding[name]:.1%}" for name in runs],
            "positions computed": [f"{positions[name] / positions['one a row']:.2f}" for name in runs],
            "supervised tokens and pictures per second": [f"{gain:.2f}", "1.00"],
        },
    )
    is_same = gap <= MAX_LOSS_GAP
    print(f"  Ratio of throughput by step: {spread(ratios)}.")
    print(
        f"  Equal weights and documents give the {'same' if is_same else 'NOT THE SAME'} next-token loss: "
        f"they differ by {gap:.1e}.\n"
    )
    report(
        "packing",
        arguments,
        {"median_ratio": gain, "ratios": ratios, "padding": padding, "next_token_gap": gap},
    )
    return 0 if is_same else 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe tiny/stage2")


def start_run(overrides: Sequence[str], *, packing: bool) -> Run:
    """Stage II of the tiny family, from the shipped model."""
    fixed = [
        f"objective.model={WEIGHTS / 'tiny'}",
        f"objective.packing={str(packing).lower()}",
        "objective.rows_per_micro_batch=256",  # a step is one forward pass on either side
    ]
    config = load_config(RunConfig, find_recipe("tiny/stage2"), [*overrides, *fixed])
    return Run.start(config, build_objective(config, Path.cwd()), torch.device("cpu"))


def warm_up(runs: Sequence[Run]) -> float:
    """Move all runs once; how far apart their next-token losses were, from equal weights and documents."""
    losses = [move(run, run.objective.data[FIRST_STEP - 1], FIRST_STEP - 1).terms for run in runs]
    return max(terms["next_token"] for terms in losses) - min(terms["next_token"] for terms in losses)


def move(run: Run, micro_batches: Sequence[Batch], step: int) -> StepResult:
    """One optimizer step."""
    return optimizer_step(
        run.objective,
        run.optimizer,
        micro_batches,
        step=step,
        seed=run.config.seed,
        device=run.device,
        clip_norm=run.config.optim.clip_norm,
    )


def num_positions(steps: Sequence[Sequence[Batch]]) -> int:
    """Positions of all rows of all steps."""
    return sum(batch.input_ids.numel() for step in steps for batch in step)


def share_of_padding(steps: Sequence[Sequence[Batch]]) -> float:
    """Positions that belong to no document."""
    padding = sum(int((batch.document_index == 0).sum()) for step in steps for batch in step)
    return padding / num_positions(steps)


if __name__ == "__main__":
    raise SystemExit(main())
