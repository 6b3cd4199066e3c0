"""The unconditional side of classifier-free guidance.

Ho and Salimans 2022 (arXiv:2207.12598), equation 6, mixes two predictions of the noise with a strength w:

    (1 + w) * conditional - w * unconditional

This package counts as Stable Diffusion and diffusers do, with scale s = 1 + w:

    unconditional + s * (conditional - unconditional)

so scale 1 is no guidance. The mix itself is made in the image decoder, where the predictions are. The
unconditional condition is what the dream queries see after BOS and the negative prompt alone.
"""

import torch

from dreamllm.generate.cache import PrefixReader
from dreamllm.generate.chunks import sequence_chunk
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.encode import SequenceEncoder


class Unconditional:
    """Computes the unconditional condition of each negative prompt once, for weights that do not change."""

    def __init__(self, model: DreamLLM, encoder: SequenceEncoder) -> None:
        self._model = model
        self._encoder = encoder
        self._known: dict[str, Condition] = {}

    @torch.no_grad()
    def __call__(self, negative_prompt: str = "") -> Condition:
        """The condition that guidance moves away from."""
        if negative_prompt not in self._known:
            sequence = self._encoder.unconditional(negative_prompt)
            chunk = sequence_chunk(self._model, sequence)
            hidden = PrefixReader(self._model.language_model).read({0: chunk})[0]
            (positions,) = sequence.slots.dream_positions()
            self._known[negative_prompt] = self._model.project_conditions(hidden[positions][None])
        return self._known[negative_prompt]
