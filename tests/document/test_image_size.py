"""Width and height of a picture, without decoding it."""

import pytest
from PIL import Image as PILImage

from dreamllm.document.images import image_size, open_image, png_bytes
from dreamllm.errors import ImageError


def test_the_size_is_that_of_the_file_and_no_pixel_is_decoded() -> None:
    picture = PILImage.effect_noise((70, 50), 80).convert("RGB")
    data = png_bytes(picture)
    cut = data[: len(data) // 2]

    assert image_size(data) == image_size(picture) == (70, 50)
    assert image_size(cut) == (70, 50)  # the header is whole, pixels are missing
    with pytest.raises(ImageError, match=f"picture of {len(cut)} bytes"):
        open_image(cut)


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_a_size_that_cannot_be_read_is_the_error_of_opening(data: bytes) -> None:
    with pytest.raises(ImageError) as told:
        image_size(data)

    with pytest.raises(ImageError) as opened:
        open_image(data)
    assert str(told.value) == str(opened.value)
