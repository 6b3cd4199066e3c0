"""Stock parts -> a new DreamLLM, and a start for its projectors.

Features of a vision encoder, and what a U-Net listens to, have collapsed spectra: a few directions hold
nearly all variance, and the ones that tell a star from a circle do not. Where asked for, both projectors
start as whitening maps: the language model reads uncorrelated features at the scale of its own token
embeddings, and the U-Net hears conditions that are uncorrelated in its keys and values.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import AutoModelForCausalLM, CLIPModel, CLIPVisionModel

from dreamllm.checkpoint.encoder import encoder_of, load_encoder
from dreamllm.checkpoint.pretrained import load_model
from dreamllm.data.transforms import TargetTransform
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.splice import read_slots
from dreamllm.models.whitening import SHRINKAGE, fold_into_linear, start_condition_projector, whitening
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.objectives.configs import PartsConfig


def load(path: Path, options: EncodeOptions) -> tuple[DreamLLM, SequenceEncoder]:
    """The result of a stage before."""
    model = load_model(path)
    return model, load_encoder(path, model, options)


def compose(parts: PartsConfig, options: EncodeOptions) -> tuple[DreamLLM, SequenceEncoder]:
    """A new model of stock parts: trained language model, eye and brush, untrained connectors."""
    language_model = AutoModelForCausalLM.from_pretrained(parts.language_model)
    decoder = StableDiffusionDecoder(
        UNet2DConditionModel.from_pretrained(parts.image_decoder / "unet"),
        AutoencoderKL.from_pretrained(parts.image_decoder / "vae"),
        DDPMScheduler.from_pretrained(parts.image_decoder / "scheduler"),
    )
    config = DreamLLMConfig(
        num_dream_queries=parts.num_dream_queries,
        select_layer=parts.select_layer,
        post_layernorm=parts.post_layernorm,
        chat_template=parts.chat_template,
    )
    model = DreamLLM(
        config,
        language_model=language_model,
        vision_model=_vision_tower(parts.vision_encoder),
        image_decoder=decoder,
    )
    vision = json.loads((parts.vision_encoder / "vision_transform.json").read_text())
    target = TargetTransform(image_px=decoder.image_size[0])
    tokenizer = Tokenizer.from_pretrained(parts.tokenizer)
    transforms = {"vision": vision, "target": target.to_dict()}
    return model, encoder_of(model, tokenizer, transforms, options)


def _vision_tower(path: Path) -> CLIPVisionModel:
    """The vision half of a CLIP pair, as the stock class for it."""
    clip = CLIPModel.from_pretrained(path / "clip")
    tower = CLIPVisionModel(clip.config.vision_config)
    inner = getattr(tower, "vision_model", tower)  # older transformers keep the tower one level deeper
    inner.load_state_dict(clip.vision_model.state_dict())
    return tower


@torch.no_grad()
def whiten_connectors(model: DreamLLM, batches: Iterable[Batch], *, generator: torch.Generator) -> None:
    """Start both projectors, which must be linear, from the features that the batches show.

    First the visual projector, because the states at the dream queries depend on it.
    """
    batches = list(batches)
    features = torch.cat([model.vision_encoder(b.vision_pixels).flatten(0, 1) for b in batches])
    mean, matrix = whitening(features, shrinkage=SHRINKAGE)
    table = model.language_model.get_input_embeddings().weight
    fold_into_linear(_linear(model.visual_projector), mean, matrix, float(table.std()), generator=generator)
    model.dream_queries.queries.normal_(0.0, float(table.std()), generator=generator)
    states = torch.cat([read_slots(model.hidden_states(b), b.dream_slots).flatten(0, 1) for b in batches])
    start_condition_projector(
        _linear(model.condition_projector), states, model.image_decoder.unet, generator=generator
    )


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise TypeError(f"a whitened start needs a linear projector, not {type(module).__name__}")
    return module
