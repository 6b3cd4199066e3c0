"""Every kind of picture becomes upright RGB, and every kind of damage an ImageError that names it."""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from dreamllm.document.images import ImageLimits, data_url_bytes, open_image, png_data_url
from dreamllm.errors import ConfigError, ImageError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: PILImage.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG by the letter of its specification, whose header claims a size that its data does not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 16)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    )


def noise(width: int = 24, height: int = 16) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_their_pixels_from_bytes_and_from_a_file(format_: str, tmp_path: Path) -> None:
    picture = noise()
    (tmp_path / "picture").write_bytes(encoded(picture, format_))

    for source in (encoded(picture, format_), tmp_path / "picture"):
        opened = open_image(source)

        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(picture))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    expected = [[0, 1, 128, 255]]  # 257 * 255 / 65535 = 1; 32768 * 255 / 65535 = 127.5 + a little

    for source in (encoded(PILImage.fromarray(values)), PILImage.fromarray(values)):
        opened = np.asarray(open_image(source))

        for channel in range(3):
            np.testing.assert_array_equal(opened[..., channel], expected)


def test_sixteen_bit_transparency_is_white() -> None:
    values = np.array([[0, 500]], dtype=np.uint16)

    opened = open_image(encoded(PILImage.fromarray(values), transparency=0))

    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == (2, 2, 2)  # 500 * 255 / 65535 = 1.95


def test_float_pictures_are_read_from_zero_to_one_and_others_refused() -> None:
    good = PILImage.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    bad = PILImage.fromarray(np.array([[0.0, float("nan")]], dtype=np.float32))

    assert np.asarray(open_image(good))[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(ImageError, match="expected 0 to 1; save it with 8 or 16 bits"):
        open_image(bad)


def test_transparency_of_every_kind_is_laid_over_white() -> None:
    half_red = PILImage.new("RGBA", (2, 2), (255, 0, 0, 51))  # a fifth red: 255 * 0.8 = 204 in green and blue
    gray_gone = PILImage.new("LA", (2, 2), (7, 0))
    palette = PILImage.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)

    assert open_image(encoded(half_red)).getpixel((0, 0)) == (255, 204, 204)
    assert open_image(encoded(gray_gone)).getpixel((0, 0)) == (255, 255, 255)
    opened = open_image(encoded(palette, transparency=1))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


def test_one_bit_and_cmyk_pictures_keep_their_colours() -> None:
    one_bit = PILImage.new("1", (2, 1))
    one_bit.putpixel((1, 0), 255)
    cmyk = PILImage.new("CMYK", (8, 8), (0, 255, 255, 0))

    opened = open_image(encoded(one_bit))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]
    red = open_image(encoded(cmyk, "JPEG", quality=95)).getpixel((4, 4))
    np.testing.assert_allclose(red, RED, atol=6)


@pytest.mark.parametrize("format_", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(format_: str) -> None:
    frames = [PILImage.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    options = {"lossless": True} if format_ == "WEBP" else {}

    data = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)

    assert PILImage.open(io.BytesIO(data)).n_frames == 2
    assert open_image(data).getpixel((4, 4)) == RED


@pytest.mark.parametrize(
    ("orientation", "corner"),
    list(enumerate(["TL", "TR", "BR", "BL", "TL", "TR", "BR", "BL"], start=1)),
)
def test_exif_orientation_is_applied_once(orientation: int, corner: str) -> None:
    """EXIF 2.3, tag 0x0112: the first stored row and column lie at this corner of the upright picture."""
    stored = PILImage.new("RGB", (5, 3), BLUE)
    stored.putpixel((0, 0), RED)
    exif = PILImage.Exif()
    exif[0x0112] = orientation

    opened = open_image(encoded(stored, exif=exif))

    width, height = (5, 3) if orientation <= 4 else (3, 5)
    assert opened.size == (width, height)
    at = (0 if corner[1] == "L" else width - 1, 0 if corner[0] == "T" else height - 1)
    assert opened.getpixel(at) == RED
    assert open_image(opened).tobytes() == opened.tobytes()


def test_damaged_exif_does_not_damage_the_pixels() -> None:
    data = encoded(noise(), exif=b"Exif\0\0not a TIFF header")

    assert open_image(data).tobytes() == noise().tobytes()


def test_a_size_claimed_in_the_header_is_refused_before_decoding() -> None:
    bomb = png_that_claims(8000, 8000)  # decoding would find the data missing and say truncated

    with pytest.raises(
        ImageError, match=r"too large: 8000 x 8000 = 64000000 pixels; expected at most 40000000"
    ):
        open_image(bomb)


def test_a_size_beyond_pillows_own_limit_is_an_image_error_too() -> None:
    before = PILImage.MAX_IMAGE_PIXELS

    with pytest.raises(ImageError, match="too large"):
        open_image(png_that_claims(60000, 60000), ImageLimits(max_pixels=10**12))

    assert before == PILImage.MAX_IMAGE_PIXELS


def test_limits_are_inclusive() -> None:
    picture = PILImage.new("RGB", (4, 3))

    assert open_image(picture, ImageLimits(max_pixels=12, min_side_px=3)).size == (4, 3)
    with pytest.raises(ImageError, match="too large"):
        open_image(picture, ImageLimits(max_pixels=11))
    with pytest.raises(ImageError, match="too small: 4 x 3 pixels; expected at least 4"):
        open_image(picture, ImageLimits(min_side_px=4))
    with pytest.raises(ConfigError, match="max_pixels is 0"):
        ImageLimits(max_pixels=0)


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_a_file_that_is_no_picture_is_named_with_its_first_bytes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(data)

    with pytest.raises(ImageError) as caught:
        open_image(path)

    assert str(path) in str(caught.value)
    assert repr(data[:12]) in str(caught.value)
    assert "expected" in str(caught.value)


def test_a_missing_file_a_folder_and_a_wrong_source_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png does not exist; expected .* check the path"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match=r"source is a str: 'a\.png'.*wrap a file name in Path"):
        open_image("a.png")  # type: ignore[arg-type]


def test_a_picture_without_pixels_is_too_small() -> None:
    with pytest.raises(ImageError, match="too small: 0 x 5"):
        open_image(PILImage.new("RGB", (0, 5)))
    with pytest.raises(ImageError):
        open_image(png_that_claims(0, 5))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"])
def test_a_truncated_picture_is_an_image_error(format_: str, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    data = encoded(noise(64, 64), format_)
    path.write_bytes(data[: len(data) // 2])

    with pytest.raises(ImageError, match="cut"):
        open_image(path)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    format_=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_open_or_are_an_image_error(format_: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(noise(12, 12), format_))
    for place, value in damage:
        data[place % min(len(data), 200)] = value

    with contextlib.suppress(ImageError):  # any other exception fails the test
        opened = open_image(bytes(data), ImageLimits(max_pixels=10**6))

        assert opened.mode == "RGB"


def test_the_source_is_left_as_it_was() -> None:
    source = PILImage.new("RGB", (2, 2), RED)

    open_image(source).putpixel((0, 0), BLUE)

    assert source.getpixel((0, 0)) == RED


def test_data_urls_round_trip_and_others_are_refused() -> None:
    assert open_image(data_url_bytes(png_data_url(noise()))).tobytes() == noise().tobytes()
    for url in (
        "https://example.org/a.png",
        "file:///etc/passwd",
        "data:text/html;base64,AAAA",
        "data:image/png,x",
    ):
        with pytest.raises(ImageError, match="nothing is fetched"):
            data_url_bytes(url)
    with pytest.raises(ImageError, match="not valid base64"):
        data_url_bytes("data:image/png;base64,@@@@")
