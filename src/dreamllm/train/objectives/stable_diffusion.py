"""The tiny Stable Diffusion: a U-Net that draws the VAE's latents from a caption (Rombach et al. 2022,
arXiv:2112.10752). Its U-Net and VAE become DreamLLM's frozen image decoder; with its text tower it is the
baseline DreamLLM has to beat, trained on the same pictures.

CLIP's text features have a collapsed spectrum: a word of place moves them by a hundredth of what a word of
colour does. Their whitening is folded into the first weights of the cross-attention, which makes every word
audible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel

from dreamllm.losses.denoising import denoising_error, denoising_target
from dreamllm.losses.total import Term
from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.whitening import SHRINKAGE, fold_into_cross_attention, whitening
from dreamllm.runtime.seeding import make_generator
from dreamllm.sequence.captions import CaptionTokens
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.objectives.configs import StableDiffusionObjectiveConfig
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.train.objectives.pictures import save_grid, to_pixels
from dreamllm.train.objectives.scene_steps import SceneSteps
from dreamllm.train.objectives.wrong_captions import ATTRIBUTES, with_wrong
from dreamllm.world.judge import Judge
from dreamllm.world.language import CaptionStyle, caption
from dreamllm.world.render import foreground, render
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

STYLES: tuple[CaptionStyle, ...] = ("short", "full", "long")
STYLE_SHARES = (0.15, 0.6, 0.25)
GATE_SCENES = 128
GATE_TIMESTEP_SHARE = 0.6
"""Noise level of the gate's losses: far up, where only the caption can tell what will be there."""
SAMPLE_STEPS = 20
SAMPLE_GUIDANCE = 2.0


@dataclass(frozen=True, slots=True)
class DrawBatch:
    """Pictures, where their objects are, and captions."""

    pixels: Tensor
    """(M, 3, H, W) float32, [-1, 1]."""
    is_foreground: Tensor
    """(M, 1, H, W) bool."""
    captions: Tensor
    """(M, K) ids."""


