"""A JAM with random weights over bytes and twelve picture codes: stock parts, too small to say anything."""

from pathlib import Path

import torch
from diffusers import VQModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dreamllm.checkpoint.jam import save_jam
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.data.transforms import TargetTransform
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.jam import JAM, JAMConfig
from dreamllm.sequence.code_tokens import add_code_tokens
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

PICTURE_PX = 16
NUM_CODES = 12
CODES_PER_PICTURE = 4
CONTEXT = 640
"""Room for the longest request of the world, a token for each letter, and pictures."""


def byte_tokenizer() -> Tokenizer:
    """A token for each byte, and those that join words and codes."""
    words = train_tokenizer([], vocab_size=266)
    add_code_tokens(words.hf)
    return Tokenizer(words.hf)


def vq_model() -> VQModel:
    """16 px to 2 x 2 codes."""
    torch.manual_seed(5)
    model = VQModel(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=NUM_CODES,
        norm_num_groups=4,
        sample_size=PICTURE_PX,
        mid_block_add_attention=False,
    )
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def llama(tokenizer: Tokenizer, *, seed: int = 6, **changes: object) -> PreTrainedModel:
    """Words and codes, and four rows between them that only pad."""
    torch.manual_seed(seed)
    values = {
        "vocab_size": tokenizer.vocab_size + 4 + NUM_CODES,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return LlamaForCausalLM(LlamaConfig(**{**values, **changes}))


def jam(
    tokenizer: Tokenizer, language_model: PreTrainedModel | None = None, *, has_pictures: bool = True
) -> JAM:
    config = JAMConfig(
        first_code=tokenizer.vocab_size + 4, num_codes=NUM_CODES, codes_per_picture=CODES_PER_PICTURE
    )
    return JAM(
        config,
        language_model=llama(tokenizer) if language_model is None else language_model,
        image_tokenizer=ImageTokenizer(vq_model()) if has_pictures else None,
    )


def save_tiny_jam(
    path: Path,
    language_model: PreTrainedModel | None = None,
    *,
    has_pictures: bool = True,
    sources: dict[str, PartSource] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    tokenizer = byte_tokenizer()
    return save_jam(
        jam(tokenizer, language_model, has_pictures=has_pictures),
        path,
        tokenizer=tokenizer,
        target_transform=TargetTransform(image_px=PICTURE_PX) if has_pictures else None,
        sources=sources,
        dtype=dtype,
    )
