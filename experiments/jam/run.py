"""Train and measure every arm of `arms.py`, one folder an arm and seed; run again to go on.

    python experiments/jam/run.py runs/jam --out runs/jam-experiments [--arms 'width*' --shard 0/2]

An arm is measured before its first step and after its last, and `result.json` keeps every document's loss, so
that `report.py` can pair them.
"""

import argparse
import fnmatch
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import torch
from arms import ARMS, PREPARED, Arm
from measure import measure

from dreamllm.config import load_config
from dreamllm.document.atomic import write_bytes
from dreamllm.generate.codes import CodeGenerator
from dreamllm.runtime.logs import configure_logging
from dreamllm.train.loop import train
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.objectives.jam import JamObjective
from dreamllm.train.run_config import RunConfig

HERE = Path(__file__).parent
logger = logging.getLogger("dreamllm.experiments")


def prepare(parents: Path, out: Path) -> None:
    """Train what arms start from, where it is not there yet."""
    for name, arm in PREPARED.items():
        folder = out / "prepared" / name
        if not (folder / "model").is_dir():
            config = _config(arm, arm.changes, parents, out)
            train(config, build_objective(config, folder), folder)


def run_arm(name: str, seed: int, parents: Path, out: Path) -> None:
    """Train an arm and write `result.json`."""
    arm = ARMS[name]
    folder = out / "arms" / name.replace(" ", "-").replace(",", "").replace("%", "percent") / f"seed-{seed}"
    if (folder / "result.json").is_file():
        return
    config = _config(arm, (*arm.changes, f"seed={seed}"), parents, out)
    objective = build_objective(config, folder)
    assert isinstance(objective, JamObjective)
    start = _measured(objective)
    began = time.perf_counter()
    train(config, objective, folder)
    seconds = time.perf_counter() - began
    parameters = list(objective.module.language_model.parameters())
    record = {
        "arm": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "steps": config.steps,
        "seconds": seconds,
        "start": start,
        "end": _measured(objective),
    }
    write_bytes(folder / "result.json", json.dumps(record).encode())
    logger.info("%s, seed %d: %.0f s", name, seed, seconds)


def _config(arm: Arm, changes: tuple[str, ...], parents: Path, out: Path) -> RunConfig:
    """The recipe of an arm with its changes; folders are absolute."""
    recipe = load_text(HERE / arm.recipe, parents, out)
    placed = out / "recipes" / arm.recipe
    placed.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(placed, recipe.encode())
    return load_config(RunConfig, placed, [_placed(change, parents, out) for change in changes])


def load_text(path: Path, parents: Path, out: Path) -> str:
    """A recipe with its folders put in."""
    return _placed(path.read_text(encoding="utf-8"), parents, out)


def _placed(text: str, parents: Path, out: Path) -> str:
    return text.replace("PARENTS", str(parents.resolve())).replace(
        "PREPARED", str(out.resolve() / "prepared")
    )


def _measured(objective: JamObjective) -> dict[str, object]:
    model = objective.module
    model.language_model.eval()
    with torch.no_grad():
        measured = measure(CodeGenerator(model, objective.encoder))
    model.language_model.train()
    return asdict(measured)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parents", type=Path, help="folder of the family jam-tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default="*", help="names to run, with wildcards")
    parser.add_argument("--shard", default="0/1", help="the n-th of m parts, to run side by side")
    options = parser.parse_args()
    configure_logging()
    torch.set_num_threads(1)
    number, parts = (int(value) for value in options.shard.split("/"))
    if number == 0:
        prepare(options.parents, options.out)
    jobs = [
        (name, seed)
        for seed in range(3)
        for name, arm in ARMS.items()
        if seed in arm.seeds and fnmatch.fnmatch(name, options.arms)
    ]
    for name, seed in jobs[number::parts]:
        run_arm(name, seed, options.parents, options.out)


if __name__ == "__main__":
    main()
