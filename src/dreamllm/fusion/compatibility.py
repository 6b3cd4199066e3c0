"""What two parents have in common, and what this allows: one row a property, to be printed or enforced."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dreamllm.errors import ConfigError
from dreamllm.fusion.config import Method
from dreamllm.models.jam_cross import TOWER_TYPES, head_dim_of
from dreamllm.sequence.code_tokens import CodeTokens

Verdict = Literal["same", "differs, bridged", "differs, prevents", "prevents"]
METHODS: Final[tuple[Method, ...]] = ("uniform", "width", "cross")
_ONE_MODEL: Final[tuple[Method, ...]] = ("uniform", "width")
_OWN: Final = "each tower of cross keeps its own"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One property of both parents."""

    name: str
    text: str
    image: str
    verdict: Verdict
    prevents: tuple[Method, ...] = ()
    note: str = ""
    """How a difference is bridged, or what to do about it."""


@dataclass(frozen=True, slots=True)
class Report:
    """All rows, in the order in which they are read."""

    rows: tuple[Row, ...]

    @property
    def allows(self) -> tuple[Method, ...]:
        """The methods that nothing prevents."""
        return tuple(method for method in METHODS if not self.faults(method))

    def faults(self, method: Method) -> tuple[Row, ...]:
        """The rows that prevent a method."""
        return tuple(row for row in self.rows if method in row.prevents)

    def check(self, method: Method) -> None:
        """Raise ConfigError, with every reason, if a method is prevented."""
        faults = self.faults(method)
        if faults:
            reasons = "; ".join(
                f"{row.name} {row.text} and {row.image}" + (f" ({row.note})" if row.note else "")
                for row in faults
            )
            others = ", ".join(self.allows) or "none"
            raise ConfigError(
                f"these parents cannot be fused by {method!r}: {reasons}; expected parents that agree here; "
                f"choose another parent or method (these parents allow: {others})"
            )


def compatibility(
    text_model: PreTrainedModel,
    image_model: PreTrainedModel,
    *,
    tokens: CodeTokens,
    text_vocab: Mapping[str, int] | None = None,
    image_vocab: Mapping[str, int] | None = None,
) -> Report:
    """Compare two causal language models, and their vocabularies (token -> id) where both are given."""
    text, image = text_model.config, image_model.config
    classes = _class(text_model, image_model)
    if classes.verdict == "prevents":
        return Report((classes,))  # nothing else is known of their configurations
    rows = [
        classes,
        *_shapes(text, image),
        _window(text, image),
        _biases(text_model, image_model),
        _qk_norm(text_model, image_model),
        _codes(text, image, tokens),
        *_bridged(text_model, image_model),
    ]
    if text_vocab is not None and image_vocab is not None:
        rows.append(_vocabulary(text_vocab, image_vocab))
    return Report(tuple(rows))


def _shapes(text: PreTrainedConfig, image: PreTrainedConfig) -> Iterator[Row]:
    """What one model of both must have in common; two towers need equal depth and one vocabulary."""
    yield _compare("layers", text, image, "num_hidden_layers", prevents=METHODS)
    resize = "resize the smaller one"
    yield _compare("vocabulary size", text, image, "vocab_size", prevents=METHODS, note=resize)
    bridge = "cross needs per_tower embeddings and a split head"
    yield _compare("width", text, image, "hidden_size", prevents=_ONE_MODEL, note=bridge)
    for name, key in (
        ("feed-forward width", "intermediate_size"),
        ("heads", "num_attention_heads"),
        ("key-value heads", "num_key_value_heads"),
        ("norm epsilon", "rms_norm_eps"),
        ("activation", "hidden_act"),
    ):
        yield _compare(name, text, image, key, prevents=_ONE_MODEL, note=_OWN)
    yield _row("head width", head_dim_of(text), head_dim_of(image), prevents=_ONE_MODEL, note=_OWN)
    yield _row("rotary positions", _rope(text), _rope(image), prevents=_ONE_MODEL, note=_OWN)


def _bridged(text_model: PreTrainedModel, image_model: PreTrainedModel) -> Iterator[Row]:
    """What may differ in every fusion."""
    text, image = text_model.config, image_model.config
    ties = bool(text.tie_word_embeddings), bool(image.tie_word_embeddings)
    yield _row("tied embeddings", *ties, note="the fused model's are not tied")
    context = "uniform and width keep the text parent's, cross the smaller one"
    yield _compare("context", text, image, "max_position_embeddings", note=context)
    yield _row("type of weights", _dtype(text_model), _dtype(image_model), note="the text parent's")
    for name in ("bos_token_id", "eos_token_id"):
        yield _compare(name, text, image, name, note="the tokenizer's are used")


