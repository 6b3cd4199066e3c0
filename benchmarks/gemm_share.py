"""How much of the machine's matrix-multiplication rate a training step of DreamLLM reaches.

    python benchmarks/gemm_share.py
    python benchmarks/gemm_share.py --width 1024 --rounds 3

The model is new and random: a Llama of the given width, and a small CLIP vision tower, U-Net and VAE. The
rate is that of the fastest of some large float32 products, measured in turns with the training step. FLOPs
are those of all products, convolutions and attentions the step really executes, forward and backward. The
language model is also measured alone: its blocks and its loss, on embeddings and without the optimizer; a
profile of that says what takes the rest of its time.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from rounds import (
    cpu_seconds,
    parse_arguments,
    positive,
    print_table,
    report,
    spread,
    take_turns,
    use_one_thread,
)
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dreamllm.checkpoint.pretrained import save_model
from dreamllm.config import load_config
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.generate.pipeline import WEIGHTS
from dreamllm.losses.next_token import next_token_losses
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.packed_attention import attention_of
from dreamllm.recipes import find_recipe
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.run_config import RunConfig
from dreamllm.train.run_state import Run
from dreamllm.train.step import optimizer_step

IMAGE_PX = 64
PRODUCT_SIZES = (1024, 1536, 2048)
PARTS = {
    "vision encoder": ("vision_encoder",),
    "U-Net": ("image_decoder.unet",),
    "VAE encoder": ("image_decoder.vae.encoder", "image_decoder.vae.quant_conv"),
    "projectors": ("visual_projector", "condition_projector"),
}
"""By the modules that a step calls. What they leave is the language model."""
KINDS = {
    "attention": ("scaled_dot_product",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "copies": ("copy_", "aten::cat", "clone", "index", "slice", "zero_", "fill_", "repeat", "split"),
    "softmax and loss": ("softmax", "nll_loss"),
}
"""By parts of the names of operators, the first that fits."""
REST = "norms, activations, sums and what calls them"
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def main() -> int:
    """Measure."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=5)
    use_one_thread()
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained(WEIGHTS / "tiny" / "tokenizer")
    run = start_run(make_model(tokenizer, arguments), tokenizer, arguments.documents)
    micro_batches = run.objective.data[100]

    def move(number: int = 0) -> None:
        take_step(run, micro_batches, number)

    def move_language_model(number: int = 0) -> None:
        for batch in micro_batches:
            language_pass(run.objective.module, batch)
        run.optimizer.zero_grad(set_to_none=True)

    flops = count_flops(move)  # also the warm-up
    flops_alone = count_flops(move_language_model)["all"]
    multiply_fastest()  # warm-up
    rates: list[float] = []
    seconds = take_turns(
        {
            "product": lambda number: rates.append(multiply_fastest()),
            "step": move,
            "language model": move_language_model,
        },
        rounds=arguments.rounds,
    )
    shares = [flops["all"] / step / rate for step, rate in zip(seconds["step"], rates, strict=True)]
    alone = [flops_alone / part / rate for part, rate in zip(seconds["language model"], rates, strict=True)]
    spent = time_by_kind(move_language_model)
    shapes = " and ".join(" x ".join(map(str, batch.input_ids.shape)) for batch in micro_batches)
    print_table(
        f"A training step of a DreamLLM of width {arguments.width}, rows x positions {shapes}",
        ("FLOPs",),
        {part: [f"{count / flops['all']:.1%}"] for part, count in flops.items()},
    )
    print(
        f"  FLOPs per second, of those of large products: {median(shares):.2f} ({spread(shares)} by round).\n"
        f"  Of the language model alone: {median(alone):.2f} ({spread(alone)} by round)."
    )
    print_table(
        "Where the language model spends its time", ("time",), {k: [f"{v:.1%}"] for k, v in spent.items()}
    )
    result = {"shares": shares, "language_model_shares": alone, "flops": flops, "time": spent}
    report("gemm_share", arguments, {"median_share": median(shares), **result})
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=positive, default=512, help="of the Llama (default: %(default)s)")
    parser.add_argument("--layers", type=positive, default=4, help="of the Llama (default: %(default)s)")
    parser.add_argument("--documents", type=positive, default=12, help="in a step (default: %(default)s)")


