"""The sequence encoder that belongs to a model folder: tokenizer, chat template, picture transforms."""

from pathlib import Path

from dreamllm.checkpoint.model_folder import read_transforms
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.errors import CheckpointError
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.stock_chat import resolve_chat
from dreamllm.sequence.tokenizer import Tokenizer

VISION, TARGET = "vision", "target"


def encoder_of(
    model: DreamLLM,
    tokenizer: Tokenizer,
    transforms: dict[str, dict[str, object]],
    options: EncodeOptions | None = None,
) -> SequenceEncoder:
    """The encoder of a model, given what its folder holds beside it.

    Without options, sequences may be as long as the language model's positions allow.
    """
    missing = {VISION, TARGET} - set(transforms)
    if missing:
        raise CheckpointError(
            f"the image_processor folder holds {sorted(transforms)}; expected {VISION}.json and "
            f"{TARGET}.json; the model folder is not whole, write it again"
        )
    length = model.language_model.config.get_text_config().max_position_embeddings
    return SequenceEncoder(
        tokenizer=tokenizer,
        sizes=model.slot_sizes,
        chat=resolve_chat(model.config.chat_template, tokenizer.hf),
        vision_transform=VisionTransform.from_dict(transforms[VISION]),
        target_transform=TargetTransform.from_dict(transforms[TARGET]),
        options=options or EncodeOptions(max_length=length),
    )


def load_encoder(path: str | Path, model: DreamLLM, options: EncodeOptions | None = None) -> SequenceEncoder:
    """Read the encoder of a model folder.

    Raises:
        CheckpointError: the tokenizer or a transform is missing.
    """
    return encoder_of(
        model, Tokenizer.from_pretrained(Path(path) / "tokenizer"), read_transforms(path), options
    )


def transforms_of(encoder: SequenceEncoder) -> dict[str, dict[str, object]]:
    """What `save_model` writes of an encoder."""
    return {VISION: encoder.vision_transform.to_dict(), TARGET: encoder.target_transform.to_dict()}
