"""The smallest model of the same make as DreamLLM-7B, as shapes and as folders of configurations."""

import json
from pathlib import Path

from dreamllm.models.dreamllm import DreamLLMConfig
from dreamllm.train.plan.shapes import Shapes
from dreamllm.train.plan.workload import Workload

LLAMA = {
    "model_type": "llama",
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
SCHEDULER = {"num_train_timesteps": 1000}
SHAPES = Shapes(
    config=DreamLLMConfig(num_dream_queries=8),
    language_model=LLAMA,
    vision_model=CLIP,
    denoiser=UNET,
    vae=VAE,
    scheduler=SCHEDULER,
    num_new_rows=8,
)


def work(**changes: int) -> Workload:
    """Two rows of 128 positions with three pictures read and three drawn."""
    sizes = {"rows": 2, "positions": 128, "labels": 40, "images_read": 3, "images_drawn": 3, **changes}
    return Workload(
        **sizes, passes=2.0, positions_per_step=0, images_read_per_step=0, images_drawn_per_step=0
    )


def write_parts(folder: Path) -> None:
    """The configurations of the parts, as a folder each."""
    files = {
        "llama/config.json": LLAMA,
        "clip/config.json": CLIP,
        "sd/unet/config.json": UNET,
        "sd/vae/config.json": VAE,
        "sd/scheduler/scheduler_config.json": SCHEDULER,
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(value))
