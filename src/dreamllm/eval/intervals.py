"""95 % intervals: Wilson's for independent yes-or-no items, the bootstrap over documents for the rest."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

Z_95 = 1.959963984540054
NUM_RESAMPLES = 2000

Statistic = Callable[[Float[np.ndarray, "R F"]], Float[np.ndarray, " R"]]
"""A score of sums of counts, for many resamples at once; nan where it is not defined."""


def wilson(right: int, num: int) -> tuple[float, float]:
    """The interval of a share of independent items (Wilson 1927); sound for small counts, and for 0 and 1."""
    if num == 0:
        return 0.0, 1.0
    share, weight = right / num, Z_95**2 / num
    middle = (share + weight / 2) / (1 + weight)
    half = Z_95 / (1 + weight) * np.sqrt(share * (1 - share) / num + weight / (4 * num))
    # At 0 and 1 the interval ends there exactly; rounding would put the share a hair outside.
    return (0.0 if right == 0 else float(middle - half)), (1.0 if right == num else float(middle + half))


def bootstrap(counts: Int[np.ndarray, "N F"], statistic: Statistic, *, seed: int = 0) -> tuple[float, float]:
    """The interval of a score of summed counts: whole documents (rows) are drawn again, with replacement.

    Where every document says the same, resampling would claim certainty, so Wilson's interval for that many
    documents stands in for it, with a score of 0 or 1.
    """
    counts = np.asarray(counts, dtype=float)
    value = float(statistic(counts.sum(axis=0, keepdims=True))[0])
    informative = counts[counts.sum(axis=1) > 0]
    if value in (0.0, 1.0):
        return wilson(int(value) * len(informative), len(informative))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=NUM_RESAMPLES)
    values = statistic(draws @ counts)
    low, high = np.nanquantile(values, [0.025, 0.975])
    return min(value, float(low)), max(value, float(high))


def share(sums: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, " R"]:
    """Right over all; columns are right, all."""
    return _divide(sums[:, 0], sums[:, 1])


def precision(sums: Float[np.ndarray, "R 3"]) -> Float[np.ndarray, " R"]:
    """Hits over claims; columns are hits, false claims, misses."""
    return _divide(sums[:, 0], sums[:, 0] + sums[:, 1])


def recall(sums: Float[np.ndarray, "R 3"]) -> Float[np.ndarray, " R"]:
    """Hits over what was there; columns as in `precision`."""
    return _divide(sums[:, 0], sums[:, 0] + sums[:, 2])


def f1(sums: Float[np.ndarray, "R 3"]) -> Float[np.ndarray, " R"]:
    """Harmonic mean of precision and recall; columns as in `precision`."""
    return _divide(2 * sums[:, 0], 2 * sums[:, 0] + sums[:, 1] + sums[:, 2])


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)
