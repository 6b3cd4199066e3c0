"""Which connector learns to draw: linear, MLP or transformer, over a frozen or a trained language model.

    dreamllm train tiny --out runs/tiny         # makes the parts; its first four runs are enough
    python benchmarks/connectors.py --parts runs/tiny

Every variant starts from the same parts and sees the same documents, captions to draw, in the same order and
number of steps. Measured are the denoising loss on test captions, with the same noise for all, and what the
judge reads off pictures of test scenes. No projector starts whitened, but for the variant that says so.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rounds import parse_arguments, positive, print_table, report

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.document.document import Document, Text
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.options import GenerationOptions
from dreamllm.models.trainable import Trainable
from dreamllm.runtime.seeding import make_generator
from dreamllm.sequence.packing import collate
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.optim import build_optimizer, set_lr
from dreamllm.train.run_config import OptimConfig, RunConfig
from dreamllm.train.schedule import lr_factor
from dreamllm.train.step import optimizer_step
from dreamllm.world.documents import draw_prompt, make_document
from dreamllm.world.judge import Judge
from dreamllm.world.language import caption
from dreamllm.world.splits import sample_scene

VARIANTS = {
    "linear": ("linear", False),
    "linear, whitened": ("linear", True),
    "mlp": ("mlp", False),
    "transformer": ("transformer", False),
}


def main() -> int:
    """Train and measure every variant."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=1)
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for trained in (False, True):
            for name in arguments.only or VARIANTS:
                label = f"{name}, {'trained' if trained else 'frozen'} language model"
                results[label] = run(arguments, name, trained=trained, out=Path(folder) / label)
                print(label, results[label], file=sys.stderr, flush=True)
    print_table(
        f"Drawing one object, {arguments.steps} steps of {arguments.documents} captions",
        ["connector parameters", "denoising loss", "attributes right", "wholly right"],
        {
            label: [
                f"{each['parameters']:,.0f}",
                f"{each['denoising']:.4f}",
                f"{100 * each['attributes']:.1f} %",
                f"{100 * each['whole']:.1f} %",
            ]
            for label, each in results.items()
        },
    )
    report("connectors", argparse.Namespace(**{**vars(arguments), "parts": str(arguments.parts)}), results)
    return 0


def run(arguments: argparse.Namespace, name: str, *, trained: bool, out: Path) -> dict[str, float]:
    """Train one variant and measure it."""
    connector, whiten = VARIANTS[name]
    parts = PartsConfig(
        language_model=str((arguments.parts / "language_model/model/language_model").resolve()),
        tokenizer=str((arguments.parts / "language_model/model/tokenizer").resolve()),
        vision_encoder=str((arguments.parts / "clip/model/clip").resolve()),
        image_decoder=str((arguments.parts / "stable_diffusion/model").resolve()),
        num_dream_queries=16,
        connector=connector,
        num_connector_layers=2,
        select_layer=-1,
        chat_template="plain_chat",
    )
    source = WorldSourceConfig(documents={"draw_pair": 0.5, "draw": 0.5}, num_objects=(1,))
    objective = DreamLLMObjectiveConfig(
        parts=parts,
        whiten=whiten,
        train=Trainable(language_model=trained, special_token_rows=not trained, visual_projector=False),
        phases=(PhaseConfig(sources=(source,)),),
        documents_per_step=arguments.documents,
        row_length=384,
        rows_per_micro_batch=16,
        noises_per_image=4,
        next_token_weight=0.0,
        denoising_weight=1.0,
        condition_dropout=0.1,
        connector_lr_scale=2.0 if trained else 1.0,
    )
    if whiten:  # the start reads pictures too
        reading = replace(source, documents={"draw_pair": 0.5, "draw": 0.4, "read_pair": 0.1})
        objective = replace(objective, phases=(PhaseConfig(sources=(reading,)),))
    config = RunConfig(
        name="connectors",
        objective=objective,
        steps=arguments.steps,
        optim=OptimConfig(lr=arguments.lr or (1e-3 if trained else 2e-3), betas=(0.9, 0.98)),
    )
    stage = build_objective(config, out)
    assert isinstance(stage, DreamLLMObjective)
    optimizer = build_optimizer(stage.module, stage.parameter_groups(), config.optim)
    for step in range(config.steps):
        factor = lr_factor(
            step, num_steps=config.steps, schedule="cosine", warmup_ratio=0.05, final_ratio=0.1
        )
        set_lr(optimizer, factor * config.optim.lr)
        optimizer_step(
            stage, optimizer, stage.data[step], step=step, seed=0, device=torch.device("cpu"), clip_norm=1.0
        )
    return measure(stage)


@torch.no_grad()
def measure(stage: DreamLLMObjective, num: int = 96) -> dict[str, float]:
    """Loss on test captions, and what is right in pictures of test scenes."""
    stage.module.eval()
    encoder = replace(stage.encoder, options=replace(stage.encoder.options, condition_dropout=0.0))
    rng = np.random.default_rng(5)
    documents = [make_document("draw_pair", rng, split="test", num_objects=1) for _ in range(num)]
    batch = collate([[encoder.encode(each)[0]] for each in documents], encoder.tokenizer.pad_id)
    term = stage.module(batch, make_generator(9), noises_per_image=4)["denoising"]
    scenes = [sample_scene(rng, "test", num_objects=1) for _ in range(num)]
    prompts = [
        Document(parts=(Text(text=draw_prompt(caption(scene, "full")), role="user"),), id=str(i))
        for i, scene in enumerate(scenes)
    ]
    generator = InterleavedGenerator(stage.module, encoder)
    drawn = [
        np.asarray(d.images[-1].load()) for d in generator.generate(prompts, GenerationOptions(mode="image"))
    ]
    right = whole = 0
    for scene, reading in zip(scenes, Judge().read_many(drawn), strict=True):
        [thing] = scene.objects
        cell = next(cell for cell in reading.cells if cell.place == thing.place)
        right += (cell.shape == thing.shape) + (cell.color == thing.color) + (cell.size == thing.size)
        whole += reading.scene == scene
    return {
        "parameters": sum(p.numel() for p in stage.module.condition_projector.parameters()),
        "denoising": float(term.sum) / term.count,
        "attributes": right / (3 * num),
        "whole": whole / num,
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=Path, default=Path("runs/tiny"), help="folder of the tiny family")
    parser.add_argument("--steps", type=positive, default=500, help="optimizer steps (default: %(default)s)")
    parser.add_argument(
        "--documents", type=positive, default=16, help="captions a step (default: %(default)s)"
    )
    parser.add_argument(
        "--lr", type=float, help="peak learning rate (default: 2e-3; 1e-3 with a trained language model)"
    )
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="these variants alone")


if __name__ == "__main__":
    sys.exit(main())
