"""A DreamLLM small enough for one thread whose parts cost, beside each other, what the published ones do.

What a picture costs is told beside the positions of its slot in the language model, and head and attention
beside a position. Both models are counted by the same rules, the published one on tensors without memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from stage2_documents import (
    CONTEXT,
    NUM_DREAM_QUERIES,
    NUM_VISUAL_TOKENS,
    PUBLISHED_CONTEXT,
    PUBLISHED_SLOT,
    SLOT,
    Outline,
)
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dreamllm.config import load_config
from dreamllm.data.mixture import deal
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.freezing import apply_trainable
from dreamllm.models.trainable import Trainable
from dreamllm.recipes import find_recipe
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.flops import DreamLLMFlops
from dreamllm.train.plan.plan import stage_of
from dreamllm.train.plan.shapes import build_model, find_shapes
from dreamllm.train.run_config import RunConfig

PATCH_PX = 8
TARGET_PX = 64


def make_stage2_model(tokenizer: Tokenizer, *, width: int, layers: int, vocabulary: int | None) -> DreamLLM:
    """Stock parts with random weights; more words than the tokenizer's make the head as costly as theirs."""
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary or tokenizer.vocab_size,
            hidden_size=width,
            intermediate_size=width * 43 // 16,  # 11008 for 4096
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
    )
    vision_model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=PATCH_PX * int(NUM_VISUAL_TOKENS**0.5),
            patch_size=PATCH_PX,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=TARGET_PX // 8,
        layers_per_block=1,
        block_out_channels=(96, 160),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=TARGET_PX,
    )
    return DreamLLM(
        DreamLLMConfig(num_dream_queries=NUM_DREAM_QUERIES, chat_template="plain_chat"),
        language_model=language_model,
        vision_model=vision_model,
        image_decoder=StableDiffusionDecoder(unet, vae, DDPMScheduler(clip_sample=False)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Shares:
    """What a part costs, forward and backward, of the FLOPs of the language model's blocks."""

    head: float
    """Of those of a position."""
    attention: float
    """The same, in the middle of a document as long as the context."""
    vision_encoder: float
    """Of those of a slot, as are those below."""
    vae: float
    unet: float


def shares_of(model: DreamLLM, *, slot: int, context: int) -> Shares:
    """Those of a model that trains as stage II does; on tensors without memory, if its own are."""
    apply_trainable(model, Trainable(language_model=True))
    flops = DreamLLMFlops.of(model)
    assert flops is not None  # of a Llama they are known
    words, blocks = flops.language_model, flops.language_model.position
    return Shares(
        head=words.label / blocks,
        attention=words.pair * words.num_layers * context / 2 / blocks,
        vision_encoder=flops.image_read / blocks / slot,
        vae=flops.image_encoded / blocks / slot,
        unet=flops.image_drawn / blocks / slot,
    )


def published_shares() -> Shares:
    """Those of Vicuna-7B, CLIP ViT-L/14 and Stable Diffusion 2.1."""
    recipe = find_recipe("dreamllm-7b/stage2-released")
    stage = stage_of(load_config(RunConfig, recipe))
    model = build_model(find_shapes(stage, recipe=recipe, out_dir=Path("runs/none")))
    return shares_of(model, slot=PUBLISHED_SLOT, context=PUBLISHED_CONTEXT)


def flop_ratios(
    shares: Shares,
    documents: Sequence[Outline],
    *,
    documents_per_step: int,
    num_ranks: int = 1,
    in_turn: bool = False,
) -> tuple[float, float, float]:
    """FLOPs of the published step over those of this code, and of this code with cached pictures; and the
    share of padding in the published one.

    Packed rows are counted without padding, and blank pictures not at all. Of ranks that step together, each
    with so many documents, the slowest counts; this code deals them as its `Mixture` deals shards, or
    `in_turn`.
    """
    size = documents_per_step * num_ranks
    steps = [documents[start : start + size] for start in range(0, len(documents) - size + 1, size)]

    def counts(name: str, *, dealt: bool) -> np.ndarray:
        """By step, rank and document."""
        is_dealt = dealt and not in_turn
        hands = [_dealt(step, num_ranks) if is_dealt else np.arange(size) for step in steps]
        numbers = [[getattr(each, name) for each in step] for step in steps]
        placed = np.take_along_axis(np.asarray(numbers), np.asarray(hands), axis=1)
        return placed.reshape(-1, num_ranks, documents_per_step)

    def blocks(positions: np.ndarray) -> np.ndarray:
        return positions * (1 + shares.attention * positions / CONTEXT)

    def pictures(*, dealt: bool) -> tuple[np.ndarray, np.ndarray]:
        """What it costs to encode them, and to learn to draw them."""
        read, drawn = (counts(name, dealt=dealt) for name in ("num_read", "num_drawn"))
        return SLOT * (shares.vision_encoder * read + shares.vae * drawn), SLOT * shares.unet * drawn

    def slowest(flops: np.ndarray) -> float:
        return float(flops.sum(axis=2).max(axis=1).sum())

    lengths = counts("positions", dealt=False)
    padded = np.broadcast_to(lengths.max(axis=2, keepdims=True), lengths.shape)
    published = slowest(blocks(padded) + shares.head * padded + sum(pictures(dealt=False)))
    encoding, drawing = pictures(dealt=True)
    cached = blocks(counts("positions", dealt=True)) + shares.head * counts("labels", dealt=True) + drawing
    padding = float(1 - lengths.sum() / padded.sum())
    return published / slowest(cached + encoding), published / slowest(cached), padding


def _dealt(step: Sequence[Outline], num_ranks: int) -> np.ndarray:
    """The documents of a step, rank after rank."""
    kinds = sorted({each.kind == "page" for each in step})
    keys = [(kinds.index(each.kind == "page"), -each.size, place) for place, each in enumerate(step)]
    return np.concatenate([np.asarray(hand) for hand in deal(keys, num_ranks)])
