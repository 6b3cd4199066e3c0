"""A self-test that is stored with a model: what it computed when it was saved, to be computed again.

One document goes through every part. A DreamLLM reads a picture and draws one: losses, the condition, a
picture of two denoising steps with guidance and without. A JAM reads given codes, and its image tokenizer
makes codes of a picture and a picture of codes. Numbers that have moved mean that a part, the tokenizer or a
library is no longer what it was.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image as PILImage
from torch import Tensor

from dreamllm.checkpoint.parts import read_json, write_json
from dreamllm.document.document import Document, Image, Text
from dreamllm.losses.total import Term
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.jam import JAM
from dreamllm.models.language_model import run_decoder
from dreamllm.models.splice import read_slots
from dreamllm.runtime.seeding import make_generator
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.packing import collate

FILE: Final = "self_test.json"
TOLERANCE: Final = 1e-2
"""Largest relative difference of a number, which leaves room for other machines and versions."""
_TEXT: Final = "A small red circle at the top left."
_SIDE: Final = 64


Model = DreamLLM | JAM
Encoder = SequenceEncoder | CodeSequenceEncoder


def run_self_test(model: Model, encoder: Encoder) -> dict[str, Any]:
    """What the model computes in evaluation mode; the same numbers on every machine, but for rounding.

    The encoder's choices for training (dropout, lengths) play no part.
    """
    context = model.language_model.config.get_text_config().max_position_embeddings
    was_training = model.training
    model.eval()
    try:
        if isinstance(model, JAM):
            assert isinstance(encoder, CodeSequenceEncoder)  # the encoder is the model's own
            found = _run_jam(model, replace(encoder, options=CodeEncodeOptions(max_length=context)))
        else:
            assert isinstance(encoder, SequenceEncoder)
            found = _run_dreamllm(model, replace(encoder, options=EncodeOptions(max_length=context)))
    finally:
        model.train(was_training)
    return {"tokenizer": tokenizer_hash(encoder), **found}


@torch.no_grad()
def _run_dreamllm(model: DreamLLM, encoder: SequenceEncoder) -> dict[str, Any]:
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
        "ids": batch.input_ids.flatten().tolist(),
        "numbers": {
            "next_token": _mean(terms["next_token"]),
            "denoising": _mean(terms["denoising"]),
            "condition_spread": float(told.tokens.float().std()),
            "condition_from_blank": float((told.tokens - blank.tokens).float().abs().mean()),
            "picture_spread": float(plain.std()),
            "guidance": float((guided - plain).abs().mean()),
        },
    }


@torch.no_grad()
def _run_jam(model: JAM, encoder: CodeSequenceEncoder) -> dict[str, Any]:
    config, tokenizer = model.config, model.image_tokenizer
    # Given codes: of two that a picture is equally near to, another machine may choose the other.
    codes = torch.arange(config.codes_per_picture)[None] % config.num_codes
    encoder = replace(encoder, picture_codes=lambda _: codes)
    words = Text(text=_TEXT)
    parts = (words,) if tokenizer is None else (words, Image(source=_picture()), words)
    batch = _batch(encoder.encode(Document(parts=parts, id="self-test")), encoder).to(model.device)
    terms = model(batch)
    numbers = {
        "text": _mean(terms["text"]),
        "logit_spread": float(_next_logits(model, batch.input_ids[0]).std()),
    }
    if tokenizer is not None:
        rows = slice(config.first_code, config.first_code + config.num_codes)
        prompt = encoder.encode_prompt(Document(parts=(words,))).input_ids.tolist()
        told, blank = (
            _next_logits(model, torch.tensor(ids, device=model.device))[rows].log_softmax(-1)
            for ids in (
                [*prompt, encoder.tokens.break_],
                encoder.unconditional().input_ids.tolist(),
            )
        )
        numbers |= {
            "codes": _mean(terms["codes"]),
            "guidance": float((told - blank).abs().mean()),
            **_picture_numbers(tokenizer, encoder, codes.to(model.device)),
        }
    return {"ids": batch.input_ids.flatten().tolist(), "numbers": numbers}


def _next_logits(model: JAM, ids: Int[Tensor, " T"]) -> Float[Tensor, " V"]:
    """Of what follows, in float32."""
    length = len(ids)
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    positions = torch.arange(length, device=ids.device)[None]
    states = run_decoder(model.language_model, model.embed_ids(ids[None]), causal[None, None], positions)
    return model.logits(states[0, -1]).float()


def _picture_numbers(
    tokenizer: ImageTokenizer, encoder: CodeSequenceEncoder, codes: Int[Tensor, "1 G"]
) -> dict[str, float]:
    """What the image tokenizer makes of the picture, and of given codes."""
    assert encoder.target_transform is not None  # it comes with an image tokenizer
    pixels = torch.from_numpy(encoder.target_transform(_picture()))[None].to(codes.device)
    latents = tokenizer.vq_model.encode(pixels.to(tokenizer.vq_model.dtype)).latents
    slope = torch.linspace(-1, 1, latents.numel(), device=latents.device)  # it tells one place from another
    read_back = tokenizer.decode(tokenizer.encode(pixels))
    return {
        "latent_spread": float(latents.float().std()),
        "latent_slope": float((latents.float().flatten() * slope).mean()),
        "reconstruction": float((read_back.float() - pixels).abs().mean()),
        "picture_spread": float(tokenizer.decode(codes).float().std()),
    }


def write_self_test(folder: Path, model: Model, encoder: Encoder) -> None:
    """Run the self-test and store it in a model folder."""
    write_json(folder / FILE, run_self_test(model, encoder))


def check_self_test(folder: Path, model: Model, encoder: Encoder) -> list[str] | None:
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
    numbers = now["numbers"]
    if "guidance" in numbers and numbers["guidance"] <= 1e-5 * numbers["picture_spread"]:
        faults.append("guidance changes nothing: the condition does not reach the picture")
    return faults


def tokenizer_hash(encoder: Encoder) -> str:
    """Of every token and its id."""
    vocabulary = sorted(encoder.tokenizer.hf.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def _batch(sequences: list[Any], encoder: Encoder) -> Batch:
    return collate([sequences], encoder.tokenizer.pad_id)


def _mean(term: Term) -> float:
    return float(term.sum) / max(1, term.count)


def _picture() -> PILImage.Image:
    """Colours that run from side to side and from top to bottom."""
    ramp = np.linspace(0, 255, _SIDE)
    across, down = np.meshgrid(ramp, ramp)
    return PILImage.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
