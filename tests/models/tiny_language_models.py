"""Tiny random causal language models of every family that is tested. Windows are 6 positions."""

from collections.abc import Callable

import torch
from tests.models.tiny import VOCAB
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

WINDOW = 6
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,  # large, so that a wrong mask shows
    "max_position_embeddings": 256,
}


def _make(model_class: type, config_class: type, **extra: object) -> Callable[..., PreTrainedModel]:
    def make(*, vocab_size: int = VOCAB, **change: object) -> PreTrainedModel:
        torch.manual_seed(1)
        return model_class(config_class(vocab_size=vocab_size, **{**SIZES, **extra, **change})).eval()

    return make


FAMILIES = {
    "llama": _make(LlamaForCausalLM, LlamaConfig, num_key_value_heads=4, tie_word_embeddings=False),
    "mistral": _make(MistralForCausalLM, MistralConfig, sliding_window=WINDOW),
    "qwen2": _make(
        Qwen2ForCausalLM,
        Qwen2Config,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    "qwen3": _make(Qwen3ForCausalLM, Qwen3Config, tie_word_embeddings=True),
    "gemma3": _make(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3_moe": _make(
        Qwen3MoeForCausalLM, Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}
