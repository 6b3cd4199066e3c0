"""Which kind of decoder a denoiser belongs to, read from its stock configuration."""

from collections.abc import Mapping
from typing import Any

from dreamllm.errors import ConfigError
from dreamllm.models.decoders.flow_matching import SanaDecoder, StableDiffusion3Decoder
from dreamllm.models.decoders.image_decoder import ImageDecoder
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder, StableDiffusionXLDecoder

KINDS = (StableDiffusionDecoder, StableDiffusionXLDecoder, StableDiffusion3Decoder, SanaDecoder)


def decoder_class(config: Mapping[str, Any]) -> type[ImageDecoder]:
    """The kind of decoder for a denoiser's `config.json`.

    Raises:
        ConfigError: there is none.
    """
    match config.get("_class_name"), config.get("addition_embed_type"):
        case "UNet2DConditionModel", None:
            return StableDiffusionDecoder
        case "UNet2DConditionModel", "text_time":
            return StableDiffusionXLDecoder
        case "SD3Transformer2DModel", _:
            return StableDiffusion3Decoder
        case "SanaTransformer2DModel", _:
            return SanaDecoder
        case name, addition:
            known = ", ".join(kind.__name__.removesuffix("Decoder") for kind in KINDS)
            raise ConfigError(
                f"a denoiser of class {name!r} with addition_embed_type {addition!r} is not known; "
                f"expected one of {known}; choose an image decoder of these kinds"
            )
