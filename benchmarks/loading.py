"""Memory and time of loading a model folder, against its size and against safetensors alone.

    python benchmarks/loading.py
    python benchmarks/loading.py --model runs/mine/model

Without `--model` a random model of about 1 GB is written first. Every way runs in a process of its own and
reads every byte, because tensors stay in their files until they are used. Unlike the other scripts this one
counts seconds on the clock: much of loading is waiting. The file cache of the system is warm on both sides.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rounds import parse_arguments, print_table, report, spread
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dreamllm.checkpoint.pretrained import load_model, save_model
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.sequence.tokenizer import train_tokenizer

WAYS = ("nothing", "safetensors alone", "load_model")


def main() -> int:
    """Measure; 1 if loading takes more than 1.15 of the folder's size, or twice the time of safetensors."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=3)
    if arguments.way:
        measure(arguments.way, arguments.model)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or write_model(Path(folder) / "model")
        size = sum(file.stat().st_size for file in model.rglob("*.safetensors"))
        results = {way: [in_process(way, model) for _ in range(arguments.rounds)] for way in WAYS}
    base = median(peak for _, peak in results["nothing"])
    memory = {way: [(peak - base) / size for _, peak in results[way]] for way in WAYS[1:]}
    ratios = [
        ours / alone
        for (ours, _), (alone, _) in zip(results["load_model"], results["safetensors alone"], strict=True)
    ]
    print_table(
        f"Loading {size / 1e9:.2f} GB and reading every byte, {arguments.rounds} times each",
        ["peak memory / size", "time / safetensors"],
        {
            "safetensors alone": [f"{median(memory['safetensors alone']):.2f}", "1.00"],
            "load_model": [f"{median(memory['load_model']):.2f}", f"{median(ratios):.2f}"],
        },
    )
    print(f"  Time by round: {spread(ratios)}.\n")
    result = {"size_bytes": size, "peak_memory": median(memory["load_model"]), "time": median(ratios)}
    report("loading", arguments, result)
    return int(result["peak_memory"] > 1.15 or result["time"] > 2)


def in_process(way: str, model: Path) -> tuple[float, float]:
    """Seconds and peak memory in bytes of one way, in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--model", str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def measure(way: str, model: Path) -> None:
    """Print seconds on the clock and the peak memory of this process."""
    began = time.perf_counter()
    tensors: list[torch.Tensor] = []
    if way == "safetensors alone":
        tensors = [t for file in sorted(model.rglob("*.safetensors")) for t in load_file(file).values()]
    elif way == "load_model":
        tensors = list(load_model(model).state_dict().values())
    for tensor in tensors:
        tensor.view(-1).view(torch.uint8).max()
    print(time.perf_counter() - began, peak_memory())


def peak_memory() -> int:
    """Most bytes of this process in memory so far. (`getrusage` would begin with the parent's.)"""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def write_model(path: Path) -> Path:
    """A random model of 1 GB or so, in float32."""
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=4096,
            hidden_size=1280,
            intermediate_size=3456,
            num_hidden_layers=8,
            num_attention_heads=20,
        )
    )
    vision_model = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
    )
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(128, 256, 512, 512), cross_attention_dim=768, layers_per_block=1
    )
    vae = AutoencoderKL(
        block_out_channels=(64, 128),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )
    scheduler = StableDiffusionDecoder.make_scheduler({"beta_schedule": "scaled_linear"})
    model = DreamLLM(
        DreamLLMConfig(),
        language_model=language_model,
        vision_model=vision_model,
        image_decoder=StableDiffusionDecoder(unet, vae, scheduler),
    )
    return save_model(model, path, tokenizer=train_tokenizer([], vocab_size=266), transforms={})


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="a model folder instead of a random model")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)


if __name__ == "__main__":
    sys.exit(main())
