"""The tiny image tokenizer of JAM: pictures to a grid of codes and back, by a stock VQModel.

Reconstruction as for the VAE, and the commitment of the encoder to the codes it chose. A codebook of moving
averages follows the vectors it is chosen for (VQ-VAE, arXiv:1711.00937, appendix A.1), and codes that nobody
chooses start again at vectors of the present step. The fixed grid of FSQ (arXiv:2309.15505) is an option: the
nearest point of a grid is what rounding each number gives, so it too is stored as a plain codebook.

A third term is ours: latents are held to the principal components of their own patch of the picture. Left
alone, an encoder lets every code depend on all objects of a scene, and a language model has to predict that.
The image tokenizer of the paper (Make-A-Scene, arXiv:2203.13131) has perceptual and adversarial losses
besides, which need networks trained on photographs.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import VQModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from dreamllm.losses.total import Term
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.train.objectives.configs import ImageTokenizerObjectiveConfig
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.train.objectives.pictures import save_grid
from dreamllm.train.objectives.reconstruction import (
    PictureBatch,
    attribute_mean,
    gate_scenes,
    read_back,
    reconstruction_error,
)
from dreamllm.train.objectives.scene_steps import SceneSteps
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

GATE_SCENES = 300
ANCHOR_SCENES = 32


class PatchAnchor(nn.Module):
    """Where the latent of a patch should lie: its principal components, scaled to unit mean variance."""

    def __init__(self, pixels: Float[Tensor, "B 3 H W"], *, patch_px: int, width: int) -> None:
        super().__init__()
        self.patch_px = patch_px
        patches = self._patches(pixels).flatten(0, 1)  # (B*g*g, 3*f*f)
        mean = patches.mean(0)
        _, spread, axes = torch.linalg.svd(patches - mean, full_matrices=False)
        scale = (spread[:width].square().mean() / len(patches)).rsqrt()
        self.mean: Tensor
        self.axes: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes[:width].T * scale)
        """(3*f*f, Z)"""

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Z h w"]:
        """One vector a patch."""
        grid = pixels.shape[-1] // self.patch_px
        return ((self._patches(pixels) - self.mean) @ self.axes).transpose(1, 2).unflatten(2, (grid, grid))

    def _patches(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N P"]:
        return F.unfold(pixels, self.patch_px, stride=self.patch_px).transpose(1, 2)


class Codebook(nn.Module):
    """The codes, which move by averages and not by gradients. Buffers, so that a checkpoint holds them."""

    def __init__(self, vectors: Float[Tensor, "K Z"], *, decay: float, restart_below: float) -> None:
        super().__init__()
        self.decay = decay
        self.restart_below = restart_below
        self.vectors: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("vectors", vectors)
        self.register_buffer("counts", torch.zeros(len(vectors)))
        """(K,) moving average of the uses in a step."""
        self.register_buffer("sums", torch.zeros_like(vectors))
        """(K, Z) moving average of the sum of the vectors that chose each code."""

    def nearest(self, latents: Float[Tensor, "N Z"]) -> Int[Tensor, " N"]:
        """The code of each vector."""
        return torch.cdist(latents, self.vectors).argmin(dim=1)

    @torch.no_grad()
    def follow(
        self, latents: Float[Tensor, "N Z"], codes: Int[Tensor, " N"], generator: torch.Generator
    ) -> None:
        """Move every code towards the mean of its vectors; dead ones go to vectors drawn from the step."""
        uses = F.one_hot(codes, len(self.vectors)).to(latents.dtype)  # (N, K)
        self.counts.lerp_(uses.sum(0), 1 - self.decay)
        self.sums.lerp_(uses.T @ latents, 1 - self.decay)
        is_dead = self.counts < self.restart_below
        self.vectors.copy_(
            torch.where(is_dead[:, None], self.vectors, self.sums / self.counts.clamp(min=1e-9)[:, None])
        )
        num_dead = int(is_dead.sum())
        if num_dead:
            drawn = torch.randint(len(latents), (num_dead,), generator=generator, device=latents.device)
            self.vectors[is_dead] = latents[drawn]
            self.sums[is_dead] = latents[drawn]
            self.counts[is_dead] = 1.0


def fsq_grid(levels: Sequence[int]) -> Float[Tensor, "K Z"]:
    """Every point of the grid, each number spread evenly over [-1, 1]."""
    axes = [torch.linspace(-1, 1, num).tolist() for num in levels]
    return torch.tensor(list(itertools.product(*axes)))


class Quantized(nn.Module):
    """A VQModel and the codebook that it is trained with."""

    def __init__(self, config: ImageTokenizerObjectiveConfig) -> None:
        super().__init__()
        vectors = (
            fsq_grid(config.fsq_levels)
            if config.quantizer == "fsq"
            else torch.randn(config.num_codes, config.code_width)
        )
        levels = len(config.block_out_channels)
        self.vq_model = VQModel(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.block_out_channels,
            layers_per_block=1,
            latent_channels=config.latent_channels,
            sample_size=config.picture_px,
            num_vq_embeddings=len(vectors),
            vq_embed_dim=vectors.shape[1],
            norm_num_groups=config.norm_groups,
            mid_block_add_attention=False,
        )
        self.vq_model.quantize.embedding.weight.requires_grad_(False)
        self.codebook = Codebook(vectors, decay=config.codebook_decay, restart_below=config.restart_below)
        self.anchor = PatchAnchor(
            PictureBatch.of(_training_scenes(ANCHOR_SCENES), config.picture_px).pixels,
            patch_px=2 ** (levels - 1),
            width=vectors.shape[1],
        )

    @torch.no_grad()
    def tokenizer(self) -> ImageTokenizer:
        """The VQModel with the present codes, as JAM uses it; training goes on with the same weights."""
        self.vq_model.quantize.embedding.weight.copy_(self.codebook.vectors)
        trained = [p for p in self.vq_model.parameters() if p.requires_grad]
        tokenizer = ImageTokenizer(self.vq_model)
        for parameter in trained:
            parameter.requires_grad_(True)
        return tokenizer


class ImageTokenizerObjective:
    """Trains a VQModel on pictures of the world."""

    def __init__(self, config: ImageTokenizerObjectiveConfig, *, steps: int, seed: int) -> None:
        self.module: Quantized = Quantized(config)
        self.module.train()
        self.weights: Mapping[str, float] = {
            "reconstruction": 1.0,
            "commitment": config.commitment_weight,
            "anchor": config.anchor_weight,
        }
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
        return PictureBatch.of(scenes, self._config.picture_px)

    def counts(self, micro_batch: PictureBatch) -> Mapping[str, int]:
        """Pictures, for every term."""
        return dict.fromkeys(self.weights, micro_batch.pixels.shape[0])

    def losses(self, micro_batch: PictureBatch, generator: torch.Generator) -> Mapping[str, Term]:
        """All terms summed over pictures; afterwards the codebook follows."""
        vq_model, codebook = self.module.vq_model, self.module.codebook
        pixels = micro_batch.pixels.to(self._device)
        latents = vq_model.encode(pixels).latents  # (B, Z, h, w)
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, Z)
        codes = codebook.nearest(flat.detach())
        chosen = _on_grid(codebook.vectors[codes], latents)
        straight_through = latents + (chosen - latents).detach()
        reconstruction = reconstruction_error(
            vq_model.decode(straight_through, force_not_quantize=True).sample,
            pixels,
            micro_batch.is_foreground.to(self._device),
            foreground_weight=self._config.foreground_weight,
            chroma_weight=self._config.chroma_weight,
        )
        commitment = (latents - chosen).square().flatten(1).mean(1)
        anchor = (latents - self.module.anchor(pixels)).square().flatten(1).mean(1)
        if self._config.quantizer == "ema" and torch.is_grad_enabled():
            codebook.follow(flat.detach(), codes, generator)
        size = pixels.shape[0]
        return {
            "reconstruction": Term(reconstruction.sum(), size),
            "commitment": Term(commitment.sum(), size),
            "anchor": Term(anchor.sum(), size),
        }

    def document_ids(self, micro_batch: PictureBatch) -> tuple[str, ...]:
        """Pictures have no names of their own."""
        return (f"{micro_batch.pixels.shape[0]} pictures",)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Everything but the codebook, alike."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return [ParameterGroup(name="image_tokenizer", parameters=parameters)]

    def tables(self) -> str:
        """Sizes."""
        config = self.module.vq_model.config
        count = sum(p.numel() for p in self.module.vq_model.parameters())
        return (
            f"image tokenizer: {count:,} parameters; {config.num_vq_embeddings} codes of "
            f"{config.vq_embed_dim} numbers"
        )

    def codes(self, scenes: Sequence[Scene]) -> Int[Tensor, "M G"]:
        """What scenes are as codes."""
        pixels = PictureBatch.of(scenes, self._config.picture_px).pixels
        return self.module.tokenizer().encode(pixels.to(self._device))

    def reconstruct(self, scenes: Sequence[Scene]) -> np.ndarray:
        """Pictures (n, H, W, 3) uint8 of the scenes after encoding and decoding."""
        pictures = self.module.tokenizer().to_pil(self.codes(scenes))
        return np.stack([np.asarray(picture) for picture in pictures])

    def sample(self, path: Path, step: int) -> None:
        """A grid: truth above, reconstruction below."""
        scenes = [sample_scene(np.random.default_rng([7, i]), "test") for i in range(16)]
        pixels = PictureBatch.of(scenes, self._config.picture_px).pixels
        truth = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        again = self.reconstruct(scenes)
        save_grid([truth[:8], again[:8], truth[8:], again[8:]], path)

    def gate(self) -> GateResult:
        """What the judge reads off reconstructions of test scenes, and how the codes are used.

        Pairs of shape and colour that were never seen are counted apart, and no bar is set for them.
        """
        both = gate_scenes(GATE_SCENES)
        scenes, unseen = both[1::2], both[::2]
        metrics = _attributes(read_back(scenes, self.reconstruct(scenes)))
        found = _attributes(read_back(unseen, self.reconstruct(unseen)))
        metrics |= {f"unseen_pairs_{name}": found[name] for name in ("attributes", "scene")}
        metrics |= code_use(self.codes(scenes), self.module.vq_model.config.num_vq_embeddings)
        metrics["codes_stay"] = self._codes_stay(scenes)
        message = (
            f"the judge reads {metrics['attributes']:.3f} of attributes and {metrics['scene']:.3f} of scenes "
            f"right off reconstructions; the bar is {self._config.gate_accuracy} of attributes; "
            f"{metrics['unseen_pairs_attributes']:.3f} with pairs of shape and color never seen; "
            f"{metrics['codes_used']:.2f} of the codes occur, perplexity {metrics['code_perplexity']:.0f}; "
            f"{metrics['codes_stay']:.2f} of an object's codes stay without the other objects"
        )
        passed = metrics["attributes"] >= self._config.gate_accuracy
        return GateResult(passed=passed, metrics=metrics, message=message)

    def _codes_stay(self, scenes: Sequence[Scene]) -> float:
        """Share of codes that stay where a scene and the same scene with one object alone show the same."""
        alone = [replace(scene, objects=scene.objects[:1]) for scene in scenes]
        shown = [PictureBatch.of(each, self._config.picture_px).pixels for each in (scenes, alone)]
        patches = [self.module.anchor(pixels) for pixels in shown]
        is_same = torch.isclose(*patches).all(dim=1).flatten(1)  # (M, G)
        is_object = ~torch.isclose(patches[1], patches[1][..., -1:, -1:]).all(dim=1).flatten(1)
        chosen = is_same & is_object
        return float((self.codes(scenes) == self.codes(alone))[chosen].float().mean())

    def export(self, path: Path) -> None:
        """Write the VQModel as diffusers does."""
        self.module.tokenizer().vq_model.save_pretrained(path)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self._device = device
        self.module.to(device)


def _training_scenes(num_scenes: int) -> list[Scene]:
    rng = np.random.default_rng(19)
    return [sample_scene(rng, "train") for _ in range(num_scenes)]


def _attributes(metrics: dict[str, float]) -> dict[str, float]:
    return metrics | {"attributes": attribute_mean(metrics)}


def _on_grid(vectors: Float[Tensor, "N Z"], like: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B Z h w"]:
    """Vectors of all positions as a grid of the shape of another."""
    return vectors.reshape(like.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


def code_use(codes: Int[Tensor, "M G"], num_codes: int) -> dict[str, float]:
    """Share of codes that occur, and the perplexity exp(H) of their frequencies."""
    frequency = torch.bincount(codes.flatten(), minlength=num_codes).double()
    share = frequency / frequency.sum()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {"codes_used": float((frequency > 0).double().mean()), "code_perplexity": float(entropy.exp())}
