from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from torch.testing import assert_close

from dreamllm.train.objectives.pictures import save_grid, to_pixels


def test_pictures_become_channels_first_numbers_from_minus_one_to_one() -> None:
    picture = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    picture[0, 1, 2] = (255, 51, 0)

    pixels = to_pixels(picture)

    assert pixels.shape == (1, 3, 2, 3)
    assert_close(pixels[0, :, 1, 2], torch.tensor([1.0, -0.6, -1.0]))
    assert_close(pixels[0, :, 0, 0], torch.full((3,), -1.0))


def test_a_grid_shows_rows_of_pictures_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    black, white = (np.full((2, 64, 64, 3), level, dtype=np.uint8) for level in (0, 255))

    save_grid([black, white], tmp_path)

    with PILImage.open(tmp_path / "pictures.png") as image:
        assert image.size == (9 * 2 * 66, 9 * 2 * 66)  # 9 * 132 = 1188 of 1200 px
        assert image.getpixel((0, 0)) == (0, 0, 0)
        assert image.getpixel((9 * 66, 9 * 66)) == (255, 255, 255)
        assert image.getpixel((9 * 65, 0)) == (90, 90, 90)
