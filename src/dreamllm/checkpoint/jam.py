"""A JAM as a folder of stock parts, and the encoder that belongs to it.

    model_index.json                 format, class and package versions, JAMConfig
    language_model/                  transformers, or a class of this package that its config.json names
    tokenizer/                       transformers
    image_tokenizer/                 diffusers (a VQModel)
    image_processor/target.json      how a picture is made ready for the image tokenizer, as plain values

A parent that knows words alone has neither of the last two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamllm.checkpoint.model_folder import (
    TRANSFORMS,
    ModelIndex,
    PartSource,
    SavesPretrained,
    in_dtype,
    new_model_folder,
    read_model_index,
    read_transforms,
    refuse_quantized,
    save_part,
    write_model_index,
    write_transforms,
)
from dreamllm.checkpoint.parts import load_image_tokenizer, load_language_model
from dreamllm.data.transforms import TargetTransform
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.jam import JAM, JAMConfig
from dreamllm.models.jam_cross import JamCrossForCausalLM
from dreamllm.models.jam_width import JamWidthForCausalLM
from dreamllm.sequence.code_tokens import CodeTokens
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.stock_chat import resolve_chat
from dreamllm.sequence.tokenizer import Tokenizer

IMAGE_TOKENIZER: Final = "image_tokenizer"
OWN_CLASSES: Final = (JamCrossForCausalLM, JamWidthForCausalLM)
"""Language models of this package, which transformers loads like its own once their modules are imported."""
_TARGET: Final = "target"


def save_jam(
    model: JAM,
    path: str | Path,
    *,
    tokenizer: SavesPretrained,
    target_transform: TargetTransform | None,
    sources: Mapping[str, PartSource] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the model to a folder, which appears whole or not at all.

    A model folder that is already there is replaced once the new one is complete. `dtype` is the type of the
    tensors on disk; None keeps each as it is. Only a model without image tokenizer has no target transform.

    Raises:
        CheckpointError: the path holds something that is not a model folder, or weights are quantised.
    """
    refuse_quantized(model)
    path = Path(path)
    with new_model_folder(path) as folder:
        in_dtype(model.language_model, dtype).save_pretrained(folder / "language_model")
        tokenizer.save_pretrained(folder / "tokenizer")
        if model.image_tokenizer is not None:
            save_part(model.image_tokenizer.vq_model, folder / IMAGE_TOKENIZER, dtype=dtype)
            target = target_transform or TargetTransform(image_px=model.image_tokenizer.picture_px)
            write_transforms(folder, {_TARGET: target.to_dict()})
        write_model_index(folder, model.config, sources)
    return path


def load_jam(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> JAM:
    """The model of a folder, in evaluation mode.

    Raises:
        CheckpointError: the folder or a part is missing or damaged, a tensor is missing, left over or of the
            wrong shape, the codebook holds values that are not finite, or parts do not fit each other.
    """
    path = Path(path)
    index = read_jam_index(path)
    folder = path / IMAGE_TOKENIZER
    has_pictures = folder.is_dir() or (path / TRANSFORMS).is_dir()
    image_tokenizer = load_image_tokenizer(folder, dtype=dtype) if has_pictures else None
    language_model = load_language_model(path / "language_model", dtype=dtype)
    try:
        model = JAM(index.config, language_model=language_model, image_tokenizer=image_tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model.to(device).eval()


def read_jam_index(path: str | Path) -> ModelIndex[JAMConfig]:
    """What the folder of a JAM says of itself.

    Raises:
        CheckpointError: there is no such folder, its index is damaged or of another format, or it is the
            folder of another model.
    """
    return read_model_index(path, JAMConfig)


def load_jam_encoder(
    path: str | Path, model: JAM, options: CodeEncodeOptions | None = None
) -> CodeSequenceEncoder:
    """Read the encoder of a model folder.

    Raises:
        CheckpointError: the tokenizer or the transform is missing, or does not fit the model.
    """
    path = Path(path)
    tokenizer = Tokenizer.from_pretrained(path / "tokenizer")
    target = None
    if model.image_tokenizer is not None:
        values = read_transforms(path).get(_TARGET)
        if values is None:
            raise CheckpointError(
                f"{path / TRANSFORMS} has no {_TARGET}.json, which says how pictures are made ready for the "
                "image tokenizer; the model folder is not whole, write it again"
            )
        target = TargetTransform.from_dict(values)
    try:
        return jam_encoder_of(model, tokenizer, target, options)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def jam_encoder_of(
    model: JAM,
    tokenizer: Tokenizer,
    target: TargetTransform | None,
    options: CodeEncodeOptions | None = None,
) -> CodeSequenceEncoder:
    """The encoder of a model, given what its folder holds beside it.

    Without options, sequences may be as long as the language model's positions allow. Without a target,
    pictures are brought to the size that the image tokenizer reads.

    Raises:
        ConfigError: the tokenizer lacks the tokens that join words and codes, or uses the ids of codes; or
            the transform makes pictures of another size than the image tokenizer reads.
    """
    config = model.config
    if model.image_tokenizer is not None:
        target = target or TargetTransform(image_px=model.image_tokenizer.picture_px)
        _check_size(target.image_px, model.image_tokenizer.picture_px)
    length = model.language_model.config.get_text_config().max_position_embeddings
    return CodeSequenceEncoder(
        tokenizer=tokenizer,
        tokens=CodeTokens.of(
            tokenizer.hf,
            first_code=config.first_code,
            num_codes=config.num_codes,
            codes_per_picture=config.codes_per_picture,
        ),
        chat=resolve_chat(config.chat_template, tokenizer.hf),
        target_transform=target or TargetTransform(image_px=1),  # without an image tokenizer never called
        picture_codes=None if model.image_tokenizer is None else _PictureCodes(model.image_tokenizer),
        options=options or CodeEncodeOptions(max_length=length),
    )


@dataclass(frozen=True, slots=True)
class _PictureCodes:
    """The image tokenizer as the encoder asks it, wherever the model is; workers can pickle it."""

    image_tokenizer: ImageTokenizer

    def __call__(self, pixels: Float[Tensor, "M 3 H W"]) -> Int[Tensor, "M G"]:
        """Codes of pictures that are on the CPU."""
        return self.image_tokenizer.encode(pixels.to(self.image_tokenizer.vq_model.device))


def _check_size(made_px: int, read_px: int) -> None:
    if made_px != read_px:
        raise ConfigError(
            f"target.json makes pictures of {made_px} px, but the image tokenizer reads {read_px} px; "
            "restore image_processor/target.json"
        )
