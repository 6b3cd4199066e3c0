"""Training on several processes, killed and started again, against training that nobody touches.

    python benchmarks/faults.py
    python benchmarks/faults.py --faults 5 --ranks 4 --steps 60 objective.train.image_decoder=true

Both runs are `torchrun ... -m dreamllm train` of stage II of the shipped tiny model on the CPU. In one of
them a random rank gets SIGKILL at a random step, several times; torchrun starts all ranks again and they
resume from the last checkpoint. Every loss must be what it is in the other run, which the last line says.
Linux only, for the processes of torchrun are found in /proc.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dreamllm.generate.pipeline import WEIGHTS
from dreamllm.train.metrics import read_metrics

MAX_GAP = 1e-6
"""Largest relative difference of a loss: a resumed run repeats the same sums in the same order."""
PATIENCE_S = 900
"""How long a run may go without a new line of metrics."""


def main() -> int:
    """Run both; 1 if a loss differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="assignments to the recipe tiny/stage2")
    parser.add_argument("--faults", type=int, default=2, help="how often a rank is killed")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24, help="steps that are compared")
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="which rank dies when")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    steps = sorted(rng.sample(range(arguments.save_every + 1, arguments.steps), arguments.faults))
    with TemporaryDirectory() as folder:
        whole = train(arguments, Path(folder) / "whole", kills=(), rng=rng)
        killed = train(arguments, Path(folder) / "killed", kills=steps, rng=rng)
    gap = max(abs(killed[step] - loss) / abs(loss) for step, loss in whole.items())
    verdict = "equal" if gap <= MAX_GAP else "DIFFERENT"
    print(
        f"{verdict}: {arguments.ranks} ranks, {len(whole)} steps, killed at {steps}; "
        f"largest relative difference of a loss {gap:.1e}"
    )
    print(json.dumps({"faults": steps, "gap": gap, "equal": gap <= MAX_GAP}))
    return 0 if gap <= MAX_GAP else 1


def train(
    arguments: argparse.Namespace, out: Path, *, kills: Sequence[int], rng: random.Random
) -> dict[int, float]:
    """The loss of every step of a run; a rank is killed once each of the given steps is reached."""
    settings = [
        f"objective.model={WEIGHTS / 'tiny'}",
        "objective.documents_per_step=5",
        "device=cpu",
        "num_threads=1",
        "log_every=1",
        f"save_every={arguments.save_every}",
        "sample_every=null",
        "gate_every=null",
    ]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={arguments.ranks}"),
        *(
            "--standalone",
            "--local-addr=127.0.0.1",
            "--shutdown-timeout=100",
            f"--max-restarts={len(kills)}",
            "-m",
            "dreamllm",
            "train",
            "tiny/stage2",
        ),
        *settings,
        *arguments.overrides,
        *("--out", str(out)),
    ]
    log = out.with_suffix(".log")
    with log.open("wb") as file:
        # A store that outlives the ranks tells new ones where the killed ones were (pytorch issue 135712).
        settled = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        environment = {**os.environ, **settled}
        launcher = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    try:
        for step in kills:
            wait_for(out, step, launcher, log=log)
            victim = rng.choice(list(children(launcher.pid)))
            print(f"step {step}: SIGKILL to process {victim}", flush=True)
            os.kill(victim, signal.SIGKILL)
            while victim in children(launcher.pid):
                time.sleep(0.1)
        wait_for(out, arguments.steps, launcher, log=log)
        found = losses(out)
    finally:
        launcher.terminate()  # torchrun passes it on; all ranks save and stop
        launcher.wait(timeout=120)
    return {step: loss for step, loss in found.items() if step <= arguments.steps}


def wait_for(out: Path, step: int, launcher: "subprocess.Popen[bytes]", *, log: Path) -> None:
    """Wait until that step has been taken."""
    began = time.monotonic()
    while not any(number >= step for number in losses(out)):
        if launcher.poll() is not None or time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"the run in {out} came to no step {step}:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)


def losses(out: Path) -> dict[int, float]:
    """The losses written so far, by step."""
    path = out / "metrics.jsonl"
    return {each["step"]: each["loss"] for each in read_metrics(path)} if path.is_file() else {}


def children(pid: int) -> Iterator[int]:
    """The processes that a process has started and that still run."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


if __name__ == "__main__":
    raise SystemExit(main())
