"""An official checkpoint -> a DreamLLM of stock parts.

Configurations are read as values: import paths in them are never followed. Tensors stay mapped to their files
and in the type they are stored in, so a model takes memory only when it is used.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dreamllm.checkpoint.official.names import PLUGINS, Parts, Plugin, by_part
from dreamllm.checkpoint.official.stock_parts import diffusers_part, fill, transformers_part
from dreamllm.checkpoint.official.tensor_files import find_tensors, read_tensors
from dreamllm.checkpoint.official.tokenizer import OfficialTokenizer, read_tokenizer
from dreamllm.checkpoint.parts import (
    damaged,
    folder_of_part,
    load_image_decoder,
    load_vision_model,
    read_json,
)
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.errors import CheckpointError
from dreamllm.models.decoders.kinds import decoder_class
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.projectors import ProjectorKind
from dreamllm.sequence.tokenizer import Tokenizer

LANGUAGE_MODEL_FILES: Final = ("model.safetensors", "pytorch_model.bin")
MODEL_TYPE: Final = "dreamllm"
REQUIRED_FIELDS: Final = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
OPTIONAL_FIELDS: Final = (
    "num_key_value_heads", "hidden_act", "initializer_range", "rope_theta", "rope_scaling", "attention_bias",
    "mlp_bias", "head_dim",
)  # fmt: skip
"""Fields of `config.json` that describe the language model; all others are ignored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialModel:
    """What `save_model` writes of an official checkpoint."""

    model: DreamLLM
    tokenizer: OfficialTokenizer
    transforms: dict[str, dict[str, Any]]
    skipped: Mapping[str, int]
    """How many tensors were left out, by what they are."""


def read_official(folder: Path, *, vision_encoder: Path, image_decoder: Path) -> OfficialModel:
    """Read a checkpoint; the stock folders of the frozen parts give their configurations, and their tensors
    too where an early checkpoint lacks them.

    Raises:
        CheckpointError: a file is missing or damaged or holds more than tensors, a tensor is missing, left
            over or of the wrong shape, or the tensors of a part differ between two files.
        MissingExtraError: the tokenizer needs a package that is not installed.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; expected one with {LANGUAGE_MODEL_FILES[-1]} and "
            f"{', '.join(plugin.file for plugin in PLUGINS)}; check the path"
        )
    tokenizer = read_tokenizer(folder)
    config = _language_config(folder / "config.json", tokenizer.tokenizer)
    skipped: Counter[str] = Counter()
    parts: Parts = {}
    sources = {"language_model": folder}
    for plugin in PLUGINS:
        file = _plugin_file(folder, plugin)
        found, num_computed = by_part(read_tensors(file), prefix=plugin.prefix, source=file)
        parts |= {name: found.get(name, {}) for name in plugin.parts}
        sources |= dict.fromkeys(plugin.parts, file)
        skipped["computed buffers"] += num_computed
    copies, num_computed = by_part(find_tensors(folder, LANGUAGE_MODEL_FILES), source=folder)
    parts["language_model"] = copies.pop("language_model", {})
    _check_copies(folder, copies, originals=parts)
    skipped["computed buffers"] += num_computed
    skipped["copies of plugin tensors"] += sum(map(len, copies.values()))
    model = _model(config, parts, sources=sources, vision_encoder=vision_encoder, image_decoder=image_decoder)
    transforms = {
        "vision": _vision_transform(vision_encoder, model).to_dict(),
        "target": TargetTransform(image_px=model.image_decoder.image_size[0]).to_dict(),
    }
    return OfficialModel(model=model, tokenizer=tokenizer, transforms=transforms, skipped=+skipped)


def _model(
    config: LlamaConfig,
    parts: Parts,
    *,
    sources: Mapping[str, Path],
    vision_encoder: Path,
    image_decoder: Path,
) -> DreamLLM:
    """All parts; `sources` are the files of their tensors, for messages."""
    queries = parts["dream_queries"].get("queries", torch.empty(0))
    language_model = transformers_part(
        LlamaForCausalLM, config, tensors=parts["language_model"], source=sources["language_model"]
    )
    model = DreamLLM(
        DreamLLMConfig(
            num_dream_queries=queries.shape[1] if queries.dim() == 3 else 1,  # if not, `fill` says so
            visual_projector=_kind(parts["visual_projector"]),
            condition_projector=_kind(parts["condition_projector"]),
        ),
        language_model=language_model,
        vision_model=_vision_model(vision_encoder, parts["vision_encoder"], source=sources["vision_encoder"]),
        image_decoder=_image_decoder(image_decoder, parts, source=sources["unet"]),
    )
    for name in ("visual_projector", "dream_queries", "condition_projector"):
        fill(getattr(model, name), parts[name], source=sources[name])
    return model.eval()


def _language_config(path: Path, tokenizer: Tokenizer) -> LlamaConfig:
    values = read_json(path)
    missing = [name for name in REQUIRED_FIELDS if values.get(name) is None]
    if values.get("model_type") != MODEL_TYPE or missing:
        raise CheckpointError(
            f"{path} is of model_type {values.get('model_type')!r} and lacks "
            f"{', '.join(missing) or 'no field'}; expected {MODEL_TYPE!r} with {', '.join(REQUIRED_FIELDS)}; "
            "give an official DreamLLM checkpoint"
        )
    known = {
        name: values[name] for name in (*REQUIRED_FIELDS, *OPTIONAL_FIELDS) if values.get(name) is not None
    }
    if tokenizer.vocab_size > known["vocab_size"]:
        raise CheckpointError(
            f"{path} has vocab_size {known['vocab_size']} but the tokenizer beside it has "
            f"{tokenizer.vocab_size} tokens; expected a row for each; restore both from where they came"
        )
    try:
        return LlamaConfig(
            **known,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise damaged(path, error) from error


def _plugin_file(folder: Path, plugin: Plugin) -> Path:
    for name in (plugin.file, plugin.legacy_file):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} has neither {plugin.file} nor {plugin.legacy_file}; an official checkpoint holds one "
        "of them; copy the folder whole"
    )


def _check_copies(folder: Path, copies: Parts, *, originals: Parts) -> None:
    """The language model's file may hold plugin tensors once more; then they must be the same."""
    different = [
        f"{part}.{name}"
        for part, tensors in copies.items()
        for name, tensor in tensors.items()
        if name in originals[part] and not _equal(tensor, originals[part][name])
    ]
    if different:
        raise CheckpointError(
            f"{folder} holds {len(different)} tensors twice with different values: "
            f"{', '.join(sorted(different)[:8])}; expected the plugin files to agree with the language "
            "model's; take all files from one checkpoint"
        )


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left.to(right.dtype), right)


