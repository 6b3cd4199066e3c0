"""Which stock parts a new model is composed of. Free of torch, so that recipes are read without it.

A source is a local folder (it starts with `.`, `/` or `~`; in a recipe relative to the folder of the run) or
a hub id `owner/name`, with `@revision` to pin it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


def is_local(source: str) -> bool:
    """Whether a source is written as a folder."""
    return source.startswith((".", "/", "~"))


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsConfig:
    """Stock parts, and how they are connected; the defaults are the paper's."""

    language_model: str
    """A causal language model of transformers."""
    vision_encoder: str
    """CLIP, SigLIP, SigLIP 2, DINOv2 or DINOv3; of a two-tower model the vision half is taken."""
    image_decoder: str
    """A diffusers pipeline, or its `unet` or `transformer`, `vae` and `scheduler`."""
    tokenizer: str | None = None
    """None takes the language model's."""
    num_dream_queries: int = 64
    """Learned queries a picture (Q)."""
    visual_projector: Literal["linear", "mlp"] = "linear"
    """From the vision encoder to the language model."""
    connector: Literal["linear", "mlp", "transformer"] = "linear"
    """From the language model to the image decoder."""
    num_connector_layers: int = 6
    """Layers of a `transformer` connector."""
    select_layer: int | None = None
    """Hidden state of the vision model that is read, -1 is the last; None takes what suits its family."""
    post_layernorm: bool | None = None
    """Whether the final normalisation is applied; None takes what suits the family."""
    vision_px: int | None = None
    """Side of the pictures that are read; None takes what the vision model is configured for."""
    chat_template: str | None = None
    """How conversations are spelled, see `sequence/chat.py`; None takes the tokenizer's own if it has
    one, and Vicuna's v1.1 otherwise."""

    def sources(self) -> Iterator[tuple[str, str]]:
        """Name and source of every part that is named."""
        for name in ("language_model", "vision_encoder", "image_decoder", "tokenizer"):
            if (source := getattr(self, name)) is not None:
                yield name, source