def make_model(tokenizer: Tokenizer, arguments: argparse.Namespace) -> DreamLLM:
    """Stock parts with random weights; beside the Llama all are small, as pictures of the world are."""
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=arguments.width,
            intermediate_size=arguments.width * 8 // 3 // 64 * 64,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.width // 64,
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
    )
    vision_model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=6,
            image_size=IMAGE_PX,
            patch_size=16,
        )
    )
    return DreamLLM(
        DreamLLMConfig(num_dream_queries=32, chat_template="plain_chat"),
        language_model=language_model,
        vision_model=vision_model,
        image_decoder=make_image_decoder(),
    )


def make_image_decoder() -> StableDiffusionDecoder:
    """A Stable Diffusion for pictures of 64 pixels, with latents of 8."""
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=192,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE_PX,
    )
    return StableDiffusionDecoder(unet, vae, DDPMScheduler(clip_sample=False))


def start_run(
    model: DreamLLM,
    tokenizer: Tokenizer,
    num_documents: int,
    overrides: Sequence[str] = (),
    *,
    device: str = "cpu",
) -> Run:
    """Stage II of the tiny family, with this model in place of its own."""
    transforms = {
        "vision": VisionTransform(image_px=model.vision_encoder.image_px).to_dict(),
        "target": TargetTransform(image_px=IMAGE_PX).to_dict(),
    }
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder) / "model", tokenizer=tokenizer, transforms=transforms)
        changes = [
            f"objective.model={Path(folder) / 'model'}",
            f"objective.documents_per_step={num_documents}",
            "objective.row_length=512",
            *overrides,
        ]
        config = load_config(RunConfig, find_recipe("tiny/stage2"), changes)
        objective = build_objective(config, Path.cwd())
    return Run.start(config, objective, torch.device(device))


def take_step(run: Run, micro_batches: Sequence[Batch], step: int = 0) -> None:
    """One optimizer step, as the loop takes it."""
    optimizer_step(
        run.objective,
        run.optimizer,
        micro_batches,
        step=step,
        seed=0,
        device=run.device,
        clip_norm=run.config.optim.clip_norm,
        precision=run.config.precision,
    )


def count_flops(move: Callable[[], None]) -> dict[str, int]:
    """FLOPs of a step, of all of it and by part.

    The counter of torch does not know its attention for CPUs (2.13); delete the mapping when it does.
    """
    mapping = {
        ATTENTION: lambda query, key, value, *_, out_shape=None, **__: sdpa_flop_count(query, key, value),
        ATTENTION_BACKWARD: lambda grad, query, key, value, *_, out_shape=None, **__: (
            sdpa_backward_flop_count(grad, query, key, value)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        move()
    by_module = counter.get_flop_counts()
    flops = {
        part: sum(sum(by_module.get(f"DreamLLM.{name}", {}).values()) for name in names)
        for part, names in PARTS.items()
    }
    total = counter.get_total_flops()
    return {"language model": total - sum(flops.values()), **flops, "all": total}


def language_pass(model: DreamLLM, batch: Batch) -> None:
    """The blocks of the language model and its loss, forward and backward."""
    with torch.no_grad():
        embeds = model.embed_ids(batch.input_ids)
    attention = attention_of(model.language_model, batch)
    states = model.language_states(embeds.requires_grad_(True), attention, batch.position_ids)
    chosen = states.flatten(0, 1).index_select(0, batch.label_positions)
    next_token_losses(chosen, model.logits, batch.labels).sum().backward()


def time_by_kind(work: Callable[[], None]) -> dict[str, float]:
    """Shares of the time of a piece of work, by kinds of operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(n in event.key for n in names)), REST)
        spent[kind] += event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: spent[kind] / whole for kind in (*KINDS, REST)}


def multiply_fastest() -> float:
    """FLOPs per CPU second of the fastest of some large products."""
    rates = []
    for size in PRODUCT_SIZES:
        left, right = torch.randn(size, size), torch.randn(size, size)
        rates.append(2 * size**3 / cpu_seconds(lambda left=left, right=right: left @ right))
    return max(rates)


if __name__ == "__main__":
    raise SystemExit(main())
