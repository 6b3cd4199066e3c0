"""`dreamllm export`: a model folder becomes a checkpoint in another layout."""

from pathlib import Path
from typing import Annotated, Literal

import tyro


def run(
    layout: Annotated[Literal["official"], tyro.conf.Positional],
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
) -> None:
    """Write a model folder as the authors of DreamLLM publish their checkpoints.

    Args:
        layout: official: LLaMA, CLIP and Stable Diffusion with linear or MLP projectors.
        model: A model folder.
        out: The folder to write.
    """
    from dreamllm.checkpoint.official.exporter import write_official  # late, so that `--help` is quick

    print(f"written to {write_official(model, out)}")
