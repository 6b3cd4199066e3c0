"""Counts and distributions, against numbers counted by hand or by NumPy."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.data.measures import MeasureOptions, measure
from dreamllm.data.statistics import Histogram, Statistics
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import FaultError


def picture(width: int, height: int, gray: int = 100) -> PILImage.Image:
    return PILImage.new("RGB", (width, height), (gray, gray, gray))


def counted(*documents: Document | FaultError) -> Statistics:
    statistics = Statistics(remembered=100)
    options = MeasureOptions(decode=True)
    for index, document in enumerate(documents):
        statistics.add(index, document if isinstance(document, FaultError) else measure(document, options))
    return statistics


def test_a_histogram_is_exact_for_small_numbers_and_within_a_sixteenth_for_large_ones() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.integers(0, 32, 1000), rng.lognormal(6, 1.5, 1000).astype(np.int64)

    for values, slack in ((small, 0.0), (large, 1 / 16)):
        histogram = Histogram()
        for value in values:
            histogram.add(int(value))
        assert (histogram.count, histogram.total) == (1000, int(values.sum()))
        assert (histogram.smallest, histogram.largest) == (values.min(), values.max())
        for share in (0.05, 0.5, 0.95, 1.0):
            true = int(np.quantile(values, share, method="inverted_cdf"))
            assert true * (1 - slack) <= histogram.quantile(share) <= true


def test_octaves_have_no_gaps_and_hold_everything() -> None:
    histogram = Histogram()
    for value in (0, 0, 1, 3, 16, 31, 33, 63):
        histogram.add(value)

    assert histogram.octaves() == [
        (0, 0, 2),
        (1, 1, 1),
        (2, 3, 1),
        (4, 7, 0),
        (8, 15, 0),
        (16, 31, 2),
        (32, 63, 2),
    ]


def test_nothing_has_a_histogram_without_rows() -> None:
    histogram = Histogram()

    assert (histogram.octaves(), histogram.mean, histogram.quantile(0.5)) == ([], 0.0, 0)


def test_documents_pictures_and_roles_are_counted() -> None:
    statistics = counted(
        Document(parts=(Text(text="a b"), Image(source=picture(10, 10)))),
        Document(parts=(Text(text="a b c", learn=False), Image(source=picture(50, 10), learn=False))),
        Document(parts=(Text(text="d", role="user"), Text(text="e", role="assistant"))),
        Document(parts=()),
    )

    assert (statistics.num_documents, statistics.num_conversations, statistics.num_empty) == (4, 1, 1)
    assert statistics.num_unlearned == 2  # the second, and the empty one
    assert (statistics.pictures.total, statistics.num_drawn) == (2, 1)
    assert statistics.picture_sizes == {"about square": 1, "longer than 4 : 1": 1}
    assert statistics.roles == {"user": 1, "assistant": 1}
    assert statistics.words.total == 2 + 3 + 1 + 1


def test_faults_are_counted_by_kind_with_three_examples_each() -> None:
    statistics = counted(
        *(FaultError("bad_json", f"line {n}") for n in range(5)), FaultError("bad_part", "x")
    )

    assert statistics.faults == {"bad_json": 5, "bad_part": 1}
    assert statistics.fault_examples["bad_json"] == [(0, "line 0"), (1, "line 1"), (2, "line 2")]
    assert statistics.num_documents == 0


def test_repetitions_are_told_apart() -> None:
    text = "a long enough sentence about a red circle on a gray background, told at some length for a test"
    statistics = counted(
        Document(parts=(Text(text=text), Image(source=picture(64, 64)))),
        Document(parts=(Text(text=text), Image(source=picture(64, 64)))),  # exactly
        Document(parts=(Text(text=text + "!"), Image(source=picture(32, 32)))),  # nearly
        Document(parts=(Text(text=text), Image(source=picture(64, 64, gray=200)))),  # the text alone
        Document(
            parts=(Text(text="quite something else"), Image(source=picture(64, 64)))
        ),  # the picture alone
    )

    assert statistics.repeated == {
        "documents, exactly": 1,
        "texts, exactly": 2,
        "pictures, exactly": 2,
        "documents, nearly": 1,
    }
    assert statistics.repeated_examples == {"documents, nearly": [(2, 0)]}


def test_memory_does_not_grow_with_the_number_of_documents() -> None:
    statistics = Statistics(remembered=100)
    options = MeasureOptions()

    def count(numbers: range) -> None:
        for number in numbers:
            text = f"{number} and something else about {number * 7919}" * (1 + number % 50)
            statistics.add(number, measure(Document(parts=(Text(text=text),)), options))
            statistics.add(number, FaultError("bad_json", f"line {number}"))

    count(range(300))
    tracemalloc.start()
    try:
        count(range(300, 800))
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert grown < 20_000  # a list of five hundred short texts has more


@pytest.mark.parametrize("num", [0, 3])
def test_the_report_is_json(num: int) -> None:
    report = counted(*(Document(parts=(Text(text=f"number {n}"),)) for n in range(num))).to_dict()

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["documents"] == num
