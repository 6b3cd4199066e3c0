"""JAM-Cross (arXiv:2309.15564, section 3.1) and JAM-X: two towers that read each other.

    embeds (B, T, d_text + d_image + 1) -> text tower  --+-- states (B, T, d_text + d_image)
                                        -> image tower --+   cross-attention both ways, after some layers

The towers are the layers, norm and rotary positions of stock models; `cross_block.py` joins them, ids get in
and logits out by `two_tower_tables.py`. In JAM-X the text tower reads no picture codes (`text_reading.py`).
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from dreamllm.errors import ConfigError
from dreamllm.models.cross_block import CrossBlock, Gating, Rotation, StartedLinear
from dreamllm.models.text_reading import CacheOfRows, TextReading, read_all, read_text, read_text_rows
from dreamllm.models.two_tower_tables import TwoTowerEmbedding, TwoTowerHead

TOWER_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose layers are computed here as their own model computes them."""


class JamCrossConfig(PreTrainedConfig):
    """What two towers are, and how they are joined."""

    model_type = "jam_cross"
    sub_configs_defaults = {  # noqa: RUF012 (transformers reads it from the class)
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "image_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    text_config: Any = None
    """Stock configuration of the tower of words."""
    image_config: Any = None
    """Of the tower of pictures."""
    first_code: int = 0
    """Ids from here on are codes, and the image tower's; see `sequence/code_tokens.py`."""
    special_ids: list[int] | tuple[int, ...] = ()
    """Tokens below `first_code` that the image tower speaks: `<break> <mask> <infill>`."""
    cross_every: int = 2
    """Towers meet after layers e, 2e, ... before the last; 0: never."""
    after_last: bool = False
    """Whether they meet after the last layer too."""
    cross_content: Literal["attention", "attention+ffn"] = "attention+ffn"
    cross_heads: int | None = None
    """Heads of a cross block; None: as many as the text tower has. A head is as wide as the text tower's."""
    cross_ffn_size: int | None = None
    """Inner width of its feed-forward network; None: the text tower's."""
    gating: Gating = "zero"
    """`zero`: what writes to the states begins at 0; `tanh`: behind tanh gates at 0; `random`: neither."""
    cross_init_std: float | None = None
    """Spread of new weights; None: what the text tower began with (0.006 in the paper)."""
    embeddings: Literal["per_tower", "shared", "mapped"] = "per_tower"
    head: Literal["split", "half", "random"] = "split"
    text_skips_images: bool = False
    """JAM-X: the text tower does not read codes."""
    tie_word_embeddings: bool = False
    """Whether the head reads its rows from the input table."""

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Itself: what holds for the whole model is not what holds for its text tower."""
        return self

    @property
    def vocab_size(self) -> int:
        """Of both towers."""
        return self.text_config.vocab_size

    @property
    def num_hidden_layers(self) -> int:
        """Of each tower."""
        return self.text_config.num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Of both final states together."""
        return self.text_config.hidden_size + self.image_config.hidden_size

    @property
    def max_position_embeddings(self) -> int:
        """Of the tower that reads less far."""
        return min(self.text_config.max_position_embeddings, self.image_config.max_position_embeddings)

    @property
    def initializer_range(self) -> float:
        """Spread of new weights."""
        return self.text_config.initializer_range if self.cross_init_std is None else self.cross_init_std

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Numbers of layers, from 1 on, after which the towers meet."""
        last, every = self.num_hidden_layers, self.cross_every
        inner = tuple(range(every, last, every)) if every else ()
        return inner + ((last,) if self.after_last else ())

    @property
    def num_cache_layers(self) -> int:
        """Both towers, both directions of every meeting, and which positions hold words."""
        return 2 * (self.num_hidden_layers + len(self.cross_layers)) + int(self.text_skips_images)


def check_cross_config(config: JamCrossConfig) -> None:
    """Raise ConfigError for towers that cannot be joined, or not in this way."""
    text, image = config.text_config, config.image_config
    for name, tower in (("text", text), ("image", image)):
        if tower.model_type not in TOWER_TYPES:
            raise ConfigError(
                f"the {name} tower is of type {tower.model_type!r}, whose layers are not known here; "
                f"expected one of {', '.join(TOWER_TYPES)}; choose another parent"
            )
        window = getattr(tower, "sliding_window", None)
        if window is not None and window < tower.max_position_embeddings:
            raise ConfigError(
                f"the {name} tower looks back over a window of {window} positions, but towers are joined "
                "with full attention; choose a parent without sliding_window"
            )
    for what in ("num_hidden_layers", "vocab_size"):
        if getattr(text, what) != getattr(image, what):
            raise ConfigError(
                f"{what} is {getattr(text, what)} in the text tower and {getattr(image, what)} in the image "
                "tower; expected one number for both; choose parents that share it"
            )
    if text.hidden_size != image.hidden_size and (config.embeddings != "per_tower" or config.head != "split"):
        raise ConfigError(
            f"the towers are {text.hidden_size} and {image.hidden_size} wide, which {config.embeddings!r} "
            f"embeddings with a {config.head!r} head cannot join; take per_tower embeddings and a split head"
        )
    if not 0 < config.first_code < config.vocab_size or not all(
        0 <= token < config.first_code for token in config.special_ids
    ):
        raise ConfigError(
            f"first_code is {config.first_code} and special tokens are {list(config.special_ids)} in a "
            f"vocabulary of {config.vocab_size}; expected words, then codes, and special tokens among the "
            "words; take them from the tokenizer of the parents"
        )
    if config.cross_every < 0 or config.cross_heads == 0 or config.cross_ffn_size == 0:
        raise ConfigError(
            f"cross_every is {config.cross_every}, cross_heads {config.cross_heads} and cross_ffn_size "
            f"{config.cross_ffn_size}; expected 0 or more, and 1 or more heads and units; correct them"
        )


class JamCrossPreTrainedModel(PreTrainedModel):
    """What both classes below tell transformers."""

    config: JamCrossConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    takes_segments = False  # its towers see by masks of their own

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StartedLinear):
            module.reset(self.config.initializer_range)
        else:
            super()._init_weights(module)


class JamCrossModel(JamCrossPreTrainedModel):
    """Both towers and what joins them, without the head."""

    def __init__(self, config: JamCrossConfig) -> None:
        check_cross_config(config)
        super().__init__(config)
        self.embed_tokens = TwoTowerEmbedding(config)
        self.text_tower = _tower(config.text_config, first_cache_layer=0)
        self.image_tower = _tower(config.image_config, first_cache_layer=config.num_hidden_layers)
        num_meetings = len(config.cross_layers)
        self.text_reads_image = nn.ModuleList(_block(config, "text") for _ in range(num_meetings))
        self.image_reads_text = nn.ModuleList(_block(config, "image") for _ in range(num_meetings))
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T E"] | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Final states `[text tower's, image tower's]`, each after its tower's norm.

        `attention_mask` is bool (B, 1, T, S), True where a query may look, or (B, S) with 0 on padding.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("a pass needs input_ids or inputs_embeds, and not both; give one of them")
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = DynamicCache() if use_cache and past_key_values is None else past_key_values
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = past + torch.arange(embeds.shape[1], device=embeds.device)[None]
        position_ids = position_ids.expand(embeds.shape[0], -1)
        mask = _mask(attention_mask, embeds, past=past)
        states = self._run(embeds, position_ids, mask, cache)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=cache)

    def _run(
        self, embeds: Tensor, position_ids: Tensor, mask: Bool[Tensor, "B 1 T S"], cache: Cache | None
    ) -> Float[Tensor, "B T D"]:
        text_size = self.config.text_config.hidden_size
        text_embeds, image, flags = embeds.split([text_size, embeds.shape[-1] - text_size - 1, 1], dim=-1)
        reading = self._reading(text_embeds, position_ids, mask, flags, cache)
        text = reading.embeds
        both = _Pass(
            reading=reading,
            text_rotation=self.text_tower.rotary_emb(text, reading.position_ids),
            image_rotation=self.text_tower.rotary_emb(image, position_ids),
            cache=cache,
        )
        text_pass = {
            "attention_mask": reading.self_mask,
            "position_ids": reading.position_ids,
            "position_embeddings": both.text_rotation,
            "past_key_values": None if cache is None else CacheOfRows(cache, reading),
        }
        image_pass = {
            "attention_mask": mask,
            "position_ids": position_ids,
            "position_embeddings": self.image_tower.rotary_emb(image, position_ids),
            "past_key_values": cache,
        }
        meetings = {layer: index for index, layer in enumerate(self.config.cross_layers)}
        for number, (text_layer, image_layer) in enumerate(
            zip(self.text_tower.layers, self.image_tower.layers, strict=True), start=1
        ):
            if reading.is_empty:
                self._write_nothing(number - 1, image, cache)
            else:
                text = text_layer(text, **text_pass)
            image = image_layer(image, **image_pass)
            if number in meetings:
                text, image = self._meet(meetings[number], text, image, both)
        text, image = reading.to_pass(self.text_tower.norm(text)), self.image_tower.norm(image)
        return torch.cat([text, image], dim=-1)

    def _reading(
        self, text_embeds: Tensor, position_ids: Tensor, mask: Tensor, flags: Tensor, cache: Cache | None
    ) -> TextReading:
        """What the text tower reads of this pass."""
        if not self.config.text_skips_images:
            return read_all(text_embeds, position_ids, mask)
        is_text = flags[..., 0] > 0.5
        if cache is None:
            return read_text(text_embeds, position_ids, mask, is_text=is_text)
        entries = flags[:, None]  # (B, 1, T, 1), as the keys of one head of width 1
        keys, _ = cache.update(entries, entries, self.config.num_cache_layers - 1)
        return read_text_rows(
            text_embeds, position_ids, mask, is_text=is_text, is_text_key=keys[:, 0, :, 0] > 0.5
        )

    def _write_nothing(self, layer: int, image: Tensor, cache: Cache | None) -> None:
        """The text tower reads none of the rows: zeros in its cache, which no mask lets through."""
        assert cache is not None  # without one the text tower reads all rows
        config = self.config.text_config
        shape = (image.shape[0], config.num_key_value_heads, image.shape[1], head_dim_of(config))
        nothing = image.new_zeros(shape)
        cache.update(nothing, nothing, layer)

    def _meet(self, index: int, text: Tensor, image: Tensor, both: "_Pass") -> tuple[Tensor, Tensor]:
        """Both directions at once: each tower reads the other as it was before."""
        text_block = cast(CrossBlock, self.text_reads_image[index])
        image_block = cast(CrossBlock, self.image_reads_text[index])
        reading = both.reading
        of_image = text_block.keys_values(image, both.image_rotation)
        of_text = image_block.keys_values(text, both.text_rotation)
        if both.cache is not None:
            layer = 2 * (self.config.num_hidden_layers + index)
            of_image = both.cache.update(*of_image, layer)
            of_text = both.cache.update(*map(reading.to_rows, of_text), layer + 1)
        seen = reading.of_rows(of_image[0]), reading.of_rows(of_image[1])
        new_image = image_block(image, of_text, reading.read_by_image_mask, both.image_rotation)
        if reading.is_empty:
            return text, new_image
        return text_block(text, seen, reading.reads_image_mask, both.text_rotation), new_image


class JamCrossForCausalLM(JamCrossPreTrainedModel):
    """Two towers with a head over words and codes."""

    def __init__(self, config: JamCrossConfig) -> None:
        super().__init__(config)
        self.model = JamCrossModel(config)
        self.head = TwoTowerHead(config, self.model.embed_tokens)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head, a function of both towers' final states."""
        return self.head

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T E"] | None = None,
        use_cache: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) over words, then codes."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        return CausalLMOutputWithPast(
            logits=self.head(out.last_hidden_state), past_key_values=out.past_key_values
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """What the meetings of a pass have in common."""

    reading: TextReading
    text_rotation: Rotation
    """At the text tower's positions."""
    image_rotation: Rotation
    """At the image tower's positions, which are all; in the text tower's frequencies, as cross heads are as
    wide as its own."""
    cache: Cache | None


