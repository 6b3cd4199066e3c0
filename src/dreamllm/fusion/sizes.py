"""How many parameters a parent and each fusion have, as closed formulas; tensors that are tied count once."""

from typing import Any

from transformers import PreTrainedConfig

from dreamllm.fusion.config import FusionConfig
from dreamllm.fusion.cross import cross_config
from dreamllm.fusion.width import wide_config
from dreamllm.models.jam_cross import JamCrossConfig, head_dim_of
from dreamllm.sequence.code_tokens import CodeTokens


def num_fused(
    config: FusionConfig,
    text_config: PreTrainedConfig,
    image_config: PreTrainedConfig,
    *,
    tokens: CodeTokens,
) -> int:
    """Parameters of the model that `fuse` makes of parents with these configurations."""
    is_tied = bool(text_config.tie_word_embeddings and image_config.tie_word_embeddings)
    match config.method:
        case "uniform":
            return num_stock(text_config, is_tied=is_tied)
        case "width":
            is_tied = is_tied and config.width.logits != "by_modality"
            return num_stock(wide_config(text_config, is_tied=is_tied), is_tied=is_tied)
        case "cross":
            return num_cross(cross_config(config.cross, text_config, image_config, tokens=tokens))


def num_stock(config: PreTrainedConfig, *, is_tied: bool) -> int:
    """Parameters of a Llama-like model: layers, last norm, and one table, or two that are not tied."""
    return _num_tower(config) + (1 if is_tied else 2) * config.vocab_size * config.hidden_size


def num_cross(config: JamCrossConfig) -> int:
    """Parameters of a two-tower model: towers, what joins them, input tables, projections, rows of the
    head."""
    text, image = config.text_config, config.image_config
    words, codes = config.first_code, config.vocab_size - config.first_code
    if config.embeddings == "per_tower":
        tables = config.vocab_size * (text.hidden_size + image.hidden_size)
    else:
        tables = words * text.hidden_size + codes * image.hidden_size
    if config.embeddings == "mapped":
        tables += text.hidden_size * image.hidden_size
    both = text.hidden_size + image.hidden_size
    head = both * (both if config.head == "split" else text.hidden_size)
    if not config.tie_word_embeddings:
        head += words * text.hidden_size + (len(config.special_ids) + codes) * image.hidden_size
    meeting = _num_block(config, text, image) + _num_block(config, image, text)
    return _num_tower(text) + _num_tower(image) + len(config.cross_layers) * meeting + tables + head


def _num_tower(config: Any) -> int:
    """Layers and the last norm."""
    size, inner, head = config.hidden_size, config.intermediate_size, head_dim_of(config)
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    layer = 2 * size * queries + 2 * size * keys + 3 * size * inner + 2 * size
    if config.model_type == "qwen2":
        layer += queries + 2 * keys
    elif getattr(config, "attention_bias", False):
        layer += queries + 2 * keys + size
    if getattr(config, "mlp_bias", False):
        layer += 2 * inner + size
    if config.model_type == "qwen3":
        layer += 2 * head  # norms of queries and keys
    return config.num_hidden_layers * layer + size


def _num_block(config: JamCrossConfig, asks: Any, answers: Any) -> int:
    """One direction of a meeting."""
    text = config.text_config
    heads = (config.cross_heads or text.num_attention_heads) * head_dim_of(text)
    block = 2 * heads * (asks.hidden_size + answers.hidden_size) + asks.hidden_size + answers.hidden_size
    num_gates = 1
    if config.cross_content == "attention+ffn":
        block += 3 * asks.hidden_size * (config.cross_ffn_size or asks.intermediate_size) + asks.hidden_size
        num_gates = 2
    return block + (num_gates if config.gating == "tanh" else 0)