class StableDiffusionObjective:
    """Trains a stock UNet2DConditionModel and its text tower on pictures of the world."""

    weights: Mapping[str, float] = {"denoising": 1.0}

    def __init__(self, config: StableDiffusionObjectiveConfig, *, steps: int, seed: int) -> None:
        self.tokenizer = Tokenizer.from_pretrained(config.tokenizer)
        self.text_encoder, features = _text_tower(config.clip, self.tokenizer)
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(config.vae)
        unet = _unet(config, vae, width=features.shape[-1])
        if config.whiten:
            _, matrix = whitening(features, shrinkage=SHRINKAGE)
            fold_into_cross_attention(unet, matrix)
        scheduler = DDPMScheduler(
            beta_schedule="linear",
            beta_start=1e-4,
            beta_end=0.02,
            prediction_type="v_prediction",
            clip_sample=False,
            timestep_spacing="trailing",
        )
        self.decoder = StableDiffusionDecoder(unet, vae, scheduler)
        unet.requires_grad_(True).train()
        self.unet = unet
        self._captions = CaptionTokens(self.tokenizer, self.text_encoder.config.max_position_embeddings)
        self.module: nn.Module = nn.ModuleDict({"decoder": self.decoder, "text_encoder": self.text_encoder})
        self._config = config
        self._device = torch.device("cpu")
        self.data: Dataset[list[DrawBatch]] = SceneSteps(
            self._make_batch,
            config.phases,
            scenes_per_step=config.scenes_per_step,
            steps=steps,
            seed=seed,
        )

    def _make_batch(self, scenes: Sequence[Scene], rng: np.random.Generator, progress: float) -> DrawBatch:
        texts = []
        for scene in scenes:
            style = STYLES[int(rng.choice(3, p=STYLE_SHARES))]
            texts.append("" if rng.random() < self._config.empty_caption else caption(scene, style, rng))
        return DrawBatch(
            to_pixels(np.stack([render(scene) for scene in scenes])),
            torch.from_numpy(np.stack([foreground(scene) for scene in scenes]))[:, None],
            self._captions(texts),
        )

    def counts(self, micro_batch: DrawBatch) -> Mapping[str, int]:
        """Pictures."""
        return {"denoising": micro_batch.pixels.shape[0]}

    def losses(self, micro_batch: DrawBatch, generator: torch.Generator) -> Mapping[str, Term]:
        """Denoising error at uniform noise levels, objects weighing more."""
        pixels = micro_batch.pixels.to(self._device)
        latents = self.decoder.encode(pixels, generator)
        weight = self._latent_weight(micro_batch.is_foreground.to(self._device), latents.shape[-2:])
        error = self._error(
            latents, self.condition(micro_batch.captions), weight, generator, self._config.noises_per_image
        )
        return {"denoising": Term(error.sum(), pixels.shape[0])}

    def _latent_weight(self, mask: Tensor, size: Sequence[int]) -> Float[Tensor, "M 1 h w"]:
        share = F.adaptive_avg_pool2d(mask.float(), (size[0], size[1]))
        return 1 + (self._config.foreground_weight - 1) * (share > 0).float()

    def _error(
        self,
        latents: Float[Tensor, "M Z h w"],
        condition: Float[Tensor, "M K C"],
        weight: Float[Tensor, "M 1 h w"],
        generator: torch.Generator,
        copies: int,
        timestep: int | None = None,
    ) -> Float[Tensor, " M"]:
        """Mean weighted error of each picture over several noises."""
        scheduler = self.decoder.scheduler
        count = latents.shape[0]
        latents, condition, weight = (
            repeat(x, "M ... -> (n M) ...", n=copies) for x in (latents, condition, weight)
        )
        noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents.device)
        limit = scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, limit, latents.shape[:1], generator=generator, device=generator.device)
        timesteps = timesteps.to(latents.device) if timestep is None else torch.full_like(timesteps, timestep)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = self.unet(noisy, timesteps, condition).sample
        target = denoising_target(scheduler, latents, noise, timesteps)
        return denoising_error(predicted, target, spatial_weight=weight).view(copies, count).mean(0)

    def condition(self, captions: Int[Tensor, "M K"]) -> Float[Tensor, "M K C"]:
        """Text states of captions, padding included, as Stable Diffusion reads them."""
        return self.text_encoder(input_ids=captions.to(self._device)).last_hidden_state

    def document_ids(self, micro_batch: DrawBatch) -> tuple[str, ...]:
        """Pictures have no names of their own."""
        return (f"{micro_batch.pixels.shape[0]} pictures",)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The U-Net, and the text tower at its own rate."""
        text = [p for p in self.text_encoder.parameters() if p.requires_grad]
        return [
            ParameterGroup(name="unet", parameters=list(self.unet.parameters())),
            ParameterGroup(name="text", parameters=text, lr_scale=self._config.text_lr_scale),
        ]

    def tables(self) -> str:
        """Sizes."""
        counts = {
            name: sum(p.numel() for p in part.parameters())
            for name, part in (
                ("unet (trained)", self.unet),
                ("text (trained)", self.text_encoder),
                ("vae (frozen)", self.decoder.vae),
            )
        }
        return "stable diffusion: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())

    def draw(self, texts: Sequence[str], *, seed: int = 0) -> np.ndarray:
        """Pictures (n, H, W, 3) uint8 of captions."""
        self.unet.eval()
        pixels = self.decoder.sample(
            Condition.of_tokens(self.condition(self._captions(texts))),
            Condition.of_tokens(self.condition(self._captions([""]))),
            noise=[make_generator(seed + index) for index in range(len(texts))],
            num_inference_steps=SAMPLE_STEPS,
            guidance_scale=SAMPLE_GUIDANCE,
        )
        self.unet.train()
        return np.stack([np.asarray(picture) for picture in self.decoder.to_pil(pixels)])

    def sample(self, path: Path, step: int) -> None:
        """Rows of one, two and three objects, drawn from full captions."""
        rows = []
        for num_objects in (1, 2, 3):
            scenes = [
                sample_scene(np.random.default_rng([7, num_objects, i]), "test", num_objects=num_objects)
                for i in range(10)
            ]
            rows += [
                np.stack([render(scene) for scene in scenes]),
                self.draw([caption(s, "full") for s in scenes]),
            ]
        save_grid(rows, path)

    def gate(self) -> GateResult:
        """Loss gaps between right and wrong captions, and what the judge reads off drawn pictures."""
        rng = np.random.default_rng(37)
        scenes = [sample_scene(rng, "test", num_objects=1) for _ in range(GATE_SCENES)]
        right = self._caption_loss(scenes, scenes)
        metrics = {
            f"gap_{name}": self._caption_loss(scenes, [with_wrong(s, name, rng) for s in scenes]) / right
            for name in ATTRIBUTES
        }
        worst = min(metrics.values())
        for num_objects in (1, 2, 3):
            scenes = [sample_scene(rng, "test", num_objects=num_objects) for _ in range(GATE_SCENES // 2)]
            readings = Judge().read_many(list(self.draw([caption(s, "full") for s in scenes])))
            drawn = [reading.scene == scene for reading, scene in zip(readings, scenes, strict=True)]
            metrics[f"all_correct_{num_objects}"] = sum(drawn) / len(drawn)
        message = (
            f"a wrong caption costs at least {worst:.2f} times the right one's loss; the bar is "
            f"{self._config.gate_gap}; pictures wholly right with 1, 2, 3 objects: "
            + ", ".join(f"{metrics[f'all_correct_{n}']:.2f}" for n in (1, 2, 3))
        )
        return GateResult(passed=worst >= self._config.gate_gap, metrics=metrics, message=message)

    def _caption_loss(self, scenes: Sequence[Scene], told: Sequence[Scene]) -> float:
        generator = make_generator(41, self._device)
        pixels = to_pixels(np.stack([render(scene) for scene in scenes])).to(self._device)
        latents = self.decoder.encode(pixels, generator)
        mask = torch.from_numpy(np.stack([foreground(scene) for scene in scenes]))[:, None].to(self._device)
        weight = self._latent_weight(mask, latents.shape[-2:])
        condition = self.condition(self._captions([caption(scene, "full") for scene in told]))
        step = int(GATE_TIMESTEP_SHARE * self.decoder.scheduler.config.num_train_timesteps)
        return float(self._error(latents, condition, weight, generator, 1, timestep=step).mean())

    def export(self, path: Path) -> None:
        """Write the parts in the layout of a Stable Diffusion folder."""
        self.unet.save_pretrained(path / "unet")
        self.decoder.vae.save_pretrained(path / "vae")
        self.decoder.scheduler.save_pretrained(path / "scheduler")
        self.text_encoder.save_pretrained(path / "text_encoder")
        self.tokenizer.save_pretrained(path / "tokenizer")

    def to(self, device: torch.device) -> None:
        """Move the modules."""
        self._device = device
        self.module.to(device)


def _unet(config: StableDiffusionObjectiveConfig, vae: AutoencoderKL, *, width: int) -> UNet2DConditionModel:
    attends = config.has_attention
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return UNet2DConditionModel(
        sample_size=vae.config.sample_size // factor,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=width,
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_groups,
    )


def _text_tower(clip_path: Path, tokenizer: Tokenizer) -> tuple[CLIPTextModel, Float[Tensor, "n C"]]:
    """CLIP's text tower alone, and its states on a sample of captions."""
    clip: CLIPModel = CLIPModel.from_pretrained(clip_path)
    config = CLIPTextConfig(**clip.config.text_config.to_dict())
    tower: CLIPTextModel = CLIPTextModel(config)
    inner = getattr(tower, "text_model", tower)  # older transformers keep the tower one level deeper
    inner.load_state_dict(clip.text_model.state_dict())
    tower.requires_grad_(True).train()
    rng = np.random.default_rng(11)
    texts = [caption(sample_scene(rng), STYLES[int(rng.integers(3))], rng) for _ in range(1000)]
    ids = CaptionTokens(tokenizer, config.max_position_embeddings)(texts)
    with torch.no_grad():
        states = tower(input_ids=ids).last_hidden_state
    return tower, states.flatten(0, 1)
