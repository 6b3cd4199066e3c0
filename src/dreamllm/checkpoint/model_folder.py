"""What the folders of all models have in common: an index, stock parts, and that they appear whole or never.

    model_index.json        format, class and package versions, the config of the model
    NAME/                   the parts, in their own formats
    image_processor/        the picture transforms, as plain values

Which parts a model has stands in `pretrained.py` for a DreamLLM and in `jam.py` for a JAM.
"""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import diffusers
import torch
import transformers
from torch import nn

from dreamllm.checkpoint.parts import damaged, folder_of_part, read_json, write_json
from dreamllm.document.atomic import flush_to_disk, replace_folder, writing
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.models.dreamllm import DreamLLMConfig
from dreamllm.models.jam import JAMConfig
from dreamllm.models.quantization import is_quantized
from dreamllm.version import __version__

FORMAT_VERSION: Final = 1
INDEX: Final = "model_index.json"
TRANSFORMS: Final = "image_processor"

Family = Literal["DreamLLM", "JAM"]
CONFIGS: Final[dict[Family, type[DreamLLMConfig] | type[JAMConfig]]] = {
    "DreamLLM": DreamLLMConfig,
    "JAM": JAMConfig,
}
"""The classes of models that are known here, with their configs."""

Config = TypeVar("Config", DreamLLMConfig, JAMConfig)
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


@dataclass(frozen=True, kw_only=True)
class ModelIndex(Generic[Config]):
    """What `model_index.json` says."""

    format_version: int
    model_class: str
    versions: dict[str, str]
    """Of this package, torch, transformers and diffusers, when the folder was written."""
    config: Config
    sources: dict[str, PartSource] = field(default_factory=dict)
    """Where the parts came from, by the name of their folder, as far as it is known."""


def family_of(path: str | Path) -> Family:
    """Which class of model a folder holds.

    Raises:
        CheckpointError: there is no such folder, or its index is damaged, of another format or of a class
            that is not known.
    """
    path = Path(path)
    if not (path / INDEX).is_file():
        raise CheckpointError(
            f"{path} is no model folder: it has no {INDEX}; give a folder that `save_model` or "
            "`save_jam` wrote"
        )
    values = read_json(path / INDEX)
    family, version = values.get("model_class"), values.get("format_version")
    for known in CONFIGS:
        if (family, version) == (known, FORMAT_VERSION):
            return known
    raise CheckpointError(
        f"{path / INDEX} describes a {family!r} in format {version!r}; this version reads "
        f"{' and '.join(map(repr, CONFIGS))} in format {FORMAT_VERSION}, so load it with the version of the "
        "package that wrote it"
    )


def read_model_index(path: str | Path, config_class: type[Config]) -> ModelIndex[Config]:
    """What the folder of a model with that config says of itself.

    Raises:
        CheckpointError: as `family_of`, or the folder holds a model of the other class.
    """
    path = Path(path)
    found = family_of(path)
    if CONFIGS[found] is not config_class:
        expected = next(name for name, known in CONFIGS.items() if known is config_class)
        raise CheckpointError(
            f"{path} holds a {found}, expected a {expected}; give the folder of a {expected}, or load this "
            f"one with dreamllm.{found}.from_pretrained"
        )
    values = read_json(path / INDEX)
    sources = read_sources(path)
    try:
        config = config_class(**values["config"])
        return ModelIndex(**{**values, "config": config, "sources": sources})
    except (KeyError, TypeError, ConfigError) as error:
        raise damaged(path / INDEX, error) from error


def read_sources(path: str | Path) -> dict[str, PartSource]:
    """Where the parts of a model of any class came from; errors as `family_of`."""
    index = Path(path) / INDEX
    family_of(path)
    try:
        return {name: PartSource(**each) for name, each in read_json(index).get("sources", {}).items()}
    except (TypeError, AttributeError) as error:
        raise damaged(index, error) from error


def write_model_index(
    folder: Path, config: DreamLLMConfig | JAMConfig, sources: Mapping[str, PartSource] | None
) -> None:
    """Write the index of a folder that is being made."""
    family = next(name for name, known in CONFIGS.items() if known is type(config))
    values = {
        "format_version": FORMAT_VERSION,
        "model_class": family,
        "versions": {
            "dreamllm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "diffusers": diffusers.__version__,
        },
        "config": asdict(config),
        "sources": {name: asdict(source) for name, source in (sources or {}).items()},
    }
    write_json(folder / INDEX, values)


def read_transforms(path: str | Path) -> dict[str, dict[str, Any]]:
    """The picture transforms of a model folder, by name."""
    files = sorted(folder_of_part(Path(path) / TRANSFORMS).glob("*.json"))
    return {file.stem: read_json(file) for file in files}


def write_transforms(folder: Path, transforms: Mapping[str, Mapping[str, Any]]) -> None:
    """Write picture transforms into a folder that is being made."""
    for name, transform in transforms.items():
        write_json(folder / TRANSFORMS / f"{name}.json", transform)


def refuse_quantized(model: nn.Module) -> None:
    """Raise CheckpointError for a model with quantised weights, which no stock part can hold."""
    if any(is_quantized(part) for part in model.modules()):
        raise CheckpointError(
            "the model holds quantised weights, which a folder of stock parts cannot hold; load it without "
            "quantize and save that, or save models.lora.merged(model)"
        )


@contextmanager
def new_model_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, beside `path`, which it becomes when nothing was raised.

    A model folder that is already there is replaced then, and is left as it was otherwise.

    Raises:
        CheckpointError: the path holds something that is not a model folder.
        DiskError: the folder cannot be written, or the disk is full.
    """
    if path.exists() and not (path / INDEX).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(
            f"{path} exists and is no model folder (it has no {INDEX}); it will not be replaced, "
            "so choose another path or remove it"
        )
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
            folder = Path(aside) / "new"
            yield folder
            for config in folder.rglob("config.json"):
                write_json(config, _without_origin(read_json(config)))
            for file in folder.rglob("*"):
                flush_to_disk(file)
            replace_folder(folder, path)


def save_part(part: nn.Module, folder: Path, *, dtype: torch.dtype | None) -> None:
    """Write a part of diffusers in a type."""
    stored: Any = in_dtype(part, dtype)
    stored.save_pretrained(folder)


def _without_origin(value: Any) -> Any:
    """A configuration, and those inside it, without the folders that they were once loaded from."""
    if not isinstance(value, dict):
        return value
    return {key: _without_origin(each) for key, each in value.items() if key != "_name_or_path"}


def in_dtype(part: _Part, dtype: torch.dtype | None) -> _Part:
    """The part itself, or a copy in another type; the model in memory is never changed."""
    return part if dtype is None or part.dtype == dtype else copy.deepcopy(part).to(dtype)
