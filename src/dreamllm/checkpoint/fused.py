"""Two JAM folders -> one JAM: parents loaded and compared, fused, and given what belongs beside the model.

How tensors become one model is the affair of `dreamllm.fusion`. Tokenizer and chat template are the text
parent's, image tokenizer and picture transform the image parent's.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dreamllm.checkpoint.card import PARENTS, license_of
from dreamllm.checkpoint.hub import resolve_source, split_hub_id
from dreamllm.checkpoint.jam import IMAGE_TOKENIZER, jam_encoder_of, load_jam, load_jam_encoder
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.errors import ConfigError
from dreamllm.fusion.compatibility import METHODS, Report, Row, compatibility
from dreamllm.fusion.config import FusionConfig
from dreamllm.fusion.fuse import fuse
from dreamllm.models.jam import JAM
from dreamllm.sequence.encode_codes import CodeSequenceEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """A model that is to be fused."""

    model: JAM
    encoder: CodeSequenceEncoder
    source: PartSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Parents:
    """Two models, and what they have in common."""

    text: Parent
    image: Parent
    report: Report


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """A new model and what is saved beside it."""

    model: JAM
    encoder: CodeSequenceEncoder
    sources: dict[str, PartSource]
    """By the name of the part's folder, and of the parents as `text_model` and `image_model`."""


def load_parents(
    text_model: str | Path, image_model: str | Path, *, dtype: torch.dtype = torch.float32
) -> Parents:
    """Two parents from their folders or hub ids, compared.

    Raises:
        CheckpointError: one is missing or damaged, no JAM, or cannot be reached.
        ConfigError: the image parent has no image tokenizer.
    """
    text, image = (_load_parent(source, dtype) for source in (text_model, image_model))
    if image.model.image_tokenizer is None:
        raise ConfigError(
            f"{image_model} has no image tokenizer, as a parent that knows words alone; expected the image "
            "parent second; name the text parent first, or choose another"
        )
    return Parents(text=text, image=image, report=_report(text, image))


def fuse_parents(config: FusionConfig, parents: Parents) -> Fused:
    """The fused model; new weights are drawn from torch's global generator.

    Raises:
        ConfigError: the parents cannot be fused in this way; the message names every reason.
    """
    parents.report.check(config.method)
    text, image = parents.text, parents.image
    model = JAM(
        text.model.config,
        language_model=fuse(
            config, text.model.language_model, image.model.language_model, tokens=text.encoder.tokens
        ),
        image_tokenizer=image.model.image_tokenizer,
    ).eval()
    sources = dict(zip(PARENTS, (text.source, image.source), strict=True))
    return Fused(
        model=model,
        encoder=jam_encoder_of(model, text.encoder.tokenizer, image.encoder.target_transform),
        sources={**sources, IMAGE_TOKENIZER: image.source},
    )


def _load_parent(source: str | Path, dtype: torch.dtype) -> Parent:
    folder = resolve_source(source)
    model = load_jam(folder, dtype=dtype)
    return Parent(model=model, encoder=load_jam_encoder(folder, model), source=_origin(source, folder))


def _origin(source: str | Path, folder: Path) -> PartSource:
    """A hub id and its commit, or the name of a local folder: that of its run, for the `model` of a run."""
    license = license_of(folder)
    if Path(source).expanduser().is_dir():
        path = folder.resolve()
        return PartSource(source=path.parent.name if path.name == "model" else path.name, license=license)
    hub_id, _ = split_hub_id(str(source)) or (str(source), None)
    return PartSource(source=hub_id, revision=folder.name, license=license)  # a snapshot's name


def _report(text: Parent, image: Parent) -> Report:
    report = compatibility(
        text.model.language_model,
        image.model.language_model,
        tokens=text.encoder.tokens,
        text_vocab=text.encoder.tokenizer.hf.get_vocab(),
        image_vocab=image.encoder.tokenizer.hf.get_vocab(),
    )
    ours, theirs = text.model.config, image.model.config
    rows = [
        _row(name, getattr(ours, key), getattr(theirs, key), prevents=key != "chat_template")
        for name, key in (
            ("id of code 0", "first_code"),
            ("picture codes", "num_codes"),
            ("codes a picture", "codes_per_picture"),
            ("chat template", "chat_template"),
        )
    ]
    return replace(report, rows=(*report.rows, *rows))


def _row(name: str, text: object, image: object, *, prevents: bool) -> Row:
    if text == image:
        return Row(name=name, text=str(text), image=str(image), verdict="same")
    return Row(
        name=name,
        text=str(text),
        image=str(image),
        verdict="differs, prevents" if prevents else "differs, bridged",
        prevents=METHODS if prevents else (),
        note="train both parents with one vocabulary" if prevents else "the text parent's",
    )
