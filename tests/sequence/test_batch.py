"""A batch on its way to a device."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from tests.sequence.test_packing import PAD, text_sequence
from torch import Tensor

from dreamllm.sequence.batch import Batch
from dreamllm.sequence.cached_pictures import CachedPictures
from dreamllm.sequence.packing import collate


def tensors_of(value: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached, by its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name), f"{name}.{field.name}")


def a_batch() -> Batch:
    cached = CachedPictures.of({0: torch.ones(2)}, 1, nothing=torch.empty(0, 2))
    return replace(
        collate([[text_sequence(3, "a"), text_sequence(4, "b")]], PAD),
        cached_images=cached,
        cached_targets=cached,
    )


def test_every_tensor_of_a_batch_moves_and_nothing_else_changes() -> None:
    batch = a_batch()
    before = dict(tensors_of(batch))

    moved = batch.to("meta")

    after = dict(tensors_of(moved))
    assert {"batch.labels", "batch.segments.bounds", "batch.vision_pixels.levels"} <= before.keys()
    assert {"batch.cached_images.records", "batch.cached_targets.pixel_rows"} <= before.keys()
    assert after.keys() == before.keys()
    assert {tensor.device.type for tensor in after.values()} == {"meta"}
    assert {tensor.device.type for tensor in before.values()} == {"cpu"}
    assert all((after[n].shape, after[n].dtype) == (t.shape, t.dtype) for n, t in before.items())
    assert moved.document_ids == ("a", "b")
    assert moved.segments is not None
    assert batch.segments is not None
    assert moved.segments.longest == batch.segments.longest
