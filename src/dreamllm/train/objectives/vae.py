"""The tiny VAE: pictures to 8x smaller latents and back.

A stock AutoencoderKL trained on L1 + L2 with a small divergence term. Objects weigh more than background, or
their edges would be learned last, and colour more than brightness, or hues would be. The gate is the judge:
can it still read a scene off its reconstruction?
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.utils.data import Dataset

from dreamllm.losses.total import Term
from dreamllm.train.objectives.configs import VaeObjectiveConfig
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.train.objectives.pictures import save_grid, to_pixels
from dreamllm.train.objectives.reconstruction import (
    PictureBatch,
    gate_scenes,
    read_back,
    reconstruction_error,
)
from dreamllm.train.objectives.scene_steps import SceneSteps
from dreamllm.world.render import render
from dreamllm.world.scene import CELL_PX, Scene
from dreamllm.world.splits import sample_scene

GATE_SCENES = 300


class VaeObjective:
    """Trains an AutoencoderKL on pictures of the world."""

    weights: Mapping[str, float]

    def __init__(self, config: VaeObjectiveConfig, *, steps: int, seed: int) -> None:
        self.module: AutoencoderKL = _new_vae(config)
        self.module.train()
        self.weights = {"reconstruction": 1.0, "kl": config.kl_weight}
        self._config = config
        self._device = torch.device("cpu")
        self.data: Dataset[list[PictureBatch]] = SceneSteps(
            self._make_batch,
            config.phases,
            scenes_per_step=config.scenes_per_step,
            steps=steps,
            seed=seed,
        )

    def _make_batch(self, scenes: Sequence[Scene], rng: np.random.Generator, progress: float) -> PictureBatch:
        return PictureBatch.of(scenes)

    def counts(self, micro_batch: PictureBatch) -> Mapping[str, int]:
        """Pictures, for both terms."""
        size = micro_batch.pixels.shape[0]
        return {"reconstruction": size, "kl": size}

    def losses(self, micro_batch: PictureBatch, generator: torch.Generator) -> Mapping[str, Term]:
        """Weighted L1 + L2 a pixel, and the divergence a latent element; each summed over pictures."""
        pixels = micro_batch.pixels.to(self._device)
        posterior = self.module.encode(pixels).latent_dist
        reconstruction = reconstruction_error(
            self.module.decode(posterior.sample(generator)).sample,
            pixels,
            micro_batch.is_foreground.to(self._device),
            foreground_weight=self._config.foreground_weight,
            chroma_weight=self._config.chroma_weight,
        )
        kl = posterior.kl() / posterior.mean[0].numel()
        size = pixels.shape[0]
        return {"reconstruction": Term(reconstruction.sum(), size), "kl": Term(kl.sum(), size)}

    def document_ids(self, micro_batch: PictureBatch) -> tuple[str, ...]:
        """Pictures have no names of their own."""
        return (f"{micro_batch.pixels.shape[0]} pictures",)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Everything learns alike."""
        return [ParameterGroup(name="vae", parameters=list(self.module.parameters()))]

    def tables(self) -> str:
        """Size of the model."""
        return f"vae: {sum(p.numel() for p in self.module.parameters()):,} parameters, all trained"

    @torch.no_grad()
    def reconstruct(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Pictures (n, H, W, 3) uint8 of the scenes, encoded and decoded at the posterior mean."""
        self.module.eval()
        pixels = to_pixels(np.stack([render(scene) for scene in scenes])).to(self._device)
        decoded = self.module.decode(self.module.encode(pixels).latent_dist.mean).sample
        self.module.train()
        values = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return values.permute(0, 2, 3, 1).cpu().numpy()

    def sample(self, path: Path, step: int) -> None:
        """A grid: truth above, reconstruction below."""
        scenes = [sample_scene(np.random.default_rng([7, i]), "test") for i in range(16)]
        truth = np.stack([render(scene) for scene in scenes])
        save_grid([truth[:8], self.reconstruct(scenes[:8]), truth[8:], self.reconstruct(scenes[8:])], path)

    def gate(self) -> GateResult:
        """What the judge reads off reconstructions of test scenes."""
        scenes = gate_scenes(GATE_SCENES)
        metrics = read_back(scenes, self.reconstruct(scenes))
        passed = metrics["object"] >= self._config.gate_accuracy
        message = (
            f"the judge reads {metrics['object']:.3f} of objects and {metrics['scene']:.3f} of scenes right "
            f"off reconstructions; the bar is {self._config.gate_accuracy} of objects"
        )
        return GateResult(passed=passed, metrics=metrics, message=message)

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """Write the VAE with the scaling factor that gives its latents unit variance."""
        self.module.eval()
        rng = np.random.default_rng(23)
        pixels = to_pixels(np.stack([render(sample_scene(rng)) for _ in range(256)])).to(self._device)
        latents = self.module.encode(pixels).latent_dist.mode()
        self.module.register_to_config(scaling_factor=float(1 / latents.std()))
        self.module.train()
        self.module.save_pretrained(path)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self._device = device
        self.module.to(device)


def _new_vae(config: VaeObjectiveConfig) -> AutoencoderKL:
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=2 * CELL_PX,
        mid_block_add_attention=False,
    )