def parameter_roles(model: PreTrainedModel) -> dict[str, list[str]]:
    """Names of parameters by what they belong to: `text_tower`, `image_tower`, or `cross`, what joins them.

    Rows of the input table and of the head belong to a tower. With shared embeddings the rows of words (and
    of special tokens) are the text tower's and those of codes the image tower's.
    """
    owners = {
        "text_tower": ("model.text_tower.", "model.embed_tokens.text.", "head.text_rows."),
        "image_tower": ("model.image_tower.", "model.embed_tokens.image.", "head.image_rows."),
    }
    roles: dict[str, list[str]] = {"text_tower": [], "image_tower": [], "cross": []}
    for name, _ in model.named_parameters():
        roles[next((role for role, owned in owners.items() if name.startswith(owned)), "cross")].append(name)
    return roles


def _tower(config: PreTrainedConfig, *, first_cache_layer: int) -> PreTrainedModel:
    """The stock model without its input table; its layers write to the cache from `first_cache_layer` on."""
    config._attn_implementation = "sdpa"  # 'eager' would add a boolean mask as 0 and 1
    tower: PreTrainedModel = MODEL_MAPPING[type(config)](config)
    tower.embed_tokens = None
    for index, layer in enumerate(tower.layers):
        layer.self_attn.layer_idx = first_cache_layer + index
    return tower


