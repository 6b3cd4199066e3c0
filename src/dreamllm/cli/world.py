"""`dreamllm world sample`: the world the tiny models live in, as a folder to open."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from dreamllm.errors import ConfigError


def run(
    action: Annotated[Literal["sample"], tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    num: int = 24,
    split: Literal["train", "test", "held_out"] = "train",
    seed: int = 0,
) -> None:
    """Write documents, pictures and a description of the world into a folder.

    Args:
        action: What to do.
        out: Folder to write to.
        num: Documents; the kinds take turns.
        split: Which scenes the documents show.
        seed: Seed of the documents.
    """
    from dreamllm.world.sample import write_sample  # late, so that `--help` does not wait

    if num < 1:
        raise ConfigError(f"num is {num}; a sample needs at least 1 document; raise it")
    for path in write_sample(out, num=num, split=split, seed=seed):
        print(path)
