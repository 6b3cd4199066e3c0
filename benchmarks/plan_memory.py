"""The memory that `dreamllm plan` foretells against the memory that training takes.

    python benchmarks/plan_memory.py
    python benchmarks/plan_memory.py --sizes deep frozen

Every size is trained for two steps, the second of two passes, in a process of its own, in float32 on the CPU,
by the code that trains a run. Measured is the most memory that process ever held, less what it held before
the model was made; foretold is the plan's sum without what it adds for a GPU. Linux only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from rounds import parse_arguments, print_table, report, use_one_thread
from torch import Tensor

from dreamllm.losses.total import DREAMLLM_WEIGHTS, Term
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.freezing import apply_trainable
from dreamllm.models.trainable import Trainable
from dreamllm.sequence.batch import Batch
from dreamllm.train.plan.memory import weight_bytes
from dreamllm.train.plan.shapes import Shapes, build_model
from dreamllm.train.plan.trace import blank_batch, trace_pass
from dreamllm.train.plan.workload import Workload
from dreamllm.train.step import optimizer_step

MIB = 2**20
WORST_RATIO = 1.1
"""How far foretold and measured may be apart, either way."""
WARM_UP: Mapping[str, Any] = {"width": 64, "layers": 1, "channels": 32, "images": 1}
SIZES: Mapping[str, Mapping[str, Any]] = {
    "deep": {"width": 512, "layers": 12, "channels": 64, "images": 2},
    "drawing": {"width": 256, "layers": 2, "channels": 128, "images": 10},
    "checkpointed": {"width": 512, "layers": 12, "channels": 64, "images": 6, "checkpointing": True},
    "frozen": {"width": 768, "layers": 6, "channels": 64, "images": 4, "language_model": False},
}
"""Language model, U-Net, pictures read and drawn in a pass."""
# Blocks of 64 KiB or more are mapped one by one and go back at once: what a process holds is what it uses.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Measure; 1 if a size is not foretold well enough."""
    if len(sys.argv) == 3 and sys.argv[1] == "--measure":
        print(json.dumps(measure(sys.argv[2])))
        return 0
    arguments = parse_arguments(__doc__, _add_arguments, rounds=1)
    use_one_thread()
    foretold = {name: foretell(name) for name in arguments.sizes}
    measured = {name: max(measure_aside(name) for _ in range(arguments.rounds)) for name in arguments.sizes}
    ratios = {name: sum(foretold[name].values()) / measured[name] for name in arguments.sizes}
    columns = ("weights", "moments", "gradients", "a pass", "foretold", "measured", "ratio")
    print_table(
        "Memory of a training step, in MiB",
        columns,
        {
            name: [f"{size / MIB:,.0f}" for size in (*foretold[name].values(), sum(foretold[name].values()))]
            + [f"{measured[name] / MIB:,.0f}", f"{ratios[name]:.3f}"]
            for name in arguments.sizes
        },
    )
    report("plan_memory", arguments, {"foretold": foretold, "measured": measured, "ratios": ratios})
    return int(any(not 1 / WORST_RATIO <= ratio <= WORST_RATIO for ratio in ratios.values()))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="which to measure (default: all)"
    )


def foretell(name: str) -> dict[str, int]:
    """Bytes of a step, as a plan has them."""
    model = prepare(SIZES[name], "meta")
    weights = list(weight_bytes(model, has_average=False).values())
    trace = trace_pass(
        model,
        workload_of(SIZES[name]),
        precision="float32",
        noises_per_image=1,
        weights=DREAMLLM_WEIGHTS,
        has_gradients=True,
    )
    gradients = trace.at_peak["gradients"]
    return {
        "weights": weights[0] + weights[1],
        "moments": weights[2],
        "gradients": gradients,
        "pass": trace.peak_bytes - gradients,
    }


def measure_aside(name: str) -> int:
    """Bytes that training takes in a process of its own."""
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, check=True, stdout=subprocess.PIPE, text=True
    )
    size: int = json.loads(done.stdout.splitlines()[-1])
    return size


