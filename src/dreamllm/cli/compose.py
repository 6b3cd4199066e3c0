"""`dreamllm compose`: a language model, a vision encoder and an image decoder become one model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.errors import CheckpointError

if TYPE_CHECKING:
    from dreamllm.checkpoint.compose import Composed

TRAINED_IN = {"language_model": "II, III", "vision_encoder": "never", "image_decoder": "never"}
"""The stages of the paper in which a part trains; connectors train in all."""


def run(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    parts: Annotated[PartsConfig, tyro.conf.arg(name="")],
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    seed: int = 0,
) -> None:
    """Compose a new model of stock parts, with untrained connectors between them, and save it.

    A part is a local folder or a hub id, owner/name or owner/name@revision. Nothing is written if the parts
    do not fit each other.

    Args:
        out: Folder to write; it appears whole or not at all.
        parts: What it is made of.
        dtype: Type of all weights; stored keeps each part as it is.
        seed: Of the connectors' first weights.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists; a new model is composed into a new folder; choose another name")
    import torch  # late, so that `--help` does not wait for it

    from dreamllm.checkpoint.compose import compose
    from dreamllm.checkpoint.encoder import encoder_of
    from dreamllm.checkpoint.pretrained import save_model
    from dreamllm.checkpoint.self_test import write_self_test
    from dreamllm.runtime.logs import configure_logging
    from dreamllm.runtime.seeding import seed_everything

    configure_logging()
    seed_everything(seed)
    composed = compose(parts, dtype=None if dtype == "stored" else getattr(torch, dtype))
    save_model(
        composed.model,
        out,
        tokenizer=composed.tokenizer,
        transforms=composed.transforms,
        sources=composed.sources,
    )
    encoder = encoder_of(composed.model, composed.tokenizer, composed.transforms)
    write_self_test(out, composed.model, encoder)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table_of(composed))
    for line in notes_on(composed):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False)


def table_of(composed: "Composed") -> Table:
    """The parts: class, size, licence, source, and when they train."""
    model = composed.model
    table = Table("part", "class", "parameters", "MB", "trains in stage", "licence", "source")
    for column in (2, 3):
        table.columns[column].justify = "right"
    named = {
        "language_model": model.language_model,
        "vision_encoder": model.vision_encoder.model,
        "image_decoder": model.image_decoder,
        "visual_projector": model.visual_projector,
        "dream_queries": model.dream_queries,
        "condition_projector": model.condition_projector,
        "pooled_projector": model.pooled_projector,
    }
    for name, module in named.items():
        if module is None:
            continue
        tensors = list(module.parameters())
        source = composed.sources.get(name)
        table.add_row(
            name,
            type(module).__name__,
            f"{sum(tensor.numel() for tensor in tensors):,}",
            f"{sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6:,.1f}",
            TRAINED_IN.get(name, "I, II, III"),
            "-" if source is None else source.license or "not stated",
            "new" if source is None else source.source,
        )
    return table


def notes_on(composed: "Composed") -> list[str]:
    """What a user should know of the fit, a line each."""
    model, sizes = composed.model, composed.model.slot_sizes
    context = model.language_model.config.get_text_config().max_position_embeddings
    picture = sizes.dream_length + sizes.image_length
    config = model.config
    height, width = model.image_decoder.image_size
    return [
        f"a drawn picture takes {picture} of {context} positions: {sizes.num_dream_queries} queries, "
        f"{sizes.num_visual_tokens} visual tokens and four brackets",
        f"reads {model.vision_encoder.image_px} px pictures from hidden state {config.select_layer}"
        f"{' with' if config.post_layernorm else ' without'} the final norm; draws {width} x {height} px",
        f"conversations are spelled by {config.chat_template!r}",
    ]
