"""Any stock causal language model, as DreamLLM uses it: embeddings, a mask and positions in, states out.

Nothing in the model is subclassed or patched. What differs between families is which mask each of its layers
wants: transformers takes a four-dimensional mask as it is, so a sliding window has to be part of it.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from dreamllm.errors import ConfigError
from dreamllm.sequence.batch import Segments

_LOGIT_CHANGES = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
}
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_language_model(language_model: PreTrainedModel) -> None:
    """Raise ConfigError for a language model whose layers or logits are not what DreamLLM computes with."""
    name, config = type(language_model).__name__, language_model.config.get_text_config()
    for key, plain in _LOGIT_CHANGES.items():
        if getattr(config, key, None) not in plain:
            raise ConfigError(
                f"{name} has {key}={getattr(config, key)}, which changes logits after the head, where the "
                "loss would not see it; choose a language model whose logits are head(states)"
            )
    unknown = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if unknown:
        raise ConfigError(
            f"{name} has layers of type {', '.join(sorted(unknown))}, whose memory is no attention over "
            f"positions; expected {' and '.join(sorted(_LAYER_TYPES))}; choose another language model"
        )


def num_cache_layers(language_model: PreTrainedModel) -> int:
    """Layers that a cache for this model needs: one for each that keeps keys and values.

    A stock model has one a layer; one with several towers says `num_cache_layers` in its configuration.
    """
    config = language_model.config.get_text_config()
    return int(getattr(config, "num_cache_layers", config.num_hidden_layers))


def context_length(language_model: PreTrainedModel) -> int | None:
    """Positions of the longest document that a language model is made for; None where it does not say."""
    length: int | None = getattr(language_model.config.get_text_config(), "max_position_embeddings", None)
    return length


def sliding_window(language_model: PreTrainedModel) -> int | None:
    """How far back the layers see that do not see everything; None where all do."""
    config = language_model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    return window if layer_types is None or "sliding_attention" in layer_types else None


def run_decoder(
    language_model: PreTrainedModel,
    embeds: Float[Tensor, "B T D"],
    attention: Bool[Tensor, "B 1 T S"] | Segments,
    position_ids: Int[Tensor, "B T"],
    cache: Any = None,
) -> Float[Tensor, "B T D"]:
    """States after the final norm, without the head. S counts the positions in the cache and the new ones.

    Without a cache the keys stand where the queries do; in a cache, key s stands at position s of its row.
    Segments say the same as the mask of a batch, to a model that takes them (`packed_attention.py`).
    """
    if isinstance(attention, Segments):
        return language_model.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=embeds.new_ones(1, 1, 1, 1),  # 4-D, so that the stock model makes none of its own
            position_ids=position_ids,
            use_cache=False,
            segments=attention,
        ).last_hidden_state
    return language_model.get_decoder()(
        inputs_embeds=embeds,
        attention_mask=_masks_by_layer(language_model, attention, position_ids, cached=cache is not None),
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


def _masks_by_layer(
    language_model: PreTrainedModel, mask: Tensor, position_ids: Tensor, *, cached: bool
) -> Tensor | dict[str, Tensor]:
    """The mask as the stock model takes it: one for all layers, or one for each type of layer."""
    layer_types = getattr(language_model.config.get_text_config(), "layer_types", None)
    window = sliding_window(language_model)
    if window is None:
        return mask
    num_keys = mask.shape[-1]
    near = mask
    if num_keys > window:
        keys = torch.arange(num_keys, device=mask.device).expand(len(mask), -1) if cached else position_ids
        near = mask & (position_ids[:, None, :, None] - keys[:, None, None, :] < window)
    return near if layer_types is None else {"full_attention": mask, "sliding_attention": near}


@torch.no_grad()
def probe(language_model: PreTrainedModel, *, num_positions: int = 8, atol: float = 1e-3) -> None:
    """Compare a short run through `run_decoder` and the head with the stock model's own logits.

    Raises:
        ConfigError: they differ: this family does something between embeddings and logits that is not known
            here.
    """
    device = language_model.device
    ids = (
        torch.arange(num_positions, device=device)[None] % language_model.config.get_text_config().vocab_size
    )
    embeds = language_model.get_input_embeddings()(ids)
    causal = torch.ones(num_positions, num_positions, dtype=torch.bool, device=device).tril()
    ours = language_model.get_output_embeddings()(
        run_decoder(
            language_model, embeds, causal[None, None], torch.arange(num_positions, device=device)[None]
        )
    )
    stock = language_model(input_ids=ids, use_cache=False).logits
    difference = float((ours.float() - stock.float()).abs().max() / stock.float().abs().max().clamp(min=1))
    if not difference <= atol:
        raise ConfigError(
            f"{type(language_model).__name__} gives other logits when it is fed embeddings, positions and a "
            f"mask (largest relative difference {difference:.3g}, at most {atol} expected); "
            "choose a causal language model that accepts inputs_embeds"
        )
