"""Sheets of pictures for people: labelled rows, enlarged, framed by a verdict where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

SCALE = 2
FRAME_PX = 4
GAP_PX = 6
LABEL_PX = 190
PAPER, INK = (246, 244, 238), (40, 38, 34)
RIGHT, WRONG = (34, 150, 70), (206, 46, 46)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """Pictures beside each other."""

    label: str
    pictures: Sequence[PILImage.Image]
    verdicts: Sequence[bool] = ()
    """Green or red frames, one a picture; none without them."""


def draw_sheet(rows: Sequence[SheetRow]) -> PILImage.Image:
    """The rows below each other, each picture at twice its size."""
    tallest = max(picture.height for row in rows for picture in row.pictures)
    widest = max(picture.width for row in rows for picture in row.pictures)
    cell_width, cell_height = (side * SCALE + 2 * FRAME_PX + GAP_PX for side in (widest, tallest))
    columns = max(len(row.pictures) for row in rows)
    sheet = PILImage.new(
        "RGB", (LABEL_PX + columns * cell_width + GAP_PX, len(rows) * cell_height + GAP_PX), PAPER
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for number, row in enumerate(rows):
        top = GAP_PX + number * cell_height
        pen.text((2 * GAP_PX, top + cell_height // 2), row.label, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(row.pictures):
            left = LABEL_PX + column * cell_width
            size = (picture.width * SCALE, picture.height * SCALE)
            if row.verdicts:
                corner = (left + size[0] + 2 * FRAME_PX - 1, top + size[1] + 2 * FRAME_PX - 1)
                pen.rectangle((left, top, *corner), fill=RIGHT if row.verdicts[column] else WRONG)
            enlarged = picture.resize(size, PILImage.Resampling.NEAREST)
            sheet.paste(enlarged, (left + FRAME_PX, top + FRAME_PX))
    return sheet