def _row(name: str, text: object, image: object, *, prevents: tuple[Method, ...] = (), note: str = "") -> Row:
    """A row that prevents something only where the parents differ."""
    if text == image:
        return Row(name=name, text=str(text), image=str(image), verdict="same")
    return Row(
        name=name,
        text=str(text),
        image=str(image),
        verdict="differs, prevents" if prevents else "differs, bridged",
        prevents=prevents,
        note=note,
    )


def _compare(
    name: str,
    text: PreTrainedConfig,
    image: PreTrainedConfig,
    key: str,
    *,
    prevents: tuple[Method, ...] = (),
    note: str = "",
) -> Row:
    return _row(name, getattr(text, key, None), getattr(image, key, None), prevents=prevents, note=note)


def _class(text_model: PreTrainedModel, image_model: PreTrainedModel) -> Row:
    """One class for methods that make one model of both; known layers for all."""
    names = type(text_model).__name__, type(image_model).__name__
    types = {text_model.config.model_type, image_model.config.model_type}
    if not types <= set(TOWER_TYPES):
        known = f"known families are {', '.join(TOWER_TYPES)}"
        return Row(
            name="class", text=names[0], image=names[1], verdict="prevents", prevents=METHODS, note=known
        )
    return _row("class", *names, prevents=_ONE_MODEL, note="cross takes two classes")


def _window(text: PreTrainedConfig, image: PreTrainedConfig) -> Row:
    """Cross attends to everything; the other methods keep a window that both have."""
    windows = [_effective_window(config) for config in (text, image)]
    row = _row("sliding window", *windows, prevents=METHODS, note="cross takes parents without")
    if row.verdict == "same" and windows[0] is not None:
        return Row(
            name=row.name,
            text=row.text,
            image=row.image,
            verdict="prevents",
            prevents=("cross",),
            note="cross takes parents without",
        )
    return row


def _effective_window(config: PreTrainedConfig) -> Any:
    window = getattr(config, "sliding_window", None)
    return None if window is None or window >= config.max_position_embeddings else window


def _rope(config: PreTrainedConfig) -> str:
    values = config.rope_parameters
    return ", ".join(f"{key} {values[key]}" for key in sorted(values) if values[key] is not None)


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _biases(text_model: PreTrainedModel, image_model: PreTrainedModel) -> Row:
    counts = [
        sum(name.endswith(".bias") for name, _ in model.named_parameters())
        for model in (text_model, image_model)
    ]
    return _row("biases", *counts, prevents=_ONE_MODEL, note=_OWN)


def _qk_norm(text_model: PreTrainedModel, image_model: PreTrainedModel) -> Row:
    """Norms of queries and keys have one vector for all heads of a layer, which a wide layer cannot have
    twice.

    The vector comes after a norm, so no projection can take it over either.
    """
    found = [
        {
            name: tensor
            for name, tensor in model.state_dict().items()
            if ".q_norm." in name or ".k_norm." in name
        }
        for model in (text_model, image_model)
    ]
    kinds = ["present" if tensors else "absent" for tensors in found]
    if kinds[0] != kinds[1]:
        return _row("QK-norm", *kinds, prevents=_ONE_MODEL, note=_OWN)
    are_equal = found[0].keys() == found[1].keys() and all(
        tensor.shape == found[1][name].shape and torch.equal(tensor.cpu(), found[1][name].cpu())
        for name, tensor in found[0].items()
    )
    if are_equal:
        return Row(name="QK-norm", text=kinds[0], image=kinds[1], verdict="same")
    return Row(
        name="QK-norm",
        text="its own",
        image="its own",
        verdict="differs, prevents",
        prevents=("width",),
        note="all heads of a layer share one vector, so a wide layer cannot keep two",
    )


def _codes(text: PreTrainedConfig, image: PreTrainedConfig, tokens: CodeTokens) -> Row:
    """Both tables must have rows for all words and codes."""
    sizes = text.vocab_size, image.vocab_size
    name = f"rows for codes {tokens.first_code} to {tokens.vocab_size - 1}"
    if min(sizes) >= tokens.vocab_size:
        return Row(name=name, text="yes", image="yes", verdict="same")
    return Row(
        name=name,
        text=f"{sizes[0]} rows",
        image=f"{sizes[1]} rows",
        verdict="prevents",
        prevents=METHODS,
        note="resize the embeddings",
    )


def _vocabulary(text: Mapping[str, int], image: Mapping[str, int]) -> Row:
    """The same tokens at the same ids."""
    if text == image:
        return Row(
            name="vocabulary", text=f"{len(text)} tokens", image=f"{len(image)} tokens", verdict="same"
        )
    different = sorted(token for token in text.keys() | image.keys() if text.get(token) != image.get(token))
    shown = ", ".join(repr(token) for token in different[:3])
    return Row(
        name="vocabulary",
        text=f"{len(text)} tokens",
        image=f"{len(image)} tokens",
        verdict="differs, prevents",
        prevents=METHODS,
        note=f"{len(different)} tokens have other ids or are missing, such as {shown}",
    )
