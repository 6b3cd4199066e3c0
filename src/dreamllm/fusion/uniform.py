"""JAM-Uniform (arXiv:2309.15564, section 3.1): every tensor is a mean of both parents' tensors.

The result is a model of the parents' own class, and a start for training: parents that were trained apart do
not compute the same with the same channel, so their mean computes nothing yet. Rows of words and codes need
not be averaged, as each has a parent that knows it.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from dreamllm.fusion.config import UniformOptions
from dreamllm.sequence.code_tokens import CodeTokens


@torch.no_grad()
def fuse_uniform(
    options: UniformOptions,
    text_model: PreTrainedModel,
    image_model: PreTrainedModel,
    *,
    tokens: CodeTokens,
) -> PreTrainedModel:
    """The mean of two models of one class and shape; tied only if both are."""
    config = copy.deepcopy(text_model.config)
    config.tie_word_embeddings = text_model.config.tie_word_embeddings and (
        image_model.config.tie_word_embeddings
    )
    fused = AutoModelForCausalLM.from_config(config, dtype=text_model.dtype).to(text_model.device)
    text_tensors, image_tensors = text_model.state_dict(), image_model.state_dict()
    for name, tensor in fused.state_dict().items():
        text, image = text_tensors[name], image_tensors[name].to(text_tensors[name])
        if options.embedding_rows == "by_modality" and name.split(".")[-2] in ("embed_tokens", "lm_head"):
            tensor.copy_(rows_by_modality(text, image, tokens))
        else:
            tensor.copy_(torch.lerp(image.float(), text.float(), options.alpha))
    return fused.eval()


def rows_by_modality(
    text: Float[Tensor, "V D"], image: Float[Tensor, "V D"], tokens: CodeTokens
) -> Float[Tensor, "V D"]:
    """Rows of words from the first table; of codes, special tokens and padding after them from the second."""
    rows = image.clone()
    words = torch.ones(tokens.first_code, dtype=torch.bool, device=text.device)
    words[list(special_ids(tokens))] = False
    rows[: tokens.first_code][words] = text[: tokens.first_code][words]
    return rows


def special_ids(tokens: CodeTokens) -> tuple[int, int, int]:
    """`<break> <mask> <infill>`: tokens of the vocabulary of words that only the image parent knows."""
    return tokens.break_, tokens.mask, tokens.infill
