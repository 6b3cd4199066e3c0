"""Attention inside the documents of packed rows, without a mask.

A mask of every pair of positions costs memory and time that grow with the square of a row, and keeps the
fused kernels from being used. Documents are causal stretches that stand one after the other, so it is enough
to know where each ends: on a GPU one variable-length flash kernel takes them all, elsewhere each stretch is
attended to on its own. Registered with transformers as the attention `dreamllm_packed`; with a mask instead
of segments it is the stock `sdpa`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dreamllm.models.language_model import sliding_window
from dreamllm.sequence.batch import Batch, Segments

NAME = "dreamllm_packed"
_FLASH_TYPES = (torch.bfloat16, torch.float16)


def use_packed_attention(language_model: PreTrainedModel) -> None:
    """Let the layers of a language model take segments; models of several towers keep to masks.

    Either way masks are boolean from now on: `eager` attention would add True and False as 1 and 0.
    """
    language_model.set_attn_implementation(NAME if _is_stock(language_model) else "sdpa")


def attention_of(language_model: PreTrainedModel, batch: Batch) -> Tensor | Segments:
    """What `run_decoder` is to be told of a batch: its segments where the model takes them, else a mask.

    Segments know no sliding window, so documents longer than one take the mask too.
    """
    segments = batch.segments
    if segments is None or language_model.config.get_text_config()._attn_implementation != NAME:
        return batch.attention_mask()
    window = sliding_window(language_model)
    return segments if window is None or segments.longest <= window else batch.attention_mask()


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "B N T Dh"],
    key: Float[Tensor, "B Nk S Dh"],
    value: Float[Tensor, "B Nk S Dh"],
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B T N Dh"], None]:
    """The attention of a layer, as transformers calls it."""
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    queries, keys, values = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    has_groups = query.shape[1] != key.shape[1]
    if query.is_cuda and query.dtype in _FLASH_TYPES and not dropout:
        bounds, longest = segments.bounds, segments.longest
        states = varlen_attn(
            queries,
            keys,
            values,
            bounds,
            bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(-1, 0),  # causal
            enable_gqa=has_groups,
        )
        assert isinstance(states, Tensor)  # a tuple only where more is asked for
    else:
        if has_groups:
            keys, values = (
                part.repeat_interleave(query.shape[1] // key.shape[1], 1) for part in (keys, values)
            )
        states = _one_by_one(queries, keys, values, segments, dropout=dropout, scaling=scaling)
    return states.unflatten(0, (query.shape[0], query.shape[2])), None


def _one_by_one(
    queries: Float[Tensor, "BT N Dh"],
    keys: Float[Tensor, "BT N Dh"],
    values: Float[Tensor, "BT N Dh"],
    segments: Segments,
    *,
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "BT N Dh"]:
    """Causal attention of every stretch to itself."""
    lengths = segments.bounds.diff().tolist()
    heads_first = (part.transpose(0, 1)[None].split(lengths, dim=2) for part in (queries, keys, values))
    states = [
        F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        for q, k, v in zip(*heads_first, strict=True)
    ]
    return torch.cat(states, dim=2)[0].transpose(0, 1)


def _is_stock(language_model: PreTrainedModel) -> bool:
    return bool(getattr(language_model, "takes_segments", True))


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
