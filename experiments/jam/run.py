"""Train and measure every arm of the experiments, one folder an arm and seed; run again to go on.

    python experiments/jam/run.py runs/jam --out runs/jam-experiments [--arms 'C1*' --seeds 0 1 2 --shard 0/2]

An arm is a line of `arms.yaml`: the recipe it trains by, and what is changed in it. It is measured before its
first step and after its last, and `result.json` keeps every document's loss, so that `report.py` can pair them.
"""

import argparse
import fnmatch
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
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
logger = logging.getLogger("experiments.jam")


@dataclass(frozen=True, slots=True)
class Arm:
    """One line of `arms.yaml`."""

    name: str
    recipe: str
    changes: tuple[str, ...]
    seeds: tuple[int, ...]


def read_arms(path: Path) -> list[Arm]:
    """The arms in their order."""
    return [
        Arm(name, entry["recipe"], tuple(entry.get("changes", ())), tuple(entry.get("seeds", (0,))))
        for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items()
    ]


def run_arm(arm: Arm, seed: int, parents: Path, out: Path) -> None:
    """Train an arm and write `result.json`."""
    folder = out / arm.name / f"seed-{seed}"
    result = folder / "result.json"
    if result.is_file():
        return
    changes = [change.replace("PARENTS", str(parents.resolve())) for change in arm.changes]
    config = load_config(RunConfig, HERE / arm.recipe, [*changes, f"seed={seed}"])
    objective = build_objective(config, folder)
    assert isinstance(objective, JamObjective)
    start = _measured(objective)
    began = time.perf_counter()
    train(config, objective, folder)
    seconds = time.perf_counter() - began
    end = _measured(objective)
    language_model = objective.module.language_model
    record = {
        "arm": arm.name,
        "seed": seed,
        "parameters": sum(p.numel() for p in language_model.parameters()),
        "trained_parameters": sum(p.numel() for p in language_model.parameters() if p.requires_grad),
        "seconds": seconds,
        "steps": config.steps,
        "start": start,
        "end": end,
    }
    write_bytes(result, json.dumps(record).encode())
    logger.info("%s, seed %d: %.0f s", arm.name, seed, seconds)


def _measured(objective: JamObjective) -> dict[str, object]:
    model = objective.module
    model.language_model.eval()
    with torch.no_grad():
        measured = measure(CodeGenerator(model, objective.encoder))
    model.language_model.train()
    return asdict(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parents", type=Path, help="folder of the family jam-tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default="*", help="names to run, with wildcards")
    parser.add_argument("--shard", default="0/1", help="the n-th of m equal parts, to run side by side")
    options = parser.parse_args()
    configure_logging()
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    number, parts = (int(value) for value in options.shard.split("/"))
    chosen = [arm for arm in read_arms(HERE / "arms.yaml") if fnmatch.fnmatch(arm.name, options.arms)]
    jobs = [(arm, seed) for seed in range(10) for arm in chosen if seed in arm.seeds]
    for arm, seed in jobs[number::parts]:
        run_arm(arm, seed, options.parents, options.out)


if __name__ == "__main__":
    main()
