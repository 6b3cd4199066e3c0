import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    convert_image_to_patches,
)

from dreamllm.data.image_processors import Fit, Resample, default_preprocessor
from dreamllm.data.transforms import VisionTransform
from dreamllm.errors import ConfigError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 16, "width": 16}
DINOV3 = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE, "resample": 2} | IMAGENET
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
    "siglip bilinear": SiglipImageProcessorPil(size=SQUARE, resample=2),
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 19}, crop_size=SQUARE, **IMAGENET),
    "squash and crop": CLIPImageProcessorPil(size={"height": 21, "width": 21}, crop_size=16, resample=1),
    "not normalised": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16, do_normalize=False),
}


def noise(width: int, height: int, seed: int = 0) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels)


any_picture = st.builds(noise, st.integers(1, 70), st.integers(1, 70), st.integers(0, 99))


@pytest.mark.parametrize("name", PROCESSORS)
@given(image=any_picture)
def test_a_view_read_from_a_stock_processor_makes_its_pixels(name: str, image: PILImage.Image) -> None:
    processor = PROCESSORS[name]

    pixels = VisionTransform.from_preprocessor(processor.to_dict(), image_px=16)(image)

    np.testing.assert_allclose(pixels, processor(image).pixel_values[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (640, 427), (333, 500), (1001, 67), (225, 224), (3, 2)])
@pytest.mark.parametrize(
    "processor",
    [CLIPImageProcessorPil(), SiglipImageProcessorPil(), BitImageProcessorPil(size={"shortest_edge": 256})],
)
def test_pixels_are_the_stock_ones_at_the_sizes_of_real_models(processor: Any, size: tuple[int, int]) -> None:
    image = noise(*size)

    pixels = VisionTransform.from_preprocessor(processor.to_dict(), image_px=224)(image)

    np.testing.assert_allclose(pixels, processor(image).pixel_values[0], rtol=0, atol=1e-5)


@given(side=st.integers(1, 90))
def test_a_square_picture_is_that_of_the_naflex_processor(side: int) -> None:
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=9)
    image = noise(side, side)

    expected = processor(image)
    pixels = VisionTransform.from_preprocessor(processor.to_dict(), image_px=24)(image)

    assert expected.spatial_shapes[0] == (3, 3)
    np.testing.assert_allclose(
        convert_image_to_patches(pixels, 8), expected.pixel_values[0], rtol=0, atol=1e-5
    )


