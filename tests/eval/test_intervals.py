"""Intervals against published values, simulation and the reference formula."""

import numpy as np
import pytest

from dreamllm.eval.intervals import bootstrap, f1, precision, recall, share, wilson


@pytest.mark.parametrize(
    ("right", "num", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(right: int, num: int, low: float, high: float) -> None:
    assert wilson(right, num) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_knows_nothing_without_items() -> None:
    low, high = wilson(3, 10)

    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 14)[0] == 0
    assert wilson(14, 14)[1] == 1


def test_the_bootstrap_of_single_items_agrees_with_wilson() -> None:
    outcomes = np.array([1] * 120 + [0] * 80)

    found = bootstrap(np.stack([outcomes, np.ones_like(outcomes)], axis=1), share)

    assert found == pytest.approx(wilson(120, 200), abs=0.01)


def test_assertions_that_hang_together_make_the_interval_wider() -> None:
    """40 documents of 10 assertions, each all right or all wrong, say no more than 40 items."""
    clustered = np.array([[10, 10]] * 24 + [[0, 10]] * 16)
    single = np.array([[1, 1]] * 240 + [[0, 1]] * 160)

    wide, narrow = bootstrap(clustered, share), bootstrap(single, share)

    assert wide[1] - wide[0] == pytest.approx((narrow[1] - narrow[0]) * np.sqrt(10), rel=0.15)


def test_a_perfect_score_is_no_certainty() -> None:
    assert bootstrap(np.array([[3, 3]] * 10), share) == wilson(10, 10)
    assert bootstrap(np.array([[0, 3]] * 10), share) == wilson(0, 10)
    assert bootstrap(np.array([[3, 3]] * 10 + [[0, 0]] * 5), share) == wilson(10, 10)


def test_the_same_seed_gives_the_same_interval() -> None:
    # 97 documents of different lengths: shares lie so close that two resamplings hardly end on the same ones
    counts = np.array([[n % 7, 7 + n % 5] for n in range(97)])

    assert bootstrap(counts, share, seed=1) == bootstrap(counts, share, seed=1)
    assert bootstrap(counts, share, seed=1) != bootstrap(counts, share, seed=2)


def test_precision_recall_and_f1_are_the_textbook_fractions() -> None:
    sums = np.array([[6.0, 2.0, 4.0]])  # 6 hits, 2 false claims, 4 misses

    assert precision(sums) == pytest.approx(6 / 8)
    assert recall(sums) == pytest.approx(6 / 10)
    assert f1(sums) == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert np.isnan(precision(np.array([[0.0, 0.0, 4.0]]))).all()
