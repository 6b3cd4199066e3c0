"""Stock parts -> a new DreamLLM with untrained connectors.

Any causal language model, vision encoder and image decoder that the stock libraries can load; what cannot fit
is refused before anything is written. New bracket tokens get rows in the language model's tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dreamllm.checkpoint.card import license_of
from dreamllm.checkpoint.hub import resolve_source, split_hub_id
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.checkpoint.parts import (
    load_image_decoder,
    load_language_model,
    load_vision_model,
    read_json,
)
from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.errors import ConfigError
from dreamllm.models.decoders.image_decoder import ImageDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.language_model import check_language_model, probe
from dreamllm.models.special_token_rows import start_rows
from dreamllm.models.vision_encoder import VisionEncoder, recommended_tokens
from dreamllm.sequence.chat import TOKENIZER_CHAT, VICUNA_V1_1
from dreamllm.sequence.stock_tokenizer import prepare_tokenizer
from dreamllm.sequence.tokenizer import Tokenizer

DECODER_FOLDERS: Final = ("unet", "transformer", "vae", "scheduler")


@dataclass(frozen=True, kw_only=True, slots=True)
class Composed:
    """A new model and what is saved beside it."""

    model: DreamLLM
    tokenizer: Tokenizer
    transforms: dict[str, dict[str, Any]]
    sources: dict[str, PartSource]
    """By the name of the part's folder."""


def compose(parts: PartsConfig, *, dtype: torch.dtype | None = None) -> Composed:
    """A new model; its connectors draw their first weights from torch's global generator.

    `dtype` is the type of all parts; None keeps each as it is stored.

    Raises:
        CheckpointError: a part is missing, damaged or cannot be reached.
        ConfigError: parts that do not fit each other, or a tokenizer or language model that cannot be used.
    """
    folders = {
        name: _fetch(parts, name)
        for name in ("language_model", "tokenizer", "vision_encoder", "image_decoder")
    }
    tokenizer, new_ids, chat = _tokenizer(
        folders["tokenizer"], folders["language_model"], parts.chat_template
    )
    language_model = _language_model(folders["language_model"], new_ids, dtype)
    vision_model = load_vision_model(folders["vision_encoder"], dtype=dtype, safetensors_only=False)
    view = _view(folders["vision_encoder"], vision_model, parts.vision_px)
    config = model_config(parts, vision_model.config, vision_px=view.image_px, chat_template=chat)
    model = DreamLLM(
        config,
        language_model=language_model,
        vision_model=vision_model,
        image_decoder=load_image_decoder(folders["image_decoder"], dtype=dtype, safetensors_only=False),
    )
    _check_context(model)
    return Composed(
        model=model,
        tokenizer=tokenizer,
        transforms={"vision": view.to_dict(), "target": _target(model.image_decoder).to_dict()},
        sources={name: _origin(parts, name, folder) for name, folder in folders.items()},
    )


def model_config(
    parts: PartsConfig, vision_config: PreTrainedConfig, *, vision_px: int | None, chat_template: str
) -> DreamLLMConfig:
    """What the parts do not say of themselves; what is left open is what suits the vision encoder."""
    layer, norm = recommended_tokens(vision_config)
    return DreamLLMConfig(
        num_dream_queries=parts.num_dream_queries,
        visual_projector=parts.visual_projector,
        condition_projector=parts.connector,
        num_connector_layers=parts.num_connector_layers,
        select_layer=layer if parts.select_layer is None else parts.select_layer,
        post_layernorm=norm if parts.post_layernorm is None else parts.post_layernorm,
        vision_px=vision_px,
        chat_template=chat_template,
    )


def _source(parts: PartsConfig, name: str) -> str:
    return str(getattr(parts, name) or parts.language_model)


def _fetch(parts: PartsConfig, name: str) -> Path:
    """The local folder of a part."""
    return resolve_source(_source(parts, name), folders=DECODER_FOLDERS if name == "image_decoder" else ())


def _origin(parts: PartsConfig, name: str, folder: Path) -> PartSource:
    """Where a part came from: a hub id and its commit, or the name of a local folder, which means nothing
    elsewhere but to its owner."""
    source = _source(parts, name)
    if Path(source).expanduser().is_dir():
        return PartSource(source=folder.resolve().name, license=license_of(folder))
    hub_id, _ = split_hub_id(source) or (source, None)
    return PartSource(source=hub_id, revision=folder.name, license=license_of(folder))  # a snapshot's name


def _tokenizer(folder: Path, language_model: Path, chat: str | None) -> tuple[Tokenizer, list[int], str]:
    """The tokenizer, the ids that are new to the language model, and the name of the chat template."""
    config = read_json(language_model / "config.json")
    has_own = (folder / "chat_template.jinja").is_file() or "chat_template" in _tokenizer_config(folder)
    chat = chat or (TOKENIZER_CHAT if has_own else VICUNA_V1_1.name)
    tokenizer, new_ids = prepare_tokenizer(
        folder, model_bos_id=_first_id(config, "bos"), model_eos_id=_first_id(config, "eos"), chat=chat
    )
    return tokenizer, new_ids, chat


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_json(file) if file.is_file() else {}


def _first_id(config: dict[str, Any], name: str) -> int | None:
    """The model's BOS or EOS; where there are several, the first."""
    found: Any = config.get(f"{name}_token_id")
    return next(iter(found), None) if isinstance(found, list) else found


def _language_model(folder: Path, new_ids: Sequence[int], dtype: torch.dtype | None) -> PreTrainedModel:
    """The language model, found fit, with rows for the tokens that are new to it."""
    language_model = load_language_model(folder, dtype=dtype, safetensors_only=False)
    check_language_model(language_model)
    language_model.set_attn_implementation("sdpa")
    probe(language_model)
    if new_ids:
        start_rows(language_model, new_ids)
    return language_model


def _view(folder: Path, vision_model: PreTrainedModel, image_px: int | None) -> VisionTransform:
    """How pictures are shown to the vision model: by its preprocessor, or as its family was trained."""
    file, model_type = folder / "preprocessor_config.json", vision_model.config.model_type
    if file.is_file():
        view = VisionTransform.from_preprocessor(read_json(file))
        if image_px in (None, view.image_px):
            return view
        margin = view.resize_px and round(view.resize_px * image_px / view.image_px)
        return replace(view, image_px=image_px, resize_px=margin)
    size = VisionEncoder(vision_model, image_px=image_px).image_px
    return VisionTransform.for_model_type(model_type, image_px=size)


def _target(decoder: ImageDecoder) -> TargetTransform:
    height, width = decoder.image_size
    if height != width:
        raise ConfigError(
            f"the image decoder draws {width} x {height} pixels; only square pictures are known here; "
            "set sample_size in the configuration of its denoiser to one number"
        )
    return TargetTransform(image_px=height)


def _check_context(model: DreamLLM) -> None:
    """A picture must fit into the language model's context, and leave room for words."""
    sizes = model.slot_sizes
    needed = sizes.dream_length + sizes.image_length
    context = model.language_model.config.get_text_config().max_position_embeddings
    if needed >= context:
        raise ConfigError(
            f"a drawn picture takes {needed} positions ({sizes.num_dream_queries} queries and "
            f"{sizes.num_visual_tokens} visual tokens, with brackets) but the language model has {context}; "
            "take fewer dream queries, or a vision encoder with fewer tokens"
        )
