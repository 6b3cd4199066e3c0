"""A DreamLLM as a folder of stock parts.

    model_index.json                 format, class and package versions, DreamLLMConfig
    language_model/  tokenizer/      transformers
    vision_encoder/                  transformers
    image_processor/NAME.json        the picture transforms, as plain values
    connectors/                      projectors and dream queries: the only part of our own
    image_decoder/{unet|transformer,vae,scheduler}/   diffusers

Every part loads with its own library and without this package. Tensors are safetensors only.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamllm.checkpoint.model_folder import (
    ModelIndex,
    PartSource,
    SavesPretrained,
    in_dtype,
    new_model_folder,
    read_model_index,
    refuse_quantized,
    save_part,
    write_model_index,
    write_transforms,
)
from dreamllm.checkpoint.parts import (
    damaged,
    folder_of_part,
    load_image_decoder,
    load_language_model,
    load_vision_model,
    raise_for_tensors,
    write_json,
)
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig

_CONNECTORS: Final = ("visual_projector", "dream_queries", "condition_projector", "pooled_projector")


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
    refuse_quantized(model)
    path = Path(path)
    with new_model_folder(path) as folder:
        _write_parts(model, folder, dtype)
        tokenizer.save_pretrained(folder / "tokenizer")
        write_transforms(folder, transforms)
        write_model_index(folder, model.config, sources)
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


def read_index(path: str | Path) -> ModelIndex[DreamLLMConfig]:
    """What the folder of a DreamLLM says of itself.

    Raises:
        CheckpointError: there is no such folder, its index is damaged or of another format, or it is the
            folder of another model.
    """
    return read_model_index(path, DreamLLMConfig)


def _write_parts(model: DreamLLM, folder: Path, dtype: torch.dtype | None) -> None:
    if model.special_token_rows is not None:
        model.special_token_rows.write_back()
    in_dtype(model.language_model, dtype).save_pretrained(folder / "language_model")
    in_dtype(model.vision_encoder.model, dtype).save_pretrained(folder / "vision_encoder")
    for name, part in model.image_decoder.parts().items():
        if isinstance(part, nn.Module):
            save_part(part, folder / "image_decoder" / name, dtype=dtype)
        else:
            part.save_pretrained(folder / "image_decoder" / name)
    tensors = _connector_tensors(model)
    stored = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    write_json(folder / "connectors" / "config.json", {"config": asdict(model.config), "shapes": shapes})
    save_file(stored, folder / "connectors" / "model.safetensors", metadata={"format": "pt"})


def _connector_tensors(model: DreamLLM) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, connector in _connectors(model).items()
        for key, tensor in connector.state_dict().items()
    }


def _connectors(model: DreamLLM) -> dict[str, nn.Module]:
    connectors = {name: getattr(model, name) for name in _CONNECTORS}
    return {name: connector for name, connector in connectors.items() if connector is not None}


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
