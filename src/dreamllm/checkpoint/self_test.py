"""A self-test that is stored with a model: what it computed when it was saved, to be computed again.

One document with a picture to read and a picture to draw goes through every part: losses, the condition, a
picture of two denoising steps with guidance and without. Numbers that have moved mean that a part, the
tokenizer or a library is no longer what it was.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image as PILImage

from dreamllm.checkpoint.parts import read_json, write_json
from dreamllm.document.document import Document, Image, Text
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.splice import read_slots
from dreamllm.runtime.seeding import make_generator
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.packing import collate

FILE: Final = "self_test.json"
TOLERANCE: Final = 1e-2
"""Largest relative difference of a number, which leaves room for other machines and versions."""
_TEXT: Final = "A small red circle at the top left."
_SIDE: Final = 64


def run_self_test(model: DreamLLM, encoder: SequenceEncoder) -> dict[str, Any]:
    """What the model computes in evaluation mode; the same numbers on every machine, but for rounding.

    The encoder's choices for training (dropout, lengths) play no part.
    """
    context = model.language_model.config.get_text_config().max_position_embeddings
    encoder = replace(encoder, options=EncodeOptions(max_length=context))
    was_training = model.training
    model.eval()
    try:
        return _run(model, encoder)
    finally:
        model.train(was_training)


@torch.no_grad()
def _run(model: DreamLLM, encoder: SequenceEncoder) -> dict[str, Any]:
    picture = _picture()
    document = Document(
        parts=(Image(source=picture, learn=False), Text(text=_TEXT), Image(source=picture)), id="self-test"
    )
    batch = _batch(encoder.encode(document), encoder).to(model.device)
    terms = model(batch, make_generator(0))
    hidden = model.hidden_states(batch)
    told = model.project_conditions(read_slots(hidden, batch.dream_slots))
    blank_batch = _batch([encoder.unconditional()], encoder).to(model.device)
    blank = model.conditions(model.hidden_states(blank_batch), blank_batch.dream_slots)
    plain, guided = (
        model.image_decoder.sample(
            told, blank, noise=[make_generator(1)], num_inference_steps=2, guidance_scale=scale
        )
        for scale in (1.0, 3.0)
    )
    return {
        "tokenizer": tokenizer_hash(encoder),
        "ids": batch.input_ids.flatten().tolist(),
        "numbers": {
            "next_token": float(terms["next_token"].sum) / max(1, terms["next_token"].count),
            "denoising": float(terms["denoising"].sum) / max(1, terms["denoising"].count),
            "condition_spread": float(told.tokens.float().std()),
            "condition_from_blank": float((told.tokens - blank.tokens).float().abs().mean()),
            "picture_spread": float(plain.std()),
            "guidance": float((guided - plain).abs().mean()),
        },
    }


def write_self_test(folder: Path, model: DreamLLM, encoder: SequenceEncoder) -> None:
    """Run the self-test and store it in a model folder."""
    write_json(folder / FILE, run_self_test(model, encoder))


def check_self_test(folder: Path, model: DreamLLM, encoder: SequenceEncoder) -> list[str] | None:
    """What is no longer as it was, a line each; None for a folder without a self-test.

    Raises:
        CheckpointError: the stored test cannot be read.
    """
    if not (folder / FILE).is_file():
        return None
    stored, now = read_json(folder / FILE), run_self_test(model, encoder)
    faults = []
    if now["tokenizer"] != stored.get("tokenizer"):
        faults.append("the tokenizer's vocabulary is not the one the model was saved with")
    elif now["ids"] != stored.get("ids"):
        faults.append("the tokenizer or the chat template gives other ids than when the model was saved")
    for name, expected in stored.get("numbers", {}).items():
        seen = now["numbers"].get(name, float("nan"))
        if not abs(seen - expected) <= TOLERANCE * max(abs(expected), 1e-3):
            faults.append(f"{name} is {seen:.6g}, was {expected:.6g} when the model was saved")
    if now["numbers"]["guidance"] <= 1e-5 * now["numbers"]["picture_spread"]:
        faults.append("guidance changes nothing: the condition does not reach the picture")
    return faults


def tokenizer_hash(encoder: SequenceEncoder) -> str:
    """Of every token and its id."""
    vocabulary = sorted(encoder.tokenizer.hf.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def _batch(sequences: list[Any], encoder: SequenceEncoder) -> Batch:
    return collate([sequences], encoder.tokenizer.pad_id)


def _picture() -> PILImage.Image:
    """Colours that run from side to side and from top to bottom."""
    ramp = np.linspace(0, 255, _SIDE)
    across, down = np.meshgrid(ramp, ramp)
    return PILImage.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
