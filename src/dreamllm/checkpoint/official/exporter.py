"""A model folder -> the official layout, from file to file: no part is built, and tensors stay as stored."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import LlamaConfig

from dreamllm.checkpoint.official.importer import MODEL_TYPE, OPTIONAL_FIELDS, REQUIRED_FIELDS
from dreamllm.checkpoint.official.names import PLUGINS
from dreamllm.checkpoint.official.tensor_files import find_tensors
from dreamllm.checkpoint.official.tokenizer import write_tokenizer
from dreamllm.checkpoint.parts import read_json, write_json
from dreamllm.checkpoint.pretrained import read_index
from dreamllm.errors import CheckpointError
from dreamllm.models.decoders.kinds import decoder_class
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLMConfig

_TRANSFORMERS: Final = ("model.safetensors",)
_DIFFUSERS: Final = ("diffusion_pytorch_model.safetensors",)


def write_official(model: Path, out: Path) -> Path:
    """Write the model of a folder in the official layout to `out`, which appears whole or not at all.

    Raises:
        CheckpointError: the folder or a part is missing or damaged, the layout has no place for something in
            it, or `out` is there and not empty.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(
            f"{out} is there already and will not be replaced; choose another path or remove it"
        )
    _check_fits(model, read_index(model).config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        folder = Path(aside) / "new"
        write_tokenizer(model / "tokenizer", folder)
        _write_configs(model / "language_model", folder)
        torch.save(find_tensors(model / "language_model", _TRANSFORMERS), folder / "pytorch_model.bin")
        for plugin in PLUGINS:
            tensors = {
                before + name: tensor
                for part, before in plugin.parts.items()
                for name, tensor in _part(model, part).items()
            }
            torch.save(tensors, folder / plugin.file)
        folder.replace(out)
    return out


def _check_fits(model: Path, config: DreamLLMConfig) -> None:
    """The layout says nothing of what is fixed in it, so only that can be written."""
    language = read_json(model / "language_model" / "config.json")
    vision = read_json(model / "vision_encoder" / "config.json")
    unet = model / "image_decoder" / "unet" / "config.json"
    reasons = []
    if language.get("model_type") != "llama":
        reasons.append(f"its language model is {language.get('model_type')!r}")
    if language.get("tie_word_embeddings"):
        reasons.append("its language model has tied embeddings")
    if vision.get("model_type") != "clip_vision_model":
        reasons.append(f"its vision encoder is {vision.get('model_type')!r}")
    if not unet.is_file() or decoder_class(read_json(unet)) is not StableDiffusionDecoder:
        reasons.append("its image decoder is another one")
    if config.condition_projector == "transformer":
        reasons.append("its condition projector is a transformer")
    for name in ("select_layer", "drop_cls", "post_layernorm", "vision_px", "chat_template"):
        value, fixed = getattr(config, name), getattr(DreamLLMConfig(), name)
        if value != fixed:
            reasons.append(f"its {name} is {value!r} and not {fixed!r}")
    if reasons:
        raise CheckpointError(
            f"{model} cannot be written in the official layout: {', '.join(reasons)}; expected "
            "an untied LLaMA with CLIP and Stable Diffusion, connected as in the paper; "
            "keep the model folder as it is"
        )


def _part(model: Path, part: str) -> Mapping[str, Tensor]:
    """A plugin's part under stock names."""
    match part:
        case "vision_encoder":
            tensors = find_tensors(model / part, _TRANSFORMERS)
            return {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
        case "unet" | "vae":
            return find_tensors(model / "image_decoder" / part, _DIFFUSERS)
        case _:
            tensors = find_tensors(model / "connectors", _TRANSFORMERS)
            return {
                name.removeprefix(f"{part}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{part}.")
            }


def _write_configs(language_model: Path, folder: Path) -> None:
    config = LlamaConfig.from_pretrained(language_model, local_files_only=True)
    rope: dict[str, Any] = dict(config.rope_parameters)
    theta, scaling = rope.pop("rope_theta"), rope if rope["rope_type"] != "default" else None
    values = {name: getattr(config, name, None) for name in (*REQUIRED_FIELDS, *OPTIONAL_FIELDS)}
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    old = {
        "model_type": MODEL_TYPE,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", values | ids | old)
    generation = language_model / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, folder / generation.name)