def measure(name: str) -> int:
    """Train here; the most bytes held, beyond those held at the start."""
    use_one_thread()
    train(WARM_UP)  # the code that a first step loads is no part of a step
    before = _resident("VmRSS")
    train(SIZES[name])
    return _resident("VmHWM") - before


def train(size: Mapping[str, Any]) -> None:
    """Two steps: moments are there in the second, and gradients in its second pass."""
    objective = OneBatch(prepare(size, "cpu"), workload_of(size))
    optimizer = torch.optim.AdamW([p for p in objective.module.parameters() if p.requires_grad], fused=True)
    for step in range(2):
        optimizer_step(
            objective,
            optimizer,
            [objective.batch] * (step + 1),
            step=step,
            seed=0,
            device=torch.device("cpu"),
            clip_norm=1.0,
        )


class OneBatch:
    """An objective whose every micro-batch is the same blank one."""

    weights = DREAMLLM_WEIGHTS

    def __init__(self, model: DreamLLM, workload: Workload) -> None:
        self.module = model.train()
        blank = blank_batch(model, workload)
        # Zeros that nobody wrote take no memory.
        own: dict[str, Any] = {
            item.name: value.clone()
            for item in fields(blank)
            if isinstance(value := getattr(blank, item.name), Tensor)
        }
        self.batch = replace(blank, **own)

    def counts(self, micro_batch: Batch) -> Mapping[str, int]:
        """Supervised tokens and pictures."""
        return {"next_token": micro_batch.num_labels, "denoising": micro_batch.num_targets}

    def losses(self, micro_batch: Batch, generator: torch.Generator) -> Mapping[str, Term]:
        """The model's own."""
        return self.module(micro_batch, generator)

    def document_ids(self, micro_batch: Batch) -> tuple[str, ...]:
        """None has a name."""
        return ()


def prepare(size: Mapping[str, Any], device: str) -> DreamLLM:
    """The model of a size, frozen and checkpointed as a stage would."""
    model = build_model(shapes_of(size), device=device)
    trains = size.get("language_model", True)
    apply_trainable(
        model, Trainable(language_model=trains, special_token_rows=not trains), special_token_ids=range(4)
    )
    if size.get("checkpointing", False):
        model.enable_gradient_checkpointing()
    return model


def workload_of(size: Mapping[str, Any]) -> Workload:
    """Two rows of 512 positions."""
    images = size["images"]
    return Workload(
        rows=2,
        positions=512,
        labels=400,
        images_read=images,
        images_drawn=images,
        passes=2.0,
        positions_per_step=2 * 2 * 512,
        images_read_per_step=2 * images,
        images_drawn_per_step=2 * images,
    )


def shapes_of(size: Mapping[str, Any]) -> Shapes:
    """Parts of the shapes of DreamLLM-7B's, smaller: pictures of 128 pixels, latents of 16."""
    width, channels = size["width"], size["channels"]
    return Shapes(
        config=DreamLLMConfig(num_dream_queries=32),
        language_model={
            "model_type": "llama",
            "vocab_size": 8000,
            "hidden_size": width,
            "intermediate_size": width * 8 // 3 // 64 * 64,
            "num_hidden_layers": size["layers"],
            "num_attention_heads": width // 64,
        },
        vision_model={
            "model_type": "clip_vision_model",
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 128,
            "patch_size": 16,
        },
        denoiser={
            "_class_name": "UNet2DConditionModel",
            "sample_size": 16,
            "layers_per_block": 2,
            "block_out_channels": [channels, 2 * channels],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "cross_attention_dim": 256,
            "attention_head_dim": 4,
            "use_linear_projection": True,
        },
        vae={
            "block_out_channels": [32, 64, 64, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": 4,
        },
        scheduler={"num_train_timesteps": 1000},
    )


def _resident(key: str) -> int:
    """A line of the process's own account, in bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None  # every Linux writes these lines
    return int(found[1]) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
