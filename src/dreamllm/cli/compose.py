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

DEFAULTS = PartsConfig(language_model="", vision_encoder="", image_decoder="")
TRAINED_IN = {"language_model": "II, III", "vision_encoder": "never", "image_decoder": "never"}
"""The stages of the paper in which a part trains; connectors train in all."""


def run(
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    /,
    *,
    language_model: str,
    vision_encoder: str,
    image_decoder: str,
    tokenizer: str | None = None,
    connector: Literal["linear", "mlp", "transformer"] = DEFAULTS.connector,
    num_connector_layers: int = DEFAULTS.num_connector_layers,
    visual_projector: Literal["linear", "mlp"] = DEFAULTS.visual_projector,
    num_dream_queries: int = DEFAULTS.num_dream_queries,
    select_layer: int | None = None,
    post_layernorm: bool | None = None,
    vision_px: int | None = None,
    chat_template: str | None = None,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    seed: int = 0,
) -> None:
    """Compose a new model of stock parts, with untrained connectors between them, and save it.

    A part is a local folder or a hub id, owner/name or owner/name@revision. Nothing is written if the parts do
    not fit each other.

    Args:
        out: Folder to write; it appears whole or not at all.
        language_model: A causal language model of transformers.
        vision_encoder: CLIP, SigLIP, SigLIP 2, DINOv2 or DINOv3, alone or in a two-tower model.
        image_decoder: A diffusers pipeline: Stable Diffusion 1, 2, XL or 3, or Sana.
        tokenizer: The language model's if left out.
        connector: From the language model to the image decoder. linear is the paper's.
        num_connector_layers: Layers of a transformer connector.
        visual_projector: From the vision encoder to the language model.
        num_dream_queries: Learned queries a picture.
        select_layer: Hidden state of the vision encoder that is read; what suits its family if left out.
        post_layernorm: Whether the final norm is applied to it; what suits the family if left out.
        vision_px: Side of the pictures that are read; as the vision encoder is configured if left out.
        chat_template: vicuna_v1_1, plain_chat, chatml, or tokenizer for the tokenizer's own, which is taken if
            there is one.
        dtype: Type of all weights; as each part is stored if left out.
        seed: Of the connectors' first weights.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists; a new model is composed into a new folder; choose another name")
    parts = PartsConfig(
        language_model=language_model,
        vision_encoder=vision_encoder,
        image_decoder=image_decoder,
        tokenizer=tokenizer,
        num_dream_queries=num_dream_queries,
        visual_projector=visual_projector,
        connector=connector,
        num_connector_layers=num_connector_layers,
        select_layer=select_layer,
        post_layernorm=post_layernorm,
        vision_px=vision_px,
        chat_template=chat_template,
    )
    import torch  # late, so that `--help` does not wait for it

    from dreamllm.checkpoint.compose import compose
    from dreamllm.checkpoint.pretrained import save_model
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
