"""Orders that are computed: bijections, well mixed, and local where they should be."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamllm.data.shuffle import GroupedOrder, Permutation


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**40), st.integers(0, 2**40))
def test_every_value_stands_at_one_place(size: int, seed: int, epoch: int) -> None:
    permutation = Permutation(size, seed, epoch)

    assert sorted(permutation[place] for place in range(size)) == list(range(size))


def test_an_order_is_a_function_of_its_key() -> None:
    orders = [
        [Permutation(50, *key)[place] for place in range(50)] for key in [(1, 2), (1, 2), (2, 1), (1, 3)]
    ]

    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("size", [1000, 4096, 5000])
def test_an_order_is_well_mixed(size: int) -> None:
    """Statistics of a random permutation, each within five of its standard deviations."""
    order = np.array([Permutation(size, 7, 1)[place] for place in range(size)])

    places = np.arange(size)
    correlation = np.corrcoef(places, order)[0, 1]
    assert abs(correlation) < 5 / np.sqrt(size)
    # neighbours: their distance has mean (n + 1) / 3 and variance about n^2 / 18
    distance = np.abs(np.diff(order)).mean()
    assert abs(distance - (size + 1) / 3) < 5 * size / np.sqrt(18 * size)
    # fixed points: Poisson of mean 1
    assert (order == places).sum() <= 7
    # descents: mean (n - 1) / 2, variance (n + 1) / 12
    assert abs((np.diff(order) < 0).sum() - (size - 1) / 2) < 5 * np.sqrt((size + 1) / 12)
    # a tenth of the places draws from every tenth of the values
    counts = np.bincount(order[: size // 10] * 10 // size, minlength=10)
    assert ((counts - size / 100) ** 2 / (size / 100)).sum() < 35  # chi-squared, 9 degrees: p < 1e-4


def test_over_keys_every_value_is_equally_likely_at_a_place() -> None:
    counts = np.bincount([Permutation(10, key)[3] for key in range(2000)], minlength=10)

    assert ((counts - 200) ** 2 / 200).sum() < 35


def test_a_large_order_costs_no_memory() -> None:
    tracemalloc.start()

    drawn = {Permutation(10**9, 5)[place] for place in range(100)}

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 100
    assert peak < 100_000


def test_a_place_outside_is_an_error() -> None:
    for place in (-1, 3):
        with pytest.raises(IndexError):
            Permutation(3, 0)[place]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 2**32))
def test_grouped_orders_hold_every_document_once(sizes: list[int], window: int, seed: int) -> None:
    bounds = np.concatenate([[0], np.cumsum(sizes)])

    order = GroupedOrder(bounds, seed, window=window)

    assert sorted(order[place] for place in range(bounds[-1])) == list(range(bounds[-1]))


def test_documents_of_a_window_stay_together_and_are_mixed() -> None:
    bounds = np.arange(0, 1001, 10)  # a hundred groups of ten
    order = GroupedOrder(bounds, 3, window=5)

    groups = np.array([order[place] for place in range(1000)]) // 10

    windows = groups.reshape(20, 50)
    assert all(len(set(window)) == 5 for window in windows)  # five shards are open at a time
    assert (np.diff(groups) != 0).mean() > 0.7  # neighbours come from one group in about a fifth of places
    assert sorted(set(windows[0])) != list(range(5))
    within = {
        tuple(np.argsort(np.unique(window, return_inverse=True)[1], kind="stable")) for window in windows
    }
    assert len(within) == 20  # every window has an order of its own