@given(image=any_picture)
def test_dinov3_pixels_are_resized_as_tensors_are(image: PILImage.Image) -> None:
    scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    resized = interpolate(scaled, size=(16, 16), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    expected = (resized.numpy() - IMAGENET["image_mean"]) / IMAGENET["image_std"]

    pixels = VisionTransform.from_preprocessor(DINOV3, image_px=16)(image)

    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "processor_class",
    [CLIPImageProcessorPil, BitImageProcessorPil, SiglipImageProcessorPil, Siglip2ImageProcessorPil],
)
def test_what_a_file_leaves_out_is_the_default_of_its_class(processor_class: Any) -> None:
    stated = processor_class().to_dict()
    name = stated["image_processor_type"]

    silent = VisionTransform.from_preprocessor({"image_processor_type": name, "size": None, "resample": None})

    assert silent == VisionTransform.from_preprocessor(stated)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (  # as the first CLIP models were published
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 16, "crop_size": 16, "resample": 3},
            VisionTransform(16),
        ),
        (
            {
                "image_processor_type": "CLIPImageProcessorFast",
                "size": {"shortest_edge": 20},
                "crop_size": 16,
            },
            VisionTransform(16, resize_px=20),
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": [20, 20], "crop_size": [16, 16]},
            VisionTransform(16, fit="squash", resize_px=20),
        ),
        (
            {"image_processor_type": "SiglipImageProcessor", "size": 16, "default_to_square": True}
            | {"image_mean": 0.25, "image_std": 0.125, "rescale_factor": 0.00392156862745098},
            VisionTransform(16, (0.25,) * 3, (0.125,) * 3, fit="squash"),
        ),
    ],
)
def test_every_way_to_write_a_size_is_read(config: dict[str, Any], expected: VisionTransform) -> None:
    assert VisionTransform.from_preprocessor(config, image_px=16) == expected
    assert VisionTransform.from_preprocessor(config) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image_processor_type": "PixtralImageProcessor"},
            "type is 'PixtralImageProcessor', expected one of",
        ),
        ({"image_processor_type": None}, "type is None, expected one of CLIPImageProcessor"),
        ({"do_resize": False}, "do_resize is False, expected True"),
        ({"do_rescale": False}, "do_rescale is False, expected True"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078.*, expected 1/255"),
        ({"do_pad": True}, "do_pad is True"),
        ({"do_center_crop": False}, "do_center_crop is False with a shortest_edge"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "size is .*, expected shortest_edge alone"),
        ({"size": {"height": 16, "width": 24}}, "size is .*, expected shortest_edge alone, or equal height"),
        ({"crop_size": {"height": 16, "width": 24}}, "crop_size is .*, expected equal height and width"),
        ({"crop_size": 32}, "crop_size is 32, expected at most size, 16"),
        ({"resample": 9}, r"resample is 9, expected Pillow's number of nearest, .*hamming \(0..5\)"),
        ({"size": 16, "crop_size": 8}, "pictures of 8 pixels but the vision model reads 16"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    base = {"image_processor_type": "CLIPImageProcessor", "size": 16, "crop_size": 16}

    with pytest.raises(ConfigError, match=message) as error:
        VisionTransform.from_preprocessor(base | config, image_px=16)

    assert "\n" not in str(error.value)


TRANSFORMS = st.builds(
    VisionTransform,
    st.just(16),
    st.just((0.1, 0.2, 0.3)),
    st.just((0.5, 1.0, 0.25)),
    fit=st.sampled_from(["crop", "squash"]),
    resize_px=st.sampled_from([None, 17, 20]),
    resample=st.sampled_from(["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]),
    is_rounded=st.booleans(),
)


@given(transform=TRANSFORMS)
def test_a_view_survives_as_a_stock_file(transform: VisionTransform) -> None:
    config = json.loads(json.dumps(transform.to_preprocessor()))

    assert VisionTransform.from_preprocessor(config, image_px=16) == transform


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("resize_px", [None, 20])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_a_written_file_loads_as_a_stock_processor_with_the_same_pixels(
    fit: Fit, resize_px: int | None, resample: Resample, tmp_path: Path
) -> None:
    transform = VisionTransform(16, fit=fit, resize_px=resize_px, resample=resample)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(transform.to_preprocessor()))

    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")

    for size in ((40, 23), (16, 31), (3, 7), (16, 16)):
        expected = processor(noise(*size)).pixel_values[0]
        np.testing.assert_allclose(transform(noise(*size)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("clip", VisionTransform(224)),
        ("clip_vision_model", VisionTransform(224)),
        ("siglip_vision_model", VisionTransform(224, (0.5,) * 3, (0.5,) * 3, fit="squash")),
        ("siglip2", VisionTransform(224, (0.5,) * 3, (0.5,) * 3, fit="squash", resample="bilinear")),
        (
            "dinov2_with_registers",
            VisionTransform(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize_px=256),
        ),
        (
            "dinov3_vit",
            VisionTransform(
                224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                fit="squash", resample="bilinear", is_rounded=False,
            ),
        ),
    ],
)  # fmt: skip
def test_a_folder_without_a_file_gets_the_view_of_its_family(
    model_type: str, expected: VisionTransform
) -> None:
    assert VisionTransform.for_model_type(model_type, image_px=224) == expected


def test_a_family_without_a_known_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="vision model of type 'swin'; expected clip, siglip"):
        default_preprocessor("swin", image_px=16)
