"""Width and height of a picture, without decoding it."""

import pytest
from PIL import Image as PILImage

from dreamllm.document.images import image_size, open_image, png_bytes
from dreamllm.errors import ImageError


def test_the_size_is_that_of_the_file_and_no_pixel_is_decoded() -> None:
    data = png_bytes(PILImage.new("RGB", (7, 5)))

    assert image_size(data) == image_size(PILImage.new("RGB", (7, 5))) == (7, 5)
    assert image_size(data[:50]) == (7, 5)  # the header is whole, the pixels are missing
    with pytest.raises(ImageError, match="picture of 50 bytes"):
        open_image(data[:50])


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_a_size_that_cannot_be_read_is_the_error_of_opening(data: bytes) -> None:
    with pytest.raises(ImageError) as told:
        image_size(data)

    with pytest.raises(ImageError) as opened:
        open_image(data)
    assert str(told.value) == str(opened.value)
