"""JAM-Width (arXiv:2309.15564, section 3.1): both parents side by side in one model of twice the width.

Every matrix becomes `scale * [[A, X], [Y, B]]` with A from the text parent and B from the image parent; what
X and Y are, the off-diagonal blocks, is an option. Heads and key-value heads are doubled, not widened, so
that the softmax keeps its scale; norms, biases and input tables are laid side by side.

What a common norm does: with root mean squares r_t and r_i of both halves, the joint one is sqrt((r_t^2 +
r_i^2) / 2), so the text half is r_t / sqrt((r_t^2 + r_i^2) / 2) times what its parent had, which depends on
the position and cannot be folded into a weight. It is 1 where r_t = r_i. A grouped norm has no such factor,
and then `zero` computes exactly what both parents compute.
"""

import copy
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dreamllm.fusion.config import WidthOptions
from dreamllm.fusion.uniform import special_ids
from dreamllm.models.jam_cross import head_dim_of
from dreamllm.models.jam_width import JamWidthConfig
from dreamllm.sequence.code_tokens import CodeTokens

_TABLES: Final = ("embed_tokens", "lm_head")


@torch.no_grad()
def fuse_width(
    options: WidthOptions,
    text_model: PreTrainedModel,
    image_model: PreTrainedModel,
    *,
    tokens: CodeTokens,
) -> PreTrainedModel:
    """The wide model; noise is drawn from torch's global generator. QK-norms must be equal in both
    parents."""
    is_tied = (
        text_model.config.tie_word_embeddings
        and image_model.config.tie_word_embeddings
        and options.logits != "by_modality"
    )
    config = wide_config(text_model.config, is_tied=is_tied)
    if options.norm == "grouped":
        config = JamWidthConfig(text_config=config, tie_word_embeddings=is_tied)
    fused = AutoModelForCausalLM.from_config(config, dtype=text_model.dtype).to(text_model.device)
    text_tensors, image_tensors = text_model.state_dict(), image_model.state_dict()
    for name, tensor in fused.state_dict().items():
        text, image = text_tensors[name], image_tensors[name].to(text_tensors[name])
        tensor.copy_(_fused_tensor(name, text, image, options, tokens))
    if options.logits == "half":  # nothing but the head reads the last norm, tied or not
        fused.get_decoder().norm.weight.mul_(0.5)
    return fused.eval()


def wide_config(parent: PreTrainedConfig, *, is_tied: bool) -> PreTrainedConfig:
    """The configuration of a stock model of twice the width, with twice the heads of the same size."""
    config = copy.deepcopy(parent)
    config.head_dim = head_dim_of(parent)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, name, 2 * getattr(parent, name))
    config.tie_word_embeddings = is_tied
    return config


def block_matrix(
    text: Float[Tensor, "M N"], image: Float[Tensor, "M N"], options: WidthOptions
) -> Float[Tensor, "M2 N2"]:
    """`scale * [[A, X], [Y, B]]` in float32, with X and Y by the options."""
    a, b = text.float(), image.float()
    match options.off_diagonal:
        case "copy_row":
            x, y = a, b
        case "copy_col":
            x, y = b, a
        case "avg":
            x = y = (a + b) / 2
        case "zero":
            x = y = torch.zeros_like(a)
        case "noise":
            x, y = torch.randn_like(a) * options.noise_std, torch.randn_like(b) * options.noise_std
    x, y = x * options.off_diagonal_scale, y * options.off_diagonal_scale
    return options.scale * torch.cat([torch.cat([a, x], dim=1), torch.cat([y, b], dim=1)])


def _fused_tensor(
    name: str, text: Tensor, image: Tensor, options: WidthOptions, tokens: CodeTokens
) -> Tensor:
    kind = name.split(".")[-2]
    if kind in ("q_norm", "k_norm"):
        return text  # one vector for all heads, equal in both parents
    if kind == "lm_head" and options.logits == "by_modality":
        text, image = text.clone(), image.clone()
        others = [*special_ids(tokens), *range(tokens.first_code, text.shape[0])]
        image_rows = torch.zeros(text.shape[0], 1, dtype=torch.bool, device=text.device)
        image_rows[others] = True
        return torch.cat([text.masked_fill(image_rows, 0), image.masked_fill(~image_rows, 0)], dim=1)
    if kind in _TABLES:
        return torch.cat([text, image], dim=1)
    if text.dim() == 1:  # norms and biases
        return torch.cat([text, image])
    return block_matrix(text, image, options)
