"""A DreamLLM as a folder of stock parts.

    model_index.json                 format, class and package versions, DreamLLMConfig
    language_model/  tokenizer/      transformers
    vision_encoder/                  transformers
    image_processor/NAME.json        the picture transforms, as plain values
    connectors/                      projectors and dream queries: the only part of our own
    image_decoder/{unet|transformer,vae,scheduler}/   diffusers

Every part loads with its own library and without this package. Tensors are safetensors only.
"""

import copy
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamllm.checkpoint.parts import (
    damaged,
    folder_of_part,
    load_image_decoder,
    load_language_model,
    load_vision_model,
    raise_for_tensors,
    read_json,
    write_json,
)
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.quantization import is_quantized
from dreamllm.version import __version__

FORMAT_VERSION: Final = 1
_INDEX: Final = "model_index.json"
_CONNECTORS: Final = ("visual_projector", "dream_queries", "condition_projector", "pooled_projector")
_Part = TypeVar("_Part", bound=nn.Module)


class SavesPretrained(Protocol):
    """A tokenizer, or anything else that writes itself to a folder."""

    def save_pretrained(self, path: Path, /) -> object:
        """Write every file that is needed to load it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSource:
    """Where a part came from."""

    source: str
    """A hub id, or the name of a local folder."""
    revision: str | None = None
    license: str | None = None
    """As its own card states it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIndex:
    """What `model_index.json` says."""

    format_version: int
    model_class: str
    versions: dict[str, str]
    """Of this package, torch, transformers and diffusers, when the folder was written."""
    config: DreamLLMConfig
    sources: dict[str, PartSource] = field(default_factory=dict)
    """Where the parts came from, by the name of their folder, as far as it is known."""


def save_model(
    model: DreamLLM,
    path: str | Path,
    *,
    tokenizer: SavesPretrained,
    transforms: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, PartSource] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the model to a folder, which appears whole or not at all.

    A model folder that is already there is replaced once the new one is complete. `dtype` is the type of the
    tensors on disk; None keeps each as it is. Trained special-token rows are written into the stock tables.

    Raises:
        CheckpointError: the path holds something that is not a model folder, or weights are quantised.
    """
    if any(is_quantized(part) for part in model.modules()):
        raise CheckpointError(
            "the model holds quantised weights, which a folder of stock parts cannot hold; load it without "
            "quantize and save that, or save models.lora.merged(model)"
        )
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
            write_json(folder / "image_processor" / f"{name}.json", transform)
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
            sources=dict(sources or {}),
        )
        write_json(folder / _INDEX, asdict(index))
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
    model = DreamLLM(
        index.config,
        language_model=load_language_model(path / "language_model", dtype=dtype),
        vision_model=load_vision_model(path / "vision_encoder", dtype=dtype),
        image_decoder=load_image_decoder(path / "image_decoder", dtype=dtype),
    )
    _load_connectors(model, path / "connectors")
    for connector in _connectors(model).values():
        connector.to(dtype)
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
    values = read_json(path / _INDEX)
    if values.get("format_version") != FORMAT_VERSION or values.get("model_class") != DreamLLM.__name__:
        raise CheckpointError(
            f"{path / _INDEX} describes a {values.get('model_class')!r} in format "
            f"{values.get('format_version')!r}; this version reads {DreamLLM.__name__!r} in format "
            f"{FORMAT_VERSION}, so load it with the version of the package that wrote it"
        )
    try:
        config = DreamLLMConfig(**values["config"])
        sources = {name: PartSource(**each) for name, each in values.get("sources", {}).items()}
        return ModelIndex(**{**values, "config": config, "sources": sources})
    except (KeyError, TypeError, ConfigError) as error:
        raise damaged(path / _INDEX, error) from error


def read_transforms(path: str | Path) -> dict[str, dict[str, Any]]:
    """The picture transforms of a model folder, by name."""
    files = sorted(folder_of_part(Path(path) / "image_processor").glob("*.json"))
    return {file.stem: read_json(file) for file in files}


def _write_parts(model: DreamLLM, folder: Path, dtype: torch.dtype | None) -> None:
    if model.special_token_rows is not None:
        model.special_token_rows.write_back()
    _in_dtype(model.language_model, dtype).save_pretrained(folder / "language_model")
    _in_dtype(model.vision_encoder.model, dtype).save_pretrained(folder / "vision_encoder")
    for name, part in model.image_decoder.parts().items():
        is_module = isinstance(part, nn.Module)
        (_in_dtype(part, dtype) if is_module else part).save_pretrained(folder / "image_decoder" / name)
        if is_module:
            _forget_origin(folder / "image_decoder" / name / "config.json")
    tensors = _connector_tensors(model)
    stored = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    write_json(folder / "connectors" / "config.json", {"config": asdict(model.config), "shapes": shapes})
    save_file(stored, folder / "connectors" / "model.safetensors", metadata={"format": "pt"})


def _forget_origin(config: Path) -> None:
    """Take out the folder that diffusers notes a part was once loaded from: it means nothing elsewhere."""
    write_json(config, {key: value for key, value in read_json(config).items() if key != "_name_or_path"})


def _in_dtype(part: _Part, dtype: torch.dtype | None) -> _Part:
    """The part itself, or a copy in another type; the model in memory is never changed."""
    return part if dtype is None or part.dtype == dtype else copy.deepcopy(part).to(dtype)


def _connector_tensors(model: DreamLLM) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, connector in _connectors(model).items()
        for key, tensor in connector.state_dict().items()
    }


def _connectors(model: DreamLLM) -> dict[str, nn.Module]:
    connectors = {name: getattr(model, name) for name in _CONNECTORS}
    return {name: connector for name, connector in connectors.items() if connector is not None}


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


def _load_connectors(model: DreamLLM, path: Path) -> None:
    folder = folder_of_part(path)
    try:
        stored = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise damaged(folder, error) from error
    expected = _connector_tensors(model)
    raise_for_tensors(
        folder,
        missing=sorted(expected.keys() - stored.keys()),
        left_over=sorted(stored.keys() - expected.keys()),
        misshapen=[
            f"{name} {tuple(stored[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & stored.keys())
            if stored[name].shape != expected[name].shape
        ],
    )
    for name, tensor in expected.items():
        tensor.copy_(stored[name])
