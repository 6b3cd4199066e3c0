"""A tiny random DreamLLM whose vocabulary is the bytes, so that a text has one spelling in ids.

Its head has a bias, which decides what the model likes to say; its other weights decide when.
"""

import string
from collections.abc import Callable

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

D = 32
CONTEXT = 100
IMAGE_PX = 16

Likes = dict[int, float]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([], vocab_size=266)


@pytest.fixture(scope="session")
def letters(tokenizer: Tokenizer) -> Likes:
    return {tokenizer.encode(letter)[0]: 12.0 for letter in string.ascii_lowercase}


@pytest.fixture(scope="session")
def chatty(tokenizer: Tokenizer, letters: Likes) -> Likes:
    """Says letters, draws now and then, and comes to an end."""
    return {**letters, tokenizer.special.dream_start: 13.0, tokenizer.eos_id: 11.0}


@pytest.fixture(scope="session")
def make_generator(tokenizer: Tokenizer) -> Callable[..., InterleavedGenerator]:
    def make(likes: Likes, *, context: int = CONTEXT) -> InterleavedGenerator:
        model = tiny_model(tokenizer, context)
        model.language_model.lm_head.bias.data.zero_()
        for token, bias in likes.items():
            model.language_model.lm_head.bias.data[token] = bias
        encoder = SequenceEncoder(
            tokenizer,
            model.slot_sizes,
            PLAIN_CHAT,
            VisionTransform(IMAGE_PX),
            TargetTransform(IMAGE_PX),
            EncodeOptions(max_length=context),
        )
        return InterleavedGenerator(model, encoder)

    return make


def tiny_model(tokenizer: Tokenizer, context: int) -> DreamLLM:
    torch.manual_seed(0)
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.vocab_size + 6,  # rows that no token has, as in padded checkpoints
            hidden_size=D,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
        )
    )
    head = nn.Linear(D, tokenizer.vocab_size + 6)
    nn.init.normal_(head.weight, std=0.2)
    language_model.set_output_embeddings(head)
    vision_model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE_PX,
            patch_size=8,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=IMAGE_PX,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    model = DreamLLM(
        DreamLLMConfig(num_dream_queries=3),
        language_model=language_model,
        vision_model=vision_model,
        image_decoder=StableDiffusionDecoder(unet, vae, scheduler),
    )
    nn.init.normal_(model.dream_queries.queries, std=1.0)
    return model.eval()
