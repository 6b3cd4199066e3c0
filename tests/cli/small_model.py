"""A model folder with random weights and a tokenizer of bytes: the real format, too small to say anything."""

from pathlib import Path

import torch
from tests.models.tiny import dreamllm
from transformers import LlamaConfig, LlamaForCausalLM

from dreamllm.checkpoint.pretrained import save_model
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.sequence.tokenizer import train_tokenizer

PICTURE_PX = 16


def save_small_model(path: Path) -> Path:
    """Write it; the prompts of the world, a token for each letter, fit into its context."""
    words = train_tokenizer([], vocab_size=266)
    torch.manual_seed(0)
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            bos_token_id=words.bos_id,
            eos_token_id=words.eos_id,
            pad_token_id=words.pad_id,
        )
    )
    return save_model(
        dreamllm(language_model, chat_template="plain_chat"),
        path,
        tokenizer=words,
        transforms={
            "vision": VisionTransform(image_px=PICTURE_PX).to_dict(),
            "target": TargetTransform(image_px=PICTURE_PX).to_dict(),
        },
    )
