"""A DreamLLM as a folder of stock parts.

    model_index.json                 format, class and package versions, DreamLLMConfig
    language_model/  tokenizer/      transformers
    vision_encoder/                  transformers
    image_processor/NAME.json        the picture transforms, as plain values
    connectors/                      projectors and dream queries: the only part of our own
    image_decoder/{unet,vae,scheduler}/   diffusers

Every part loads with its own library and without this package. Tensors are safetensors only.
"""

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import diffusers
import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionModel

from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.version import __version__

FORMAT_VERSION: Final = 1
_INDEX: Final = "model_index.json"
_CONNECTORS: Final = ("visual_projector", "dream_queries", "condition_projector")
_Part = TypeVar("_Part", bound=nn.Module)


class SavesPretrained(Protocol):
    """A tokenizer, or anything else that writes itself to a folder."""

    def save_pretrained(self, path: Path, /) -> object:
        """Write every file that is needed to load it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIndex:
    """What `model_index.json` says."""

    format_version: int
    model_class: str
    versions: dict[str, str]
    """Of this package, torch, transformers and diffusers, when the folder was written."""
    config: DreamLLMConfig


def save_model(
    model: DreamLLM,
    path: str | Path,
    *,
    tokenizer: SavesPretrained,
    transforms: Mapping[str, Mapping[str, Any]],
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the model to a folder, which appears whole or not at all.

    A model folder that is already there is replaced once the new one is complete. `dtype` is the type of the
    tensors on disk; None keeps each as it is. Trained special-token rows are written into the stock tables.

    Raises:
        CheckpointError: the path holds something that is not a model folder.
    """
    path = Path(path)
    if path.exists() and not (path / _INDEX).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(
            f"{path} exists and is no model folder (it has no {_INDEX}); it will not be replaced, "
            "so choose another path or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
        folder = Path(aside) / "new"
        _write_parts(model, folder, dtype)
        tokenizer.save_pretrained(folder / "tokenizer")
        for name, transform in transforms.items():
            _write_json(folder / "image_processor" / f"{name}.json", transform)
        index = ModelIndex(
            format_version=FORMAT_VERSION,
            model_class=type(model).__name__,
            versions={
                "dreamllm": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "diffusers": diffusers.__version__,
            },
            config=model.config,
        )
        _write_json(folder / _INDEX, asdict(index))
        _swap_in(folder, path, old=Path(aside) / "old")
    return path


def load_model(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DreamLLM:
    """The model of a folder, in evaluation mode.

    Raises:
        CheckpointError: the folder or a part is missing or damaged, or a tensor is missing, left over or of
            the wrong shape; the message names the part and the tensors.
    """
    path = Path(path)
    index = read_index(path)
    decoder = path / "image_decoder"
    scheduler_folder = _folder(decoder / "scheduler")
    try:
        scheduler = DDPMScheduler.from_pretrained(scheduler_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _damaged(scheduler_folder, error) from error
    model = DreamLLM(
        index.config,
        language_model=_load_part(AutoModelForCausalLM, path / "language_model", dtype=dtype),
        vision_model=_load_part(CLIPVisionModel, path / "vision_encoder", dtype=dtype),
        image_decoder=StableDiffusionDecoder(
            _load_part(UNet2DConditionModel, decoder / "unet", torch_dtype=dtype, low_cpu_mem_usage=False),
            _load_part(AutoencoderKL, decoder / "vae", torch_dtype=dtype, low_cpu_mem_usage=False),
            scheduler,
        ),
    )
    _load_connectors(model, path / "connectors")
    for name in _CONNECTORS:
        getattr(model, name).to(dtype)
    return model.to(device).eval()


def read_index(path: str | Path) -> ModelIndex:
    """What a model folder says of itself.

    Raises:
        CheckpointError: there is no such folder, or its index is damaged or of another format.
    """
    path = Path(path)
    if not (path / _INDEX).is_file():
        raise CheckpointError(
            f"{path} is no model folder: it has no {_INDEX}; give a folder that `save_model` wrote"
        )
    values = _read_json(path / _INDEX)
    if values.get("format_version") != FORMAT_VERSION or values.get("model_class") != DreamLLM.__name__:
        raise CheckpointError(
            f"{path / _INDEX} describes a {values.get('model_class')!r} in format "
            f"{values.get('format_version')!r}; this version reads {DreamLLM.__name__!r} in format "
            f"{FORMAT_VERSION}, so load it with the version of the package that wrote it"
        )
    try:
        return ModelIndex(**{**values, "config": DreamLLMConfig(**values["config"])})
    except (KeyError, TypeError, ConfigError) as error:
        raise _damaged(path / _INDEX, error) from error


def read_transforms(path: str | Path) -> dict[str, dict[str, Any]]:
    """The picture transforms of a model folder, by name."""
    files = sorted(_folder(Path(path) / "image_processor").glob("*.json"))
    return {file.stem: _read_json(file) for file in files}


def _write_parts(model: DreamLLM, folder: Path, dtype: torch.dtype | None) -> None:
    if model.special_token_rows is not None:
        model.special_token_rows.write_back()
    decoder = model.image_decoder
    _in_dtype(model.language_model, dtype).save_pretrained(folder / "language_model")
    _in_dtype(model.vision_encoder.model, dtype).save_pretrained(folder / "vision_encoder")
    _in_dtype(decoder.unet, dtype).save_pretrained(folder / "image_decoder" / "unet")
    _in_dtype(decoder.vae, dtype).save_pretrained(folder / "image_decoder" / "vae")
    decoder.scheduler.save_pretrained(folder / "image_decoder" / "scheduler")
    for name in ("unet", "vae"):
        _forget_origin(folder / "image_decoder" / name / "config.json")
    tensors = _connector_tensors(model)
    stored = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    _write_json(folder / "connectors" / "config.json", {"config": asdict(model.config), "shapes": shapes})
    save_file(stored, folder / "connectors" / "model.safetensors", metadata={"format": "pt"})


def _forget_origin(config: Path) -> None:
    """Take out the folder that diffusers notes a part was once loaded from: it means nothing elsewhere."""
    _write_json(config, {key: value for key, value in _read_json(config).items() if key != "_name_or_path"})


def _in_dtype(part: _Part, dtype: torch.dtype | None) -> _Part:
    """The part itself, or a copy in another type; the model in memory is never changed."""
    return part if dtype is None or part.dtype == dtype else copy.deepcopy(part).to(dtype)


def _connector_tensors(model: DreamLLM) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor
        for name in _CONNECTORS
        for key, tensor in getattr(model, name).state_dict().items()
    }


def _swap_in(new: Path, path: Path, *, old: Path) -> None:
    """Rename `new` to `path`; what stood there is moved to `old`, and moved back if the rename fails."""
    for file in new.rglob("*"):
        _sync(file)
    try:
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _load_part(part_class: Any, path: Path, **options: Any) -> Any:
    """A stock part from its folder, every tensor accounted for."""
    folder = _folder(path)
    try:
        part, report = part_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are in the report
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    faults = {
        "missing": [str(key) for key in report["missing_keys"]],
        "left over": [str(key) for key in report["unexpected_keys"]],
        "of the wrong shape": [
            f"{key} {tuple(stored)} instead of {tuple(expected)}"
            for key, stored, expected in report["mismatched_keys"]
        ],
    }
    _raise_for(folder, faults)
    return part


def _load_connectors(model: DreamLLM, path: Path) -> None:
    folder = _folder(path)
    try:
        stored = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    expected = _connector_tensors(model)
    faults = {
        "missing": sorted(expected.keys() - stored.keys()),
        "left over": sorted(stored.keys() - expected.keys()),
        "of the wrong shape": [
            f"{name} {tuple(stored[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & stored.keys())
            if stored[name].shape != expected[name].shape
        ],
    }
    _raise_for(folder, faults)
    for name, tensor in expected.items():
        tensor.copy_(stored[name])


def _raise_for(folder: Path, faults: Mapping[str, list[str]]) -> None:
    found = [
        f"{len(names)} {fault}: {', '.join(sorted(names)[:8])}" for fault, names in faults.items() if names
    ]
    if found:
        raise CheckpointError(
            f"the tensors in {folder} do not fit the model it describes ({'; '.join(found)}); "
            "save the model again, or restore the folder from where it came"
        )


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is missing; a model folder holds every part, so save the model again "
            "or copy the folder whole"
        )
    return path


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read: {type(error).__name__}: {error}; "
        "save the model again, or restore the folder from where it came"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
