"""Two tiny random parents over one vocabulary of words and codes, and rows of ids that mix both."""

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dreamllm.sequence.code_tokens import CodeTokens

TOKENS = CodeTokens(break_=5, mask=6, infill=7, first_code=24, num_codes=14, codes_per_picture=4)
SPECIALS = [5, 6, 7]
VOCAB = 40  # two rows after the codes only pad
WORDS = [token for token in range(24) if token not in SPECIALS]
OTHERS = [*SPECIALS, *range(24, VOCAB)]
D = 32
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.15,  # large, so that a wrong mask shows
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def parent(seed: int, family: str = "llama", **change: object) -> PreTrainedModel:
    """A parent with norms and biases that are not those of a new model."""
    config_class, model_class = _CLASSES[family]
    extra = {"sliding_window": None} if family == "mistral" else {}
    torch.manual_seed(seed)
    model = model_class(config_class(**{**SIZES, **extra, **change}))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1 and "q_norm" not in name and "k_norm" not in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return model.eval()


def parents(family: str = "llama", **change: object) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The text parent and the image parent."""
    return parent(1, family, **change), parent(2, family, **change)


def mixed_ids() -> Tensor:
    """Two documents of 16 positions: words, a picture, words; and one that ends with a picture."""
    first = [1, 9, 11, 5, 30, 24, 37, 26, 5, 13, 20, 8, 5, 25, 25, 31]
    second = [1, 5, 36, 35, 34, 33, 5, 22, 10, 12, 3, 9, 14, 18, 21, 2]
    return torch.tensor([first, second])


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor, **options: object) -> Tensor:
    """Logits at every position."""
    return model(input_ids=ids, use_cache=False, **options).logits


def num_parameters(model: PreTrainedModel) -> int:
    """Tensors that are tied count once."""
    return sum(tensor.numel() for tensor in model.parameters())
