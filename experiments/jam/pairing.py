"""Paired comparisons of arms: the same documents, the same seeds, a bootstrap over both."""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is certain."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class Results:
    """Every seed of one arm."""

    name: str
    records: tuple[dict, ...]

    def losses(self, kind: str, when: str = "end") -> np.ndarray | None:
        """(seeds, documents, 2): summed nats and tokens; None where the model has no such loss."""
        found = [record[when]["losses"].get(kind) for record in self.records]
        return None if None in found else np.asarray(found, dtype=float)

    def drawn(self, when: str = "end") -> np.ndarray | None:
        """(seeds, pictures, 2): attributes right out of 3, wholly right."""
        found = np.asarray([record[when]["drawn"] for record in self.records], dtype=float)
        return found if found.size else None

    @property
    def parameters(self) -> int:
        """Of the language model."""
        return int(self.records[0]["parameters"])


def read_results(path: Path) -> dict[str, Results]:
    """Every arm that has at least one seed: of the folder of `run.py`, or of a file of `write_results`."""
    if path.is_dir():
        texts = [each.read_text(encoding="utf-8") for each in path.glob("arms/*/seed-*/result.json")]
    else:
        texts = gzip.decompress(path.read_bytes()).decode().splitlines()
    records = sorted(map(json.loads, texts), key=lambda record: (record["arm"], record["seed"]))
    found: dict[str, list[dict]] = {}
    for record in records:
        found.setdefault(record["arm"], []).append(record)
    return {name: Results(name, tuple(records)) for name, records in found.items()}


def write_results(results: Mapping[str, Results], path: Path) -> None:
    """All numbers of all arms in one small file, from which a report can be made again."""
    records = (record for arm in results.values() for record in arm.records)
    lines = (json.dumps(_rounded(record), separators=(",", ":")) for record in records)
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def _rounded(value: Any) -> Any:
    """Four decimals are a thousandth of what intervals are wide."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def mean_loss(losses: np.ndarray) -> Estimate:
    """Nats a token."""
    return bootstrap(losses, lambda sums: sums[..., 0] / sums[..., 1])


def mean_drawn(drawn: np.ndarray, column: int) -> Estimate:
    """Share of attributes (column 0, out of 3) or of whole pictures (column 1)."""
    values = drawn[..., column] / (3 if column == 0 else 1)
    return bootstrap(np.stack([values, np.ones_like(values)], axis=-1), lambda s: s[..., 0] / s[..., 1])


def difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Nats a token of the first arm more than the second, on the same documents and seeds."""
    seeds = min(len(first), len(second))
    both = np.concatenate([first[:seeds], second[:seeds]], axis=-1)
    return bootstrap(both, lambda s: s[..., 0] / s[..., 1] - s[..., 2] / s[..., 3])


def bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Of (seeds, documents, columns): the statistic of sums over documents, averaged over seeds.

    Documents are drawn again, and seeds where there are several.
    """
    rng = np.random.default_rng(0)
    num_seeds, num_documents, _ = values.shape
    centre = float(statistic(values.sum(axis=1)).mean())
    draws = np.empty(NUM_RESAMPLES)
    for number in range(NUM_RESAMPLES):
        weights = rng.multinomial(num_documents, np.full(num_documents, 1 / num_documents))
        seeds: Sequence[int] = rng.integers(num_seeds, size=num_seeds)
        draws[number] = statistic(np.einsum("sdc,d->sc", values[seeds], weights)).mean()
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(centre, float(low), float(high))
