import numpy as np
import pytest

from dreamllm.errors import LayoutError
from dreamllm.sequence.layout import Slots, SlotSizes

SIZES = SlotSizes(num_visual_tokens=2, num_dream_queries=3)


def slots(*, length: int, image_starts: tuple[int, ...] = (), dream_starts: tuple[int, ...] = ()) -> Slots:
    return Slots(sizes=SIZES, length=length, image_starts=image_starts, dream_starts=dream_starts)


def test_brackets_count_as_positions() -> None:
    paper = SlotSizes(num_visual_tokens=256, num_dream_queries=64)

    assert (paper.image_length, paper.dream_length) == (258, 66)
    assert paper.image_length + paper.dream_length == 324


def test_positions_of_a_drawn_and_fed_back_picture() -> None:
    # <s> <dream_start> q q q <dream_end> <im_start> v v <im_end> </s>
    layout = slots(length=11, dream_starts=(2,), image_starts=(7,))

    np.testing.assert_array_equal(layout.dream_positions(), [[2, 3, 4]])
    np.testing.assert_array_equal(layout.image_positions(), [[7, 8]])


def test_a_sequence_without_pictures_has_empty_tables() -> None:
    layout = slots(length=3)

    assert layout.image_positions().shape == (0, 2)
    assert layout.dream_positions().shape == (0, 3)
    assert layout.dream_positions().dtype == np.int64


@pytest.mark.parametrize(
    ("image_starts", "dream_starts", "length"),
    [
        ((0,), (), 5),  # no room for the bracket before
        ((3,), (), 5),  # no room for the bracket after
        ((2,), (5,), 12),  # one bracket between two slots, two are needed
        ((2, 3), (), 12),  # overlap
    ],
)
def test_slots_without_room_for_their_brackets_are_refused(
    image_starts: tuple[int, ...], dream_starts: tuple[int, ...], length: int
) -> None:
    with pytest.raises(LayoutError, match="bracket token before and after"):
        slots(length=length, image_starts=image_starts, dream_starts=dream_starts)


def test_slots_out_of_reading_order_are_refused() -> None:
    with pytest.raises(LayoutError, match="not in reading order"):
        slots(length=20, image_starts=(10, 2))
