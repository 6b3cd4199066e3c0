"""Memory of the ways to train and to generate: whole, by adapters, with fewer bits.

    python benchmarks/memory_modes.py
    python benchmarks/memory_modes.py --modes "train nf4 lora" "generate int8"
    python benchmarks/memory_modes.py --device cuda

A random model of a middle size is made on the spot: a Llama of 320 million weights and a U-Net like that of
Stable Diffusion, of 100 million. Every mode has a process of its own, which takes two optimizer steps, or
writes and draws. Shown are the bytes of the weights and the most that was held while it ran, without Python
and the libraries: resident memory, or what torch had allocated on a GPU. The peak of loading is left out.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from rounds import parse_arguments, print_table, report, use_one_thread
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dreamllm.checkpoint.encoder import encoder_of
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Document, Text
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.memory import fit
from dreamllm.generate.options import GenerationOptions
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.freezing import apply_trainable
from dreamllm.models.quantization import Quantization, quantize_linears
from dreamllm.models.trainable import LoraConfig, Trainable
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.packing import collate
from dreamllm.sequence.tokenizer import train_tokenizer
from dreamllm.world.documents import make_document

ADAPTERS: Final = Trainable(language_model_lora=LoraConfig(), special_token_rows=True)
TRAINING: Final[dict[str, tuple[Trainable, Quantization | None]]] = {
    "full": (Trainable(language_model=True), None),
    "lora": (ADAPTERS, None),
    "int8 lora": (ADAPTERS, "int8"),
    "nf4 lora": (ADAPTERS, "nf4"),
    "rows": (Trainable(special_token_rows=True), None),
}
"""What trains beside the connectors, and how the rest of the language model is held."""
CHECKPOINTED: Final = ", checkpointed"
GENERATION: Final[dict[str, tuple[torch.dtype, Quantization | None]]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.float32, "int8"),
    "float8": (torch.float32, "float8"),
    "nf4": (torch.float32, "nf4"),
}
"""The type of what is not quantised, and how the rest is held."""
MODES: Final = (
    *(f"train {name}{more}" for name in TRAINING for more in ("", CHECKPOINTED)),
    *(f"generate {name}" for name in GENERATION),
)
MIB: Final = 2**20


def main() -> None:
    """Measure every mode in a fresh process and print the tables; or measure one, as such a process."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=1)
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, torch.device(arguments.device))))
        return
    measured = {mode: _median(mode, arguments) for mode in arguments.modes}
    for title, kind in (("Training, two steps", "train "), ("Generation, a document", "generate ")):
        rows = {mode.removeprefix(kind): values for mode, values in measured.items() if mode.startswith(kind)}
        if rows:
            print_table(title, ["weights, MiB", "peak, MiB", "of the first"], _cells(rows))
    report("memory_modes", arguments, {"modes": measured})


def measure(mode: str, device: torch.device) -> dict[str, float]:
    """Bytes of the weights, and the peak above what the libraries take."""
    use_one_thread()
    before = _resident() if device.type == "cpu" else 0
    work, model = prepare(mode, device)
    gc.collect()
    _forget_peak(device)
    work()
    return {"weights": weight_bytes(model), "peak": _peak(device) - before}


def prepare(mode: str, device: torch.device) -> tuple[Callable[[], object], DreamLLM]:
    """The work of a mode, and the model it is done with."""
    kind, _, name = mode.partition(" ")
    model, encoder = make_model()
    if kind == "train":
        trainable, quantize = TRAINING[name.removesuffix(CHECKPOINTED)]
        if quantize is not None:
            quantize_linears(model.language_model.get_decoder(), quantize)
        if name.endswith(CHECKPOINTED):
            model.enable_gradient_checkpointing()
        special = encoder.tokenizer.special
        brackets = (special.im_start, special.im_end, special.dream_start, special.dream_end)
        apply_trainable(model, trainable, special_token_ids=brackets)
        model.to(device).train()
        return lambda: train(model, encoder), model
    dtype, quantize = GENERATION[name]
    model = fit(model.to(dtype).eval(), device, quantize=quantize)
    return lambda: generate(model, encoder), model


