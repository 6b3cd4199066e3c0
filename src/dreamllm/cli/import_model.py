"""`dreamllm import`: a checkpoint in another layout becomes a model folder."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from dreamllm.errors import CheckpointError


def run(
    layout: Annotated[Literal["official"], tyro.conf.Positional],
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    vision_encoder: str,
    image_decoder: str,
) -> None:
    """Make a model folder of a published DreamLLM checkpoint. Nothing in its files is run.

    Args:
        layout: official: as the authors of DreamLLM publish their checkpoints.
        checkpoint: The folder with pytorch_model.bin, dream_embedding.bin and the other files.
        out: The model folder to write.
        vision_encoder: The CLIP of the checkpoint, a folder or a hub id; it gives the configuration, and the
            checkpoint the weights.
        image_decoder: The Stable Diffusion of the checkpoint, likewise.
    """
    if out.exists():
        raise CheckpointError(
            f"{out} exists; a checkpoint is imported into a new folder; choose another name"
        )
    from dreamllm.checkpoint.hub import resolve_source  # late, so that `--help` does not wait for torch
    from dreamllm.checkpoint.model_folder import PartSource
    from dreamllm.checkpoint.official.importer import read_official
    from dreamllm.checkpoint.pretrained import save_model

    official = read_official(
        checkpoint,
        vision_encoder=resolve_source(vision_encoder),
        image_decoder=resolve_source(image_decoder, folders=("unet", "vae", "scheduler")),
    )
    for kind, count in official.skipped.items():
        print(f"skipped {count} {kind}")
    source = PartSource(source=checkpoint.resolve().name)
    written = save_model(
        official.model,
        out,
        tokenizer=official.tokenizer,
        transforms=official.transforms,
        sources=dict.fromkeys(("language_model", "vision_encoder", "image_decoder"), source),
    )
    print(f"written to {written}")
