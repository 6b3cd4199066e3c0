"""A stock causal language model whose norms work on groups of channels: JAM-Width without a common norm.

Two parents side by side in one wide model (arXiv:2309.15564, section 3.1) share the scale of every norm. With
one group a parent, each half is divided by its own root mean square, as in the parents. Everything but the
norms is the stock model's, whose configuration is `text_config`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from dreamllm.errors import ConfigError


class JamWidthConfig(PreTrainedConfig):
    """The stock model, and how many groups its norms have."""

    model_type = "jam_width"
    sub_configs_defaults = {  # noqa: RUF012 (transformers reads it from the class)
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    text_config: Any = None
    """Stock configuration."""
    norm_groups: int = 2
    tie_word_embeddings: bool = False


class GroupedRMSNorm(nn.Module):
    """Root-mean-square norm of every group of channels by itself."""

    def __init__(self, size: int, *, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.num_groups = num_groups
        self.eps = eps

    def forward(self, states: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Computed in float32, like the stock norms."""
        groups = states.float().unflatten(-1, (self.num_groups, -1))
        scale = torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (groups * scale).flatten(-2).to(states.dtype)


class JamWidthForCausalLM(PreTrainedModel):
    """The stock model with grouped norms, and its head."""

    config: JamWidthConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    takes_segments = False
    """Its attention is fixed when its stock part is built."""
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: JamWidthConfig) -> None:
        super().__init__(config)
        stock = config.text_config
        if config.norm_groups < 1 or stock.hidden_size % config.norm_groups:
            raise ConfigError(
                f"{stock.hidden_size} channels do not make {config.norm_groups} equal groups; "
                "give as many norm_groups as the model has parents"
            )
        stock._attn_implementation = "sdpa"  # 'eager' would add a boolean mask as 0 and 1
        self.model = MODEL_MAPPING[type(stock)](stock)
        self.model.norm = self._norm()
        for layer in self.model.layers:
            layer.input_layernorm = self._norm()
            layer.post_attention_layernorm = self._norm()
        self.lm_head = nn.Linear(stock.hidden_size, stock.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        use_cache: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V)."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values
        )

    def _norm(self) -> GroupedRMSNorm:
        stock = self.config.text_config
        return GroupedRMSNorm(stock.hidden_size, num_groups=self.config.norm_groups, eps=stock.rms_norm_eps)


AutoConfig.register(JamWidthConfig.model_type, JamWidthConfig, exist_ok=True)
AutoModelForCausalLM.register(JamWidthConfig, JamWidthForCausalLM, exist_ok=True)
