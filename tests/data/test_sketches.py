"""Sketches estimate what they promise, and what looks the same is told from what does not."""

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.data.sketches import (
    normalized,
    picture_distance,
    picture_keys,
    repetition,
    sketch_bytes,
    text_keys,
    text_similarity,
    text_sketch,
    thumbnail,
)
from dreamllm.world.documents import make_document

LETTERS = list("abcdefgh ")


def random_text(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(LETTERS, length))


def jaccard(one: str, other: str) -> float:
    """By its definition, over the sets of runs of 8 characters."""
    ones, others = ({text[at : at + 8] for at in range(len(text) - 7)} for text in (one, other))
    return len(ones & others) / len(ones | others)


def estimate(one: str, other: str) -> float:
    first, second = text_sketch(one), text_sketch(other)
    assert first is not None
    assert second is not None
    return float(text_similarity(sketch_bytes(first), sketch_bytes(second)))


@pytest.mark.parametrize(("length", "shared"), [(40, 0.8), (300, 0.5), (300, 0.9), (2500, 0.7)])
def test_the_estimate_of_the_jaccard_similarity_has_no_bias_and_the_spread_of_120_draws(
    length: int, shared: float
) -> None:
    rng = np.random.default_rng(length)
    errors, true = [], []
    for _ in range(100):
        one = normalized(random_text(rng, length))
        other = normalized(one[: int(shared * length)] + random_text(rng, length - int(shared * length)))
        true.append(jaccard(one, other))
        errors.append(estimate(one, other) - true[-1])

    spread = np.sqrt(np.mean(true) * (1 - np.mean(true)) / 120)  # of a share of 120 independent draws

    assert (
        abs(np.mean(errors)) < 4 * spread / np.sqrt(100) + 0.004
    )  # bytes that are equal by chance spread too
    assert np.std(errors) < 1.3 * spread


def test_bytes_that_agree_by_chance_are_taken_into_account() -> None:
    bytes_ = np.arange(120, dtype=np.uint8)

    shares = [
        float(text_similarity(bytes_, np.where(bytes_ < num, bytes_, bytes_ + 1))) for num in (120, 60, 0)
    ]

    assert shares == pytest.approx([1.0, 127 / 255, 0.0])  # (1/2 - 1/256) / (1 - 1/256)


def test_a_sketch_is_the_same_for_texts_that_are_compared_as_the_same() -> None:
    one, other = text_sketch("A  Red\nCIRCLE\ton Ｆine paper "), text_sketch("a red circle on fine paper")

    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", ["a", "abc", "語", "\ud800", "x" * 100_000, "🙂 ok"])
def test_every_text_that_is_not_empty_has_a_sketch(text: str) -> None:
    sketch = text_sketch(text)

    assert sketch is not None
    assert sketch.shape == (120,)


@pytest.mark.parametrize("text", ["", "  \n\t", "\u3000"])
def test_an_empty_text_has_none(text: str) -> None:
    assert text_sketch(text) is None


def test_texts_that_are_much_alike_share_a_key_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    shared = []
    for _ in range(100):
        text = random_text(rng, 400)
        ours, near, far = (
            text_sketch(each) for each in (text, text[:390] + random_text(rng, 10), random_text(rng, 400))
        )
        assert ours is not None
        assert near is not None
        assert far is not None
        assert not (text_keys(ours) == text_keys(far)).any()
        shared.append((text_keys(ours) == text_keys(near)).any())

    assert all(shared)  # each is missed with a probability of (1 - 0.9^6)^20, which is 3e-7


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("too short", 0.0),
        ("abcdefghijklmnopqrstuvwxyz", 0.0),
        ("a" * 39, 19 / 20),  # 20 runs, all equal
        ("abcdefghijklmnopqrst" * 2, 1 / 21),  # 21 runs; the last is the first again
    ],
)
def test_repetition_is_the_share_of_runs_that_came_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


# ---- pictures ----------------------------------------------------------------------------------------------


def landscape(seed: int) -> PILImage.Image:
    """Smooth colours at several scales, as photographs have them."""
    rng = np.random.default_rng(seed)
    total = np.zeros((192, 256, 3))
    for cells in (2, 4, 8, 16, 32):
        noise = PILImage.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((256, 192), PILImage.Resampling.BICUBIC)) / cells**0.7
    total = (total - total.min()) / (total.max() - total.min()) * 255
    return PILImage.fromarray(total.astype(np.uint8))


def drawings(num: int) -> list[PILImage.Image]:
    """Flat shapes with hard edges."""
    made = (make_document("draw_pair", np.random.default_rng([seed, 7])) for seed in range(num))
    return [image.load() for document in made for image in document.images]


def as_jpeg(picture: PILImage.Image, quality: int) -> PILImage.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return PILImage.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def halved(picture: PILImage.Image) -> PILImage.Image:
    return picture.resize((picture.width // 2, picture.height // 2), PILImage.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", ["landscapes", "drawings"])
def test_a_picture_that_was_compressed_or_scaled_looks_the_same_and_shares_a_key(kind: str) -> None:
    pictures = [landscape(seed) for seed in range(20)] if kind == "landscapes" else drawings(20)

    for picture in pictures:
        ours = thumbnail(picture)
        for changed in (as_jpeg(picture, 50), as_jpeg(picture, 75), halved(picture)):
            theirs = thumbnail(changed)
            assert picture_distance(ours, theirs) <= 16
            assert (picture_keys(ours) == picture_keys(theirs)).any()


@pytest.mark.parametrize("kind", ["landscapes", "drawings"])
def test_other_pictures_do_not_look_the_same(kind: str) -> None:
    pictures = [landscape(seed) for seed in range(20)] if kind == "landscapes" else drawings(40)
    cells = [thumbnail(picture) for picture in pictures]
    equal = {picture.tobytes(): index for index, picture in enumerate(pictures)}

    for one, other in combinations(sorted(equal.values()), 2):
        assert picture_distance(cells[one], cells[other]) > 16


def test_a_thumbnail_holds_mean_colours() -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:2, :2] = [[[0, 0, 200], [0, 100, 200]], [[0, 0, 200], [0, 100, 200]]]

    cells = thumbnail(PILImage.fromarray(pixels))

    assert cells.shape == (8, 8, 3)
    assert cells[0, 0].tolist() == [0, 50, 200]
    assert cells[1:].max() == 0