def _kind(tensors: Mapping[str, Tensor]) -> ProjectorKind:
    return "mlp" if any(name[0].isdigit() for name in tensors) else "linear"


def _vision_model(folder: Path, tensors: Mapping[str, Tensor], *, source: Path) -> PreTrainedModel:
    """CLIP; without tensors of its own, those of the stock folder."""
    if read_json(folder_of_part(folder) / "config.json").get("model_type") not in (
        "clip",
        "clip_vision_model",
    ):
        raise CheckpointError(
            f"{folder} holds no CLIP; official checkpoints read pictures with openai/clip-vit-large-patch14; "
            "give its folder"
        )
    if not tensors:
        return load_vision_model(folder, safetensors_only=False)
    config = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    return transformers_part(CLIPVisionModel, config, tensors=tensors, source=source)


def _image_decoder(folder: Path, parts: Parts, *, source: Path) -> StableDiffusionDecoder:
    """Stable Diffusion; a part without tensors of its own has those of the stock folder."""
    configs = {name: read_json(folder_of_part(folder / name) / "config.json") for name in ("unet", "vae")}
    schedule = read_json(folder_of_part(folder / "scheduler") / "scheduler_config.json")
    if decoder_class(configs["unet"]) is not StableDiffusionDecoder:
        raise CheckpointError(
            f"{folder} holds no Stable Diffusion 1 or 2; official checkpoints draw with Stable Diffusion "
            "2.1; give its folder"
        )
    stock: dict[str, Any] = {}
    if not (parts["unet"] and parts["vae"]):
        stock = load_image_decoder(folder, safetensors_only=False).parts()
    unet, vae = (
        diffusers_part(part_class, configs[name], tensors=parts[name], source=source)
        if parts[name]
        else stock[name]
        for name, part_class in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
    )
    return StableDiffusionDecoder(unet, vae, StableDiffusionDecoder.make_scheduler(schedule))


def _vision_transform(folder: Path, model: DreamLLM) -> VisionTransform:
    """As the preprocessor of the stock folder says, or as CLIP was trained where it has none."""
    file, image_px = folder / "preprocessor_config.json", model.vision_encoder.image_px
    if file.is_file():
        return VisionTransform.from_preprocessor(read_json(file), image_px=image_px)
    return VisionTransform.for_model_type("clip", image_px=image_px)
