import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from dreamllm.data.image_processors import Fit
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.errors import ConfigError


def noise(width: int, height: int) -> PILImage.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return PILImage.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("fit", "size"), [("crop", (6, 9)), ("crop", (9, 6)), ("squash", (6, 6))])
@pytest.mark.parametrize("is_rounded", [True, False])
def test_a_picture_of_the_right_size_is_not_resampled(
    fit: Fit, size: tuple[int, int], is_rounded: bool
) -> None:
    image = noise(*size)
    transform = VisionTransform(6, (0, 0, 0), (1, 1, 1), fit=fit, resample="lanczos", is_rounded=is_rounded)

    pixels = (transform(image) * 255).round().astype(np.uint8).transpose(1, 2, 0)

    left, top = (size[0] - 6) // 2, (size[1] - 6) // 2
    np.testing.assert_array_equal(pixels, np.asarray(image)[top : top + 6, left : left + 6])


@pytest.mark.parametrize("size", [(16, 16), (40, 23), (23, 41), (16, 31), (7, 5), (200, 17)])
def test_the_target_view_is_a_bilinear_resize_and_the_centre(size: tuple[int, int]) -> None:
    image = noise(*size)
    width, height = (16 * side // min(size) for side in size)
    left, top = (width - 16) // 2, (height - 16) // 2
    box = (left, top, left + 16, top + 16)

    expected = image.resize((width, height), PILImage.Resampling.BILINEAR).crop(box)

    pixels = TargetTransform(16)(image)
    np.testing.assert_allclose((pixels.transpose(1, 2, 0) + 1) * 127.5, np.asarray(expected), atol=1e-4)


def test_a_squashed_view_shows_the_whole_picture() -> None:
    image = PILImage.fromarray(
        np.repeat(np.array([[[0], [255]]], dtype=np.uint8), 3, axis=2)
    )  # 2 wide, 1 high

    squashed = VisionTransform(2, (0, 0, 0), (1, 1, 1), fit="squash", resample="nearest")(image)
    cropped = VisionTransform(1, (0, 0, 0), (1, 1, 1), resample="nearest")(image)

    np.testing.assert_array_equal(squashed[0], [[0, 1], [0, 1]])
    np.testing.assert_array_equal(cropped[0], [[0]])


def test_a_margin_is_cut_off_after_the_resize() -> None:
    image = noise(8, 8)

    pixels = VisionTransform(4, (0, 0, 0), (1, 1, 1), resize_px=8)(image)

    np.testing.assert_array_equal((pixels * 255).round().transpose(1, 2, 0), np.asarray(image)[2:6, 2:6])


def test_the_target_view_of_a_picture_of_the_right_size_keeps_every_pixel() -> None:
    image = noise(8, 8)

    pixels = TargetTransform(8)(image)

    back = ((pixels + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(back, np.asarray(image))


def test_the_target_view_spans_minus_one_to_one() -> None:
    for level, expected in ((0, -1.0), (255, 1.0)):
        pixels = TargetTransform(4)(PILImage.new("RGB", (9, 6), (level, level, level)))

        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, np.full((3, 4, 4), expected, dtype=np.float32))


def test_channels_are_normalised_in_the_order_red_green_blue() -> None:
    transform = VisionTransform(2, mean=(0.5, 0.0, 0.25), std=(0.5, 1.0, 0.25))

    pixels = transform(PILImage.new("RGB", (2, 2), (255, 0, 51)))

    np.testing.assert_allclose(pixels[:, 0, 0], [1.0, 0.0, -0.2], atol=1e-6)  # (51 / 255 - 0.25) / 0.25


def test_the_centre_is_cut_out_and_nothing_is_flipped() -> None:
    columns = np.repeat(np.arange(0, 70, 10, dtype=np.uint8)[None, :, None], 3, axis=0).repeat(3, axis=2)

    pixels = TargetTransform(3)(PILImage.fromarray(columns))  # 7 wide, 3 high: columns 2, 3, 4 remain

    np.testing.assert_allclose((pixels[0, 0] + 1) * 127.5, [20, 30, 40], atol=1e-4)


@given(width=st.integers(1, 60), height=st.integers(1, 60), size=st.integers(1, 20))
def test_any_shape_becomes_a_square(width: int, height: int, size: int) -> None:
    image = PILImage.new("RGB", (width, height), (10, 200, 30))

    for transform in (VisionTransform(size), TargetTransform(size)):
        pixels = transform(image)

        assert pixels.shape == (3, size, size)
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, np.broadcast_to(pixels[:, :1, :1], pixels.shape))


@pytest.mark.parametrize(
    "transform",
    [
        VisionTransform(7, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
        VisionTransform(7, fit="squash", resize_px=9, resample="lanczos", is_rounded=False),
        TargetTransform(9),
    ],
)
def test_a_transform_survives_json(transform: VisionTransform | TargetTransform) -> None:
    assert type(transform).from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


def test_what_older_models_saved_still_reads() -> None:
    assert VisionTransform.from_dict(
        {"image_px": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    ) == VisionTransform(
        8,
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
        fit="crop",
        resize_px=None,
        resample="bicubic",
        is_rounded=True,
    )


def test_unknown_keys_and_impossible_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"TargetTransform cannot be read from keys \['flip', 'image_px'\]"):
        TargetTransform.from_dict({"image_px": 8, "flip": True})
    with pytest.raises(ConfigError, match="image_px=0 is not a size"):
        TargetTransform(0)
    with pytest.raises(ConfigError, match="std above 0"):
        VisionTransform(8, std=(1.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="resize_px=8 leaves no margin around image_px=8"):
        VisionTransform(8, resize_px=8)
    with pytest.raises(ConfigError, match="fit is 'pad'; choose one of crop, squash"):
        VisionTransform.from_dict({"image_px": 8, "fit": "pad"})
    with pytest.raises(ConfigError, match=r"resample is 'cubic'; choose one of nearest, .*bicubic"):
        VisionTransform.from_dict({"image_px": 8, "resample": "cubic"})
