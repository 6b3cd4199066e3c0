"""How a device is used by training steps of stage II at real sizes: MFU, wait for data, padding, memory.

    python benchmarks/mfu.py --layers 8                     # on a GPU: 1.9 billion parameters
    python benchmarks/mfu.py --layers 32 --steps 20         # the published 7 billion
    python benchmarks/mfu.py --size small --device cpu      # the size of official_step.py, to try the script

The language model has the shape of Vicuna-7B with fewer layers, the vision encoder that of CLIP ViT-L/14, the
decoder that of Stable Diffusion 2.1, all with random weights. Documents have the published proportions
(`stage2_documents.py`, without their scale), JPEG pictures of 512 px, and are read from shards by workers.
The loop is that of training: its feed, its step, its meter. Other benchmarks here are ratios of one run on a
CPU; this one is for the device, and MFU is of the dense bfloat16 rate of its data sheet.
"""

import argparse
import io
import logging
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemm_share import start_run, take_step
from PIL import Image as PILImage
from rounds import positive, print_table
from stage2_documents import SCALE, WORD, Outline, Pages, outlines
from stage2_model import make_stage2_model

from dreamllm.config import load_config
from dreamllm.data.shards import write_shards
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.generate.pipeline import WEIGHTS
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.recipes import find_recipe
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.feed import StepFeed
from dreamllm.train.flops import flops_of
from dreamllm.train.interrupt import StopRequest
from dreamllm.train.meters import StepMeter, peak_flops
from dreamllm.train.plan.plan import stage_of
from dreamllm.train.plan.shapes import build_model, find_shapes
from dreamllm.train.run_config import RunConfig
from dreamllm.train.run_state import Run

WARM_UP = 3
NUM_PICTURES = 64
"""Different ones."""


def main() -> int:
    """Measure."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained(WEIGHTS / "tiny" / "tokenizer")
    model, picture_px, scale, row_length = (
        (make_stage2_model(tokenizer, width=512, layers=arguments.layers, vocabulary=None), 64, 1.0, 512)
        if arguments.size == "small"
        else (published_model(arguments.layers), 512, 1 / SCALE, arguments.row_length)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shards"
        write_shards(documents(arguments, picture_px, scale), path)
        changes, device = overrides(arguments, path, row_length), arguments.device
        run = start_run(model, tokenizer, arguments.documents, changes, device=device)
        del model
        reading = measure(run)
    module: Any = run.objective.module
    parameters = sum(parameter.numel() for parameter in module.language_model.parameters())
    print_table(
        f"Steps of stage II, a language model of {parameters / 1e9:.2f} billion parameters, {device}",
        ("",),
        {name: [f"{value:,.4g}"] for name, value in reading.items()},
    )
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    add("--size", choices=("published", "small"), default="published", help="(default: %(default)s)")
    add("--layers", type=positive, default=8, help="of the language model (default: %(default)s)")
    add("--documents", type=positive, default=16, help="in a step (default: %(default)s)")
    add("--row-length", type=positive, default=4096, help="positions of a packed row (default: %(default)s)")
    add("--steps", type=positive, default=30, help="measured, after 3 more (default: %(default)s)")
    add("--workers", type=int, default=6, help="that read documents (default: %(default)s)")
    add("--compile", action="store_true", help="compile the layers of the language model")
    return parser.parse_args()


def overrides(arguments: argparse.Namespace, shards: Path, row_length: int) -> list[str]:
    """What differs from the recipe of the tiny stage II."""
    on_gpu = arguments.device.startswith("cuda")
    return [
        f"objective.phases=[{{until: 1.0, sources: [{{kind: archive, path: {shards}, format: shards}}]}}]",
        "objective.noises_per_image=1",
        "objective.condition_dropout=0",
        f"objective.row_length={row_length}",
        "objective.rows_per_micro_batch=1",
        f"objective.gradient_checkpointing={str(on_gpu).lower()}",
        f"steps={arguments.steps + WARM_UP}",
        f"num_workers={arguments.workers}",
        f"precision={'bfloat16' if on_gpu else 'float32'}",
        f"parallel.compile={str(arguments.compile).lower()}",
    ]


def published_model(layers: int) -> DreamLLM:
    """The released stage II with fewer layers, every weight at random."""
    recipe = find_recipe("dreamllm-7b/stage2-released")
    stage = stage_of(load_config(RunConfig, recipe))
    shape = build_model(find_shapes(stage, recipe=recipe, out_dir=Path("runs/none")))
    config = shape.language_model.config
    config.num_hidden_layers = layers
    decoder = shape.image_decoder
    assert isinstance(decoder, StableDiffusionDecoder)
    return DreamLLM(
        shape.config,
        language_model=type(shape.language_model)(config),
        vision_model=type(shape.vision_encoder.model)(shape.vision_encoder.model.config),
        image_decoder=StableDiffusionDecoder(
            type(decoder.denoiser).from_config(decoder.denoiser.config),
            type(decoder.vae).from_config(decoder.vae.config),
            decoder.scheduler,
        ),
    )


def documents(arguments: argparse.Namespace, picture_px: int, scale: float) -> Iterator[Document]:
    """As many as the steps read."""
    draw = np.random.default_rng(0)
    pictures = []
    for _ in range(NUM_PICTURES):
        coarse = PILImage.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((picture_px, picture_px), PILImage.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        pictures.append(stream.getvalue())
    number = arguments.documents * (arguments.steps + WARM_UP)
    for index, outline in enumerate(islice(outlines(Pages(), seed=0), number)):
        yield document(outline, index, pictures, scale)


def document(outline: Outline, number: int, pictures: list[bytes], scale: float) -> Document:
    """The document of an outline, its words brought back to their own number."""
    is_read = outline.kind == "read_pair"
    parts: list[Part] = []
    for place in range(max(len(outline.words), outline.num_pictures)):
        text = [
            Text(text=WORD * max(1, round(size * scale)), learn=outline.kind != "draw_pair")
            for size in outline.words[place : place + 1]
        ]
        image = [
            Image(source=pictures[(number + place) % len(pictures)], learn=not is_read)
            for _ in range(outline.num_pictures)[place : place + 1]
        ]
        parts += [*image, *text] if is_read else [*text, *image]
    return Document(parts=tuple(parts), id=f"{outline.kind}-{number}")


def measure(run: Run) -> dict[str, float]:
    """The meter's reading over the steps after the first few."""
    meter = StepMeter(
        run.device,
        flops=flops_of(run.objective.module, noises_per_image=1),
        peak_flops=peak_flops(run.device, measure=True),
    )
    meter.begin()
    for step, micro_batches in enumerate(StepFeed(run, 0, StopRequest())):
        meter.data_ready()
        take_step(run, micro_batches, step)
        meter.step_done(micro_batches)
        if step == WARM_UP - 1:
            meter.reading()
        meter.begin()
    return meter.reading()


if __name__ == "__main__":
    raise SystemExit(main())
