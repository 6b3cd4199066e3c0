"""Pixels travel as bytes and become what a model reads where they are used."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from dreamllm.data.transforms import Scaling, VisionTransform
from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import LayoutError
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.packing import collate
from dreamllm.sequence.pixels import Pixels

MakeEncoder = Callable[..., SequenceEncoder]


def noise(px: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(px).integers(0, 256, (px, px, 3), dtype=np.uint8))


def test_levels_are_scaled_channel_by_channel() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    scaling = Scaling(divisor=255, mean=(0.5, 0.2, 0.0), std=(0.5, 0.1, 2.0))

    scaled = Pixels(levels, scaling).to("cpu").scaled()

    assert scaled.dtype is torch.float32
    torch.testing.assert_close(scaled.flatten(), torch.tensor([-1.0, 0.0, 0.5]), atol=1e-6, rtol=0)


def test_a_batch_holds_bytes_and_gives_what_the_transforms_give(make_encoder: MakeEncoder) -> None:
    encoder, image = make_encoder(), noise(11)
    document = Document(parts=(Text(text="a cat"), Image(source=image), Text(text="here")), id="d")

    batch = collate([encoder.encode(document)], 0).to("cpu")

    for pixels, transform in (
        (batch.vision_pixels, encoder.vision_transform),
        (batch.target_pixels, encoder.target_transform),
    ):
        assert pixels.levels.dtype is torch.uint8
        np.testing.assert_array_equal(pixels.scaled(), transform(image)[None])


def test_a_view_that_is_not_rounded_keeps_its_fractions(make_encoder: MakeEncoder) -> None:
    transform = VisionTransform(4, is_rounded=False)
    encoder, image = replace(make_encoder(), vision_transform=transform), noise(7)

    (sequence,) = encoder.encode(Document(parts=(Image(source=image, learn=False),), id="d"))

    levels = sequence.vision_pixels.levels
    assert levels.dtype is torch.float32
    assert not torch.equal(levels, levels.round())
    np.testing.assert_array_equal(sequence.vision_pixels.scaled()[0], transform(image))


def test_a_picture_that_is_read_and_drawn_is_opened_once(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    noise(8).save(tmp_path / "picture.png")
    source, opened = tmp_path / "picture.png", list[str]()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]) == str(source):
            opened.append(event)

    sys.addaudithook(note)  # stays for good, and looks at one path alone
    document = Document(parts=(Text(text="a cat"), Image(source=source), Text(text="here")), id="d")
    (sequence,) = make_encoder().encode(document)

    assert len(sequence.vision_pixels) == len(sequence.target_pixels) == 1
    assert len(opened) == 1


def test_pictures_that_are_scaled_in_two_ways_do_not_share_a_batch(make_encoder: MakeEncoder) -> None:
    document = Document(parts=(Image(source=noise(8), learn=False), Text(text="a cat")), id="d")
    encoders = [
        replace(make_encoder(), vision_transform=VisionTransform(4, std=(s,) * 3)) for s in (1.0, 2.0)
    ]

    with pytest.raises(LayoutError, match="sequences of 2 kinds cannot share a batch"):
        collate([[sequence for encoder in encoders for sequence in encoder.encode(document)]], 0)
