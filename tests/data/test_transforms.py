import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dreamllm.data.transforms import CLIP_MEAN, CLIP_STD, TargetTransform, VisionTransform
from dreamllm.errors import ConfigError


def noise(width: int, height: int) -> PILImage.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return PILImage.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(16, 16), (40, 23), (23, 41), (16, 31), (7, 5), (200, 17)])
def test_the_vision_view_is_that_of_the_clip_processor(size: tuple[int, int]) -> None:
    image = noise(*size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )

    expected = processor(image, return_tensors="np")["pixel_values"][0]

    np.testing.assert_allclose(VisionTransform(16)(image), expected, atol=2e-6)


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
    "transform", [VisionTransform(7, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), TargetTransform(9)]
)
def test_a_transform_survives_json(transform: VisionTransform | TargetTransform) -> None:
    assert type(transform).from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


def test_unknown_keys_and_impossible_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"TargetTransform cannot be read from keys \['flip', 'image_px'\]"):
        TargetTransform.from_dict({"image_px": 8, "flip": True})
    with pytest.raises(ConfigError, match="image_px=0 is not a size"):
        TargetTransform(0)
    with pytest.raises(ConfigError, match="std above 0"):
        VisionTransform(8, std=(1.0, 0.0, 1.0))
