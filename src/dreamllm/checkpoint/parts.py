"""Stock parts from their folders, every tensor accounted for.

A folder is what transformers or diffusers wrote for one part. A vision encoder may also be the folder of a
whole two-tower model, of which the vision half is taken. Tensors stay mapped to their files until they are
used, so that nothing is held twice.
"""

import gc
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from diffusers import VQModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.models.decoders.image_decoder import ImageDecoder
from dreamllm.models.decoders.kinds import decoder_class
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.vision_encoder import VISION_CLASSES

_OTHER_TOWER: Final = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
"""Tensors of a two-tower model that its vision half does without."""
_UNREADABLE: Final = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    EOFError,
    SafetensorError,
    UnpicklingError,
    zipfile.BadZipFile,
)
"""What the stock loaders raise for files that are damaged or hold something else."""


def load_language_model(
    folder: Path, *, dtype: torch.dtype | None = None, safetensors_only: bool = True
) -> PreTrainedModel:
    """The causal language model of a folder; without a dtype, in the type it is stored in.

    Raises:
        CheckpointError: the folder or a file is missing or damaged, or a tensor is missing, left over or of
            the wrong shape; the message names it.
    """
    return _load(
        AutoModelForCausalLM, folder, dtype=dtype or "auto", use_safetensors=safetensors_only or None
    )


def load_vision_model(
    folder: Path, *, dtype: torch.dtype | None = None, safetensors_only: bool = True
) -> PreTrainedModel:
    """The vision model of a folder, or the vision half of a two-tower model; errors as above."""
    model_type = str(read_json(folder_of_part(folder) / "config.json").get("model_type"))
    if model_type not in VISION_CLASSES:
        raise CheckpointError(
            f"{folder} holds a model of type {model_type!r}, which is no vision encoder known here; "
            f"expected one of {', '.join(VISION_CLASSES)}; choose another folder"
        )
    return _load(
        VISION_CLASSES[model_type],
        folder,
        dtype=dtype or "auto",
        use_safetensors=safetensors_only or None,
        may_leave=_OTHER_TOWER,
    )


def load_image_decoder(
    folder: Path, *, dtype: torch.dtype | None = None, safetensors_only: bool = True
) -> ImageDecoder:
    """The image decoder of a folder with a denoiser (`unet` or `transformer`), `vae` and `scheduler`, which
    is also how diffusers saves a pipeline; errors as above."""
    folder = folder_of_part(folder)
    found = [folder / name for name in ("unet", "transformer") if (folder / name).is_dir()]
    if not found:
        raise CheckpointError(
            f"{folder / 'unet'} is missing, and so is transformer; an image decoder is the folder of a "
            "diffusers pipeline, with unet or transformer, vae and scheduler; give one"
        )
    try:
        kind = decoder_class(read_json(found[0] / "config.json"))
        scheduler = kind.make_scheduler(
            read_json(folder_of_part(folder / "scheduler") / "scheduler_config.json")
        )
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    options: dict[str, Any] = {
        "torch_dtype": dtype or _stored_dtype(found[0]),
        "low_cpu_mem_usage": False,  # so that every fault is in the report
        "use_safetensors": safetensors_only or None,
    }
    denoiser = _load(kind.denoiser_class, found[0], **options)
    return kind(denoiser, _load(kind.vae_class, folder / "vae", **options), scheduler)


def load_image_tokenizer(folder: Path, *, dtype: torch.dtype | None = None) -> ImageTokenizer:
    """The image tokenizer of a folder that diffusers wrote of a `VQModel`; errors as above, also for a
    codebook that holds anything but finite numbers."""
    stored = dtype or _stored_dtype(folder_of_part(folder))
    vq_model = _load(VQModel, folder, torch_dtype=stored, low_cpu_mem_usage=False, use_safetensors=True)
    try:
        return ImageTokenizer(vq_model)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type of the first tensor of a folder; float32 where there are no safetensors."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_slice(next(iter(tensors.keys())))[:0].dtype
        except (OSError, SafetensorError) as error:
            raise damaged(file, error) from error
    return torch.float32


def raise_for_tensors(
    folder: Path, *, missing: list[str], left_over: list[str], misshapen: list[str]
) -> None:
    """Raise CheckpointError if any is named; each kind of fault is told with up to eight names."""
    faults = {"missing": missing, "left over": left_over, "of the wrong shape": misshapen}
    found = [
        f"{len(names)} {fault}: {', '.join(sorted(names)[:8])}" for fault, names in faults.items() if names
    ]
    if found:
        raise CheckpointError(
            f"the tensors in {folder} do not fit the model it describes ({'; '.join(found)}); "
            "save the model again, or restore the folder from where it came"
        )


def folder_of_part(path: Path) -> Path:
    """The path itself; raises CheckpointError if there is no such folder."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is missing; a model folder holds every part, so save the model again "
            "or copy the folder whole"
        )
    return path


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read."""
    reason = " ".join(str(error).split())
    return CheckpointError(
        f"{path} cannot be read: {type(error).__name__}: {reason[:400]}; "
        "save the model again, or restore the folder from where it came"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError if the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected a JSON object; restore the file"
        )
    return content


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """No table of tensors that do not match, which here become one line, or are meant; and no collection of
    garbage, which would go through every module made so far, again and again."""
    before, collects = transformers_logging.get_verbosity(), gc.isenabled()
    transformers_logging.set_verbosity_error()
    gc.disable()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if collects:
            gc.enable()


def _load(part_class: Any, path: Path, *, may_leave: tuple[str, ...] = (), **options: Any) -> Any:
    """A stock part from its folder."""
    folder = folder_of_part(path)
    read_json(folder / "config.json")
    try:
        with _quiet():
            part, report = part_class.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are in the report
                **options,
            )
    except _UNREADABLE as error:
        raise damaged(folder, error) from error
    raise_for_tensors(
        folder,
        missing=[str(key) for key in report["missing_keys"]],
        left_over=[str(key) for key in report["unexpected_keys"] if not str(key).startswith(may_leave)],
        misshapen=[
            f"{key} {tuple(stored)} instead of {tuple(expected)}"
            for key, stored, expected in report["mismatched_keys"]
        ],
    )
    return part
