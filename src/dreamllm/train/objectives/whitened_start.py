"""A start for the projectors of a new model, from the features it will see.

Features of a vision encoder, and what a U-Net listens to, have collapsed spectra: a few directions hold
nearly all variance, and the ones that tell a star from a circle do not. Where asked for, both projectors
start as whitening maps: the language model reads uncorrelated features at the scale of its own token
embeddings, and the U-Net hears conditions that are uncorrelated in its keys and values.
"""

from collections.abc import Iterable

import torch
from torch import nn

from dreamllm.errors import ConfigError
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.splice import read_slots
from dreamllm.models.whitening import SHRINKAGE, fold_into_linear, start_condition_projector, whitening
from dreamllm.sequence.batch import Batch


@torch.no_grad()
def whiten_connectors(model: DreamLLM, batches: Iterable[Batch], *, generator: torch.Generator) -> None:
    """Start both projectors, which must be linear, from the features that the batches show.

    First the visual projector, because the states at the dream queries depend on it.

    Raises:
        ConfigError: the image decoder has no U-Net with cross-attention to whiten for.
    """
    decoder = model.image_decoder
    if not isinstance(decoder, StableDiffusionDecoder):
        raise ConfigError(
            f"a whitened start is asked for with a {type(decoder).__name__}; it is known for the "
            "cross-attention of Stable Diffusion's U-Net; set whiten to false"
        )
    batches = list(batches)
    features = torch.cat([model.image_features(b).flatten(0, 1) for b in batches])
    mean, matrix = whitening(features, shrinkage=SHRINKAGE)
    table = model.language_model.get_input_embeddings().weight
    fold_into_linear(_linear(model.visual_projector), mean, matrix, float(table.std()), generator=generator)
    model.dream_queries.queries.normal_(0.0, float(table.std()), generator=generator)
    states = torch.cat([read_slots(model.hidden_states(b), b.dream_slots).flatten(0, 1) for b in batches])
    start_condition_projector(_linear(model.condition_projector), states, decoder.unet, generator=generator)


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise TypeError(f"a whitened start needs a linear projector, not {type(module).__name__}")
    return module
