"""Sequences whose pictures come from caches: what a cache knows is not decoded, and every slot is filled."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from dreamllm.data.feature_cache import CacheSpec, FeatureCache
from dreamllm.data.feature_cache_writer import FeatureCacheWriter
from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import ConfigError, DocumentError, ImageError, LayoutError
from dreamllm.sequence.cached_pictures import CachedPictures
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.packing import collate, pack
from dreamllm.sequence.picture_caches import PictureCaches

MakeEncoder = Callable[..., SequenceEncoder]
VISION = CacheSpec(key={"what": "vision"}, shape=(2, 5), dtype="float32")
LATENT = CacheSpec(key={"what": "latents"}, shape=(6, 1, 1), dtype="bfloat16")


def unreadable(number: int) -> bytes:
    """Bytes that are no picture."""
    return f"picture {number}".encode()


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), (level,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def cache_of(folder: Path, spec: CacheSpec, *sources: bytes) -> FeatureCache:
    """Picture `i` has a record of the value i + 1."""
    with FeatureCacheWriter(folder, spec) as writer:
        for number, source in enumerate(sources, start=1):
            writer.add(hashlib.sha256(source).digest()[:16], torch.full(spec.shape, number))
    return FeatureCache(folder)


def story(*sources: bytes, learn: bool = True) -> Document:
    parts = [part for s in sources for part in (Text(text="a cat"), Image(source=s, learn=learn))]
    return Document(parts=(*parts, Text(text="here")), id="story")


def values(cached: CachedPictures | None) -> list[float]:
    assert cached is not None
    return cached.records.float().flatten(1).mean(1).tolist()


def test_no_picture_that_a_cache_knows_is_decoded(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    sources = [unreadable(1), unreadable(2)]
    caches = PictureCaches(
        vision=cache_of(tmp_path / "v", VISION, *sources), latents=cache_of(tmp_path / "l", LATENT, *sources)
    )
    document = story(*sources[::-1])
    with pytest.raises(ImageError):
        make_encoder().encode(document)

    (sequence,) = replace(make_encoder(), caches=caches).encode(document)

    assert values(sequence.cached_images) == values(sequence.cached_targets) == [2, 1]
    assert sequence.cached_targets.records.dtype is torch.bfloat16
    assert len(sequence.vision_pixels) == len(sequence.target_pixels) == 0
    assert len(sequence.slots.image_starts) == len(sequence.target_dreams) == 2


def test_the_layout_is_the_same_with_a_cache(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    document = story(png(1), png(2))
    caches = PictureCaches(vision=cache_of(tmp_path, VISION, png(1), png(2)))

    (plain,), (cached,) = (
        make_encoder().encode(document),
        replace(make_encoder(), caches=caches).encode(document),
    )

    np.testing.assert_array_equal(plain.input_ids, cached.input_ids)
    assert plain.slots == cached.slots
    assert cached.cached_targets is None
    np.testing.assert_array_equal(plain.target_pixels.levels, cached.target_pixels.levels)


def test_a_picture_that_the_cache_lacks_is_an_error_that_names_it(
    make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    caches = PictureCaches(vision=cache_of(tmp_path, VISION, png(1)))

    with pytest.raises(DocumentError) as caught:
        replace(make_encoder(), caches=caches).encode(story(png(1), png(2)))

    name = hashlib.sha256(png(2)).hexdigest()[:32]
    assert f"picture {name} of document 'story' is not in the cache {tmp_path} of 1 entries" in str(
        caught.value
    )


def test_a_miss_may_be_computed_and_every_picture_keeps_its_place(
    make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    cache = cache_of(tmp_path, VISION, unreadable(1), unreadable(2))
    encoder = replace(make_encoder(), caches=PictureCaches(vision=cache, on_miss="compute"))
    first = story(png(10), unreadable(1), png(20), learn=False)
    second = story(unreadable(2), png(30), learn=False)

    sequences = [encoder.encode(document)[0] for document in (first, second)]
    batch = collate(pack(sequences, 200), 0)

    vision = encoder.vision_transform
    expected = [vision(PILImage.new("RGB", (8, 8), (level,) * 3)) for level in (10, 20, 30)]
    np.testing.assert_array_equal(batch.vision_pixels.scaled(), expected)
    computed = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1).expand(3, 2, 5)
    filled = batch.to("cpu").cached_images.fill(computed)
    assert filled[:, 0, 0].tolist() == [10, 1, 20, 2, 30]
    assert batch.cached_targets is None


def test_a_document_without_pictures_shares_a_batch_with_cached_ones(
    make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    sources = [unreadable(1)]
    caches = PictureCaches(
        vision=cache_of(tmp_path / "v", VISION, *sources), latents=cache_of(tmp_path / "l", LATENT, *sources)
    )
    encoder = replace(make_encoder(), caches=caches)
    text = Document(parts=(Text(text="a cat"),), id="text")

    batch = collate(pack([s for d in (text, story(*sources)) for s in encoder.encode(d)], 200), 0)
    alone = collate(pack(encoder.encode(text), 200), 0)

    assert values(batch.cached_images) == values(batch.cached_targets) == [1]
    assert alone.cached_images.fill(torch.zeros(0, 2, 5)).shape == (0, 2, 5)


def test_sequences_with_and_without_a_cache_share_a_batch(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    caches = PictureCaches(vision=cache_of(tmp_path, VISION, png(1)))
    plain, cached = make_encoder(), replace(make_encoder(), caches=caches)

    batch = collate([[*plain.encode(story(png(9))), *cached.encode(story(png(1)))]], 0)

    filled = batch.cached_images.fill(torch.full((1, 2, 5), 9.0))
    assert filled[:, 0, 0].tolist() == [9, 1]


def test_a_dropped_condition_takes_its_target_from_the_cache(
    make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    caches = PictureCaches(latents=cache_of(tmp_path, LATENT, png(1), png(2)))
    encoder = replace(make_encoder(condition_dropout=1.0), caches=caches)

    first, *moved = encoder.encode(story(png(2), png(1)), rng=np.random.default_rng(0))

    assert values(first.cached_targets) == []
    assert [values(sequence.cached_targets) for sequence in moved] == [[2], [1]]


def test_prompts_are_read_without_caches(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    caches = PictureCaches(vision=cache_of(tmp_path, VISION, png(1)))

    prompt = replace(make_encoder(), caches=caches).encode_prompt(story(png(1)))

    assert prompt.cached_images is None
    assert len(prompt.vision_pixels) == 1


def test_an_encoder_says_which_pictures_are_read_and_which_are_drawn(make_encoder: MakeEncoder) -> None:
    given, drawn = Image(source=b"1", learn=False), Image(source=b"2")
    document = Document(parts=(given, Text(text="a cat"), drawn), id="d")

    assert make_encoder().pictures(document) == ([given, drawn], [drawn])
    assert make_encoder(mode="comprehension").pictures(document) == ([given, drawn], [])
    assert make_encoder(mode="creation").pictures(document) == ([given], [drawn])


def test_records_of_two_caches_do_not_share_a_batch(make_encoder: MakeEncoder, tmp_path: Path) -> None:
    wide = replace(VISION, shape=(2, 6))
    encoders = [
        replace(make_encoder(), caches=PictureCaches(vision=cache_of(tmp_path / str(i), spec, png(1))))
        for i, spec in enumerate((VISION, wide))
    ]

    with pytest.raises(LayoutError, match="cached pictures of 2 kinds cannot share a batch"):
        collate([[encoder.encode(story(png(1)))[0]] for encoder in encoders], 0)
    sequence = encoders[0].encode(story(png(1)))[0]
    with pytest.raises(LayoutError, match=r"computed \(0, 3, 5\) beside cached \(1, 2, 5\)"):
        sequence.cached_images.fill(torch.zeros(0, 3, 5))
    with pytest.raises(ConfigError, match="on_miss is 'skip'"):
        PictureCaches(on_miss="skip")
