"""JAM-Cross and JAM-X (arXiv:2309.15564, section 3.1): both parents whole, cross-attention between them.

With what is chosen here by default (cross-attention that begins at zero, each tower with its own input table,
a head that is split) the new model begins with the parents' own logits: those of words are the text parent's,
those of codes and of `<break> <mask> <infill>` the image parent's. The paper shares one input table and
begins its projection as one for all (`embeddings=shared head=half`).
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dreamllm.fusion.config import CrossOptions
from dreamllm.fusion.uniform import rows_by_modality, special_ids
from dreamllm.models.jam_cross import JamCrossConfig, JamCrossForCausalLM, check_cross_config
from dreamllm.sequence.code_tokens import CodeTokens


def cross_config(
    options: CrossOptions,
    text_config: PreTrainedConfig,
    image_config: PreTrainedConfig,
    *,
    tokens: CodeTokens,
) -> JamCrossConfig:
    """The configuration of the fused model; its head is tied if both parents' are."""
    text, image = copy.deepcopy(text_config), copy.deepcopy(image_config)
    return JamCrossConfig(
        text_config=text,
        image_config=image,
        first_code=tokens.first_code,
        special_ids=list(special_ids(tokens)),
        cross_every=options.every,
        after_last=options.after_last,
        cross_content=options.content,
        cross_heads=options.heads,
        cross_ffn_size=options.ffn_size,
        gating=options.gating,
        cross_init_std=options.init_std,
        embeddings=options.embeddings,
        head=options.head,
        text_skips_images=options.text_skips_images,
        tie_word_embeddings=bool(text.tie_word_embeddings and image.tie_word_embeddings),
    )


@torch.no_grad()
def fuse_cross(
    options: CrossOptions,
    text_model: PreTrainedModel,
    image_model: PreTrainedModel,
    *,
    tokens: CodeTokens,
) -> JamCrossForCausalLM:
    """The two-tower model; new weights are drawn from torch's global generator."""
    config = cross_config(options, text_model.config, image_model.config, tokens=tokens)
    check_cross_config(config)
    fused = AutoModelForCausalLM.from_config(config, dtype=text_model.dtype).to(text_model.device)
    for tower, parent in (
        (fused.model.text_tower, text_model),
        (fused.model.image_tower, image_model),
    ):
        tensors = parent.get_decoder().state_dict()
        tensors.pop("embed_tokens.weight")
        tower.load_state_dict(tensors)
    _fill_tables(fused, options, text_model, image_model, tokens)
    return fused.eval()


def regression(
    inputs: Float[Tensor, "n D"], targets: Float[Tensor, "n D2"], *, ridge: float
) -> Float[Tensor, "D2 D"]:
    """The matrix R with the smallest |inputs R^T - targets|^2 + c |R|^2, in float64; `ridge` is c relative to
    the mean of the inputs' squared norms by channel."""
    x, y = inputs.double(), targets.double()
    gram = x.T @ x
    penalty = ridge * gram.trace() / gram.shape[0]
    return torch.linalg.solve(
        gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), x.T @ y
    ).T


def _fill_tables(
    fused: JamCrossForCausalLM,
    options: CrossOptions,
    text_model: PreTrainedModel,
    image_model: PreTrainedModel,
    tokens: CodeTokens,
) -> None:
    """Rows of the input table and of an untied head, from the parents."""
    table, first_code, specials = fused.model.embed_tokens, tokens.first_code, list(special_ids(tokens))
    text, image = (model.get_input_embeddings().weight for model in (text_model, image_model))
    image = image.to(text)
    if options.embeddings == "per_tower":
        table.text.weight.copy_(text)
        table.image.weight.copy_(image)
    else:
        rows = rows_by_modality(text, image, tokens) if options.special_rows == "image" else text
        table.text.weight.copy_(rows[:first_code])
        table.image.weight.copy_(image[first_code:])
    if table.text_map is not None:
        words = [token for token in range(first_code) if token not in specials]
        table.text_map.weight.copy_(regression(text[words], image[words], ridge=options.ridge))
    if fused.head.text_rows is not None and fused.head.image_rows is not None:
        text, image = (model.get_output_embeddings().weight for model in (text_model, image_model))
        fused.head.text_rows.weight.copy_(text[:first_code])
        fused.head.image_rows.weight.copy_(torch.cat([image[specials], image[first_code:]]))
