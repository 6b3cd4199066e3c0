"""What caches of pictures hold for a DreamLLM and a JAM: the key of each, and how its records are computed.

Vision features are the output of the vision encoder, before the projector. Latents are kept as the moments
of the VAE's posterior, mean and log-variance at its own scale, so that every use draws a sample of its own.
Codes are those of the image tokenizer.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from dreamllm.data.feature_cache import CacheDtype, CacheSpec, FeatureCache
from dreamllm.data.picture_digest import picture_digest
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Image
from dreamllm.errors import ConfigError
from dreamllm.models.decoders.image_decoder import ImageDecoder
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.jam import JAM
from dreamllm.models.vision_encoder import VisionEncoder
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.encode_codes import CodeSequenceEncoder
from dreamllm.sequence.picture_caches import PictureCaches
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig, JamObjectiveConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFunction:
    """Pictures -> records of a cache: a plain callable, for whatever hands out batches."""

    spec: CacheSpec
    view: Callable[[PILImage.Image], np.ndarray]
    """A picture as the model is shown it, (3, H, W)."""
    compute: Callable[[Tensor], Tensor]
    """Pixels (N, 3, H, W) -> records (N, *shape)."""
    device: torch.device
    """Where pixels are to lie."""

    def __call__(self, pictures: Sequence[Image]) -> list[tuple[bytes, Tensor]]:
        """Digest and record of every picture, the records in the type of the model.

        Raises:
            ImageError: a picture cannot be read.
        """
        if not pictures:
            return []
        pixels = np.stack([self.view(image.load()) for image in pictures])
        return list(zip(map(picture_digest, pictures), self.records(pixels), strict=True))

    @torch.no_grad()
    def records(self, pixels: np.ndarray) -> Tensor:
        """Records (N, *shape) of pixels (N, 3, H, W), on the CPU."""
        return self.compute(torch.from_numpy(pixels).to(self.device)).cpu()


def vision_function(
    encoder: VisionEncoder, transform: VisionTransform, *, dtype: CacheDtype = "float16"
) -> PictureFunction:
    """Features of a vision encoder, (P, E)."""
    return PictureFunction(
        spec=vision_spec(encoder, transform, dtype=dtype),
        view=transform,
        compute=encoder,
        device=encoder.model.device,
    )


def latent_function(
    decoder: ImageDecoder, transform: TargetTransform, *, dtype: CacheDtype = "float16"
) -> PictureFunction:
    """Moments of an image decoder's VAE, (Y, h, w)."""
    return PictureFunction(
        spec=latent_spec(decoder, transform, dtype=dtype),
        view=transform,
        compute=decoder.moments,
        device=decoder.vae.device,
    )


def code_function(tokenizer: ImageTokenizer, transform: TargetTransform) -> PictureFunction:
    """Codes of an image tokenizer, (G,)."""
    return PictureFunction(
        spec=code_spec(tokenizer, transform),
        view=transform,
        compute=tokenizer.encode,
        device=tokenizer.vq_model.device,
    )


def vision_spec(
    encoder: VisionEncoder, transform: VisionTransform, *, dtype: CacheDtype = "float16"
) -> CacheSpec:
    """What decides the features of a picture."""
    num_states = encoder.model.config.num_hidden_layers + 1
    key: dict[str, Any] = {
        "what": "vision features",
        "encoder": {"type": encoder.model.config.model_type, "weights": weights_digest(encoder.model)},
        "select_layer": encoder.select_layer % num_states,
        "drop_cls": encoder.drop_cls,
        "post_layernorm": encoder.post_layernorm,
        "preprocessing": transform.to_dict(),
    }
    return CacheSpec(key=key, shape=(encoder.num_tokens, encoder.width), dtype=dtype)


def latent_spec(
    decoder: ImageDecoder, transform: TargetTransform, *, dtype: CacheDtype = "float16"
) -> CacheSpec:
    """What decides the moments of a picture, and the scale they will be brought to."""
    vae = decoder.vae
    key: dict[str, Any] = {
        "what": "moments of latents",
        "vae": {"type": type(vae).__name__, "weights": weights_digest(vae)},
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": getattr(vae.config, "shift_factor", None),
        "preprocessing": transform.to_dict(),
    }
    return CacheSpec(key=key, shape=decoder.moment_shape, dtype=dtype)


def code_spec(tokenizer: ImageTokenizer, transform: TargetTransform) -> CacheSpec:
    """What decides the codes of a picture."""
    key: dict[str, Any] = {
        "what": "picture codes",
        "image_tokenizer": {"type": "VQModel", "weights": weights_digest(tokenizer.vq_model)},
        "preprocessing": transform.to_dict(),
    }
    return CacheSpec(key=key, shape=(tokenizer.codes_per_picture,), dtype="int32")


def open_caches(config: DreamLLMObjectiveConfig, model: DreamLLM, encoder: SequenceEncoder) -> PictureCaches:
    """The caches that a run asks for, found to be of its own model.

    Raises:
        ConfigError: there is none in the folder, or it is of something else; the message names what.
        DocumentError: a file of it is damaged.
    """
    vision = latents = None
    if config.vision_cache is not None:
        vision = FeatureCache(
            config.vision_cache, vision_spec(model.vision_encoder, encoder.vision_transform)
        )
    if config.latent_cache is not None:
        latents = FeatureCache(
            config.latent_cache, latent_spec(model.image_decoder, encoder.target_transform)
        )
    return PictureCaches(vision=vision, latents=latents, on_miss=config.on_cache_miss)


def open_code_cache(
    config: JamObjectiveConfig, model: JAM, encoder: CodeSequenceEncoder
) -> FeatureCache | None:
    """The cache of codes that a run asks for; raises as `open_caches`."""
    if config.code_cache is None:
        return None
    if model.image_tokenizer is None:
        raise ConfigError(
            f"code_cache is {config.code_cache}, but the model has no image tokenizer; expected one whose "
            "codes are cached; leave the cache out"
        )
    return FeatureCache(config.code_cache, code_spec(model.image_tokenizer, encoder.target_transform))


def weights_digest(module: nn.Module) -> str:
    """A name for the weights of a module: names, shapes, types and every bit of them; 24 hex digits."""
    content = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()[:24]