def train(model: DreamLLM, encoder: SequenceEncoder) -> None:
    """Two steps of AdamW on a story of three pictures."""
    story = make_document("story", np.random.default_rng(0), split="train", num_objects=(1,))
    batch = collate([encoder.encode(story)], encoder.tokenizer.pad_id).to(model.device)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    for step in range(2):
        terms = model(batch, torch.Generator(model.device).manual_seed(step))
        (terms["next_token"].sum + terms["denoising"].sum).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def generate(model: DreamLLM, encoder: SequenceEncoder) -> None:
    """A dozen words, and a picture of four steps under guidance."""
    prompt = Document(parts=(Text(text="A red circle stands on a green field. " * 4),))
    generator = InterleavedGenerator(model, encoder)
    generator.generate([prompt], GenerationOptions(mode="text", max_new_tokens=12))
    generator.generate([prompt], GenerationOptions(mode="image", num_inference_steps=4))


def make_model() -> tuple[DreamLLM, SequenceEncoder]:
    """A model with random weights in float32, and an encoder for its bytes."""
    torch.manual_seed(0)
    words = train_tokenizer([], vocab_size=266)
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32000,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=20,
            num_attention_heads=16,
            max_position_embeddings=2048,
            bos_token_id=words.bos_id,
            eos_token_id=words.eos_id,
            pad_token_id=words.pad_id,
        )
    )
    vision_model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=64,
            patch_size=16,
        )
    )
    config = DreamLLMConfig(num_dream_queries=16, chat_template="plain_chat")
    model = DreamLLM(
        config, language_model=language_model, vision_model=vision_model, image_decoder=_make_decoder()
    )
    transforms = {
        "vision": VisionTransform(image_px=64).to_dict(),
        "target": TargetTransform(image_px=128).to_dict(),
    }
    return model, encoder_of(model, words, transforms)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, packed ones with their scales."""
    return sum(_tensor_bytes(each) for each in model.parameters())


def _tensor_bytes(tensor: Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(each.nbytes for name in names if (each := getattr(tensor, name)) is not None)
    if (state := getattr(tensor, "quant_state", None)) is not None:
        parts = [value for value in state.as_dict(packed=True).values() if isinstance(value, Tensor)]
        return tensor.nbytes + sum(part.nbytes for part in parts)
    return tensor.nbytes


def _make_decoder() -> StableDiffusionDecoder:
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(160, 320, 576),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=128,
    )
    return StableDiffusionDecoder(unet, vae, DDPMScheduler(clip_sample=False))


def _resident(peak: str = "VmRSS") -> int:
    """Bytes of this process in memory; `VmHWM` for the most there have been."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{peak}:"))


def _forget_peak(device: torch.device) -> None:
    if device.type == "cpu":
        with open("/proc/self/clear_refs", "w", encoding="ascii") as refs:
            refs.write("5")  # the peak counts from here, see proc(5)
    else:
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return _resident("VmHWM") if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


def _median(mode: str, arguments: argparse.Namespace) -> dict[str, float]:
    """What processes of their own say of a mode."""
    command = [sys.executable, __file__, "--measure", mode, "--device", arguments.device]
    # Large tensors go back to the system as soon as they are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    said = []
    for _ in range(arguments.rounds):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            sys.exit(f"{mode} failed:\n{done.stderr}")
        said.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: median(each[name] for each in said) for name in said[0]}


def _cells(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Sequence[str]]:
    first = next(iter(rows.values()))
    return {
        name: [
            f"{values['weights'] / MIB:,.0f}",
            f"{values['peak'] / MIB:,.0f}",
            f"{values['peak'] / first['peak']:.2f}",
        ]
        for name, values in rows.items()
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE", help=", ".join(MODES)
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--measure", choices=MODES, metavar="MODE", help="measure one mode in this process")


if __name__ == "__main__":
    main()