def _block(config: JamCrossConfig, asking: Literal["text", "image"]) -> CrossBlock:
    text, image = config.text_config, config.image_config
    asks, answers = (text, image) if asking == "text" else (image, text)
    has_ffn = config.cross_content == "attention+ffn"
    return CrossBlock(
        asks.hidden_size,
        answers.hidden_size,
        num_heads=config.cross_heads or text.num_attention_heads,
        head_dim=head_dim_of(text),
        ffn_size=(config.cross_ffn_size or asks.intermediate_size) if has_ffn else 0,
        activation=asks.hidden_act,
        norm_eps=asks.rms_norm_eps,
        gating=config.gating,
    )


def head_dim_of(config: PreTrainedConfig) -> int:
    """Width of a head; older configurations leave it to be derived."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _mask(given: Tensor | None, embeds: Tensor, *, past: int) -> Bool[Tensor, "B 1 T S"]:
    """The mask as it is, or causal over the past and the positions of the pass."""
    num_rows, size, _ = embeds.shape
    if given is not None and given.dim() == 4:
        return given
    causal = torch.ones(size, past + size, dtype=torch.bool, device=embeds.device).tril(past)
    if given is None:
        return causal.expand(num_rows, 1, -1, -1)
    seen = causal & given.bool()[:, None, None]
    return seen | ~seen.any(-1, keepdim=True)  # a query on padding sees all, for it must see something


AutoConfig.register(JamCrossConfig.model_type, JamCrossConfig, exist_ok=True)
AutoModelForCausalLM.register(JamCrossConfig, JamCrossForCausalLM, exist_ok=True)
