"""The tiny VAE: pictures to 8x smaller latents and back.

A stock AutoencoderKL trained on L1 + L2 with a small divergence term. Objects weigh more than background, or
their edges would be learned last, and colour more than brightness, or hues would be. The gate is the judge:
can it still read a scene off its reconstruction?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from dreamllm.losses.total import Term
from dreamllm.train.objectives.configs import VaeObjectiveConfig
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.train.objectives.pictures import save_grid, to_pixels
from dreamllm.train.objectives.scene_steps import SceneSteps
from dreamllm.world.judge import Judge
from dreamllm.world.render import foreground, render
from dreamllm.world.scene import CELL_PX, Scene
from dreamllm.world.splits import sample_scene

GATE_SCENES = 300


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """Pictures and where their objects are."""

    pixels: Tensor
    """(B, 3, H, W) float32, [-1, 1]."""
    is_foreground: Tensor
    """(B, 1, H, W) bool."""


def opponent(error: Float[Tensor, "B 3 H W"], chroma_weight: float) -> Float[Tensor, "B 3 H W"]:
    """Errors of red, green and blue as errors of brightness and two hues, hues scaled.

    The axes are orthonormal: with `chroma_weight` 1 the squared error of a pixel is that of its RGB.
    """
    red, green, blue = error.unbind(1)
    brightness = (red + green + blue) / 3**0.5
    red_green = (red - green) / 2**0.5
    blue_yellow = (2 * blue - red - green) / 6**0.5
    return torch.stack([brightness, chroma_weight * red_green, chroma_weight * blue_yellow], dim=1)


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
        pixels = np.stack([render(scene) for scene in scenes])
        mask = np.stack([foreground(scene) for scene in scenes])
        return PictureBatch(to_pixels(pixels), torch.from_numpy(mask)[:, None])

    def counts(self, micro_batch: PictureBatch) -> Mapping[str, int]:
        """Pictures, for both terms."""
        size = micro_batch.pixels.shape[0]
        return {"reconstruction": size, "kl": size}

    def losses(self, micro_batch: PictureBatch, generator: torch.Generator) -> Mapping[str, Term]:
        """Weighted L1 + L2 a pixel, and the divergence a latent element; each summed over pictures."""
        pixels = micro_batch.pixels.to(self._device)
        posterior = self.module.encode(pixels).latent_dist
        error = self.module.decode(posterior.sample(generator)).sample - pixels
        error = opponent(error, self._config.chroma_weight)
        weight = 1 + (self._config.foreground_weight - 1) * micro_batch.is_foreground.to(self._device)
        reconstruction = ((error.abs() + error.square()) * weight).flatten(1).mean(1)
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
        rng = np.random.default_rng(17)
        scenes = [sample_scene(rng, "test" if i % 2 else "held_out") for i in range(GATE_SCENES)]
        readings = Judge().read_many(list(self.reconstruct(scenes)))
        right = total = scenes_right = 0
        by_attribute = {"shape": 0, "color": 0, "size": 0}
        for scene, reading in zip(scenes, readings, strict=True):
            scenes_right += reading.scene == scene
            cells = {cell.place: cell for cell in reading.cells}
            for thing in scene.objects:
                total += 1
                same = {
                    name: getattr(cells[thing.place], name) == getattr(thing, name) for name in by_attribute
                }
                right += all(same.values())
                for name, is_same in same.items():
                    by_attribute[name] += is_same
        metrics = {name: value / total for name, value in by_attribute.items()}
        metrics |= {"object": right / total, "scene": scenes_right / len(scenes)}
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
