"""Keys and values of rows that move at different pace.

While one row writes a word, another reads its prompt and a third feeds its dream queries. `RowCache` is a
stock `transformers` cache whose layers write every row's new entries at that row's own positions; with a 4-D
mask and explicit position ids each row gets the hidden states of a full forward pass over it alone.

Two readers feed chunks of embeddings to a model: `CachedReader` keeps keys and values, `PrefixReader`
keeps embeddings and reads everything again at each step. They must agree: the second measures the first.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from dreamllm.models.language_model import num_cache_layers, run_decoder

Chunks = dict[int, Float[Tensor, "T D"]]
"""New embeddings of some rows, by row number; lengths may differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WritePlan:
    """Where the entries of one forward pass go. All indices are int64 tensors on the model's device."""

    rows: Tensor | slice
    """(A,) cache row of every row of the pass; a slice where they are neighbours, which needs no copy."""
    entries: tuple[Tensor, Tensor]
    """(row of the pass, position in the chunk) of every real entry; padding is left out."""
    targets: tuple[Tensor, Tensor]
    """(cache row, position in the cache) where that entry is written."""
    length: int
    """Cache positions that the pass may look at."""


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer, `(rows, heads, max_length, head_dim)`, allocated at the first update."""

    is_sliding = False

    def __init__(self, num_rows: int, max_length: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.max_length = max_length
        self.plan: WritePlan | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros; a masked position must still hold a finite value."""
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new entries by the plan and return what the rows of this pass may look at."""
        assert self.plan is not None, "RowCache.set_plan comes before every forward pass"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask spans the first `plan.length` positions."""
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        """The longest row of the pass; positions are given to the model, not derived from this."""
        return 0 if self.plan is None else self.plan.length

    def get_max_length(self) -> int:
        """Positions allocated per row."""
        return self.max_length

    def _allocate(self, states: Tensor) -> Tensor:
        _, num_heads, _, head_dim = states.shape
        return states.new_zeros(self.num_rows, num_heads, self.max_length, head_dim)

    def _write(self, store: Tensor, states: Tensor) -> Tensor:
        assert self.plan is not None
        target_rows, target_positions = self.plan.targets
        store[target_rows, :, target_positions] = states.transpose(1, 2)[self.plan.entries]
        seen = store[:, :, : self.plan.length]
        rows = self.plan.rows
        return seen[rows] if isinstance(rows, slice) else seen.index_select(0, rows)


class RowCache(Cache):
    """A cache whose rows have their own lengths. Call `set_plan` before every forward pass."""

    def __init__(self, *, num_layers: int, num_rows: int, max_length: int) -> None:
        super().__init__(layers=[RowLayer(num_rows, max_length) for _ in range(num_layers)])

    def set_plan(self, plan: WritePlan) -> None:
        """Say where the next forward pass writes."""
        for layer in self.layers:
            layer.plan = plan


class Reader(Protocol):
    """Feeds chunks of embeddings to rows of a model."""

    def read(self, chunks: Chunks) -> Chunks:
        """Append a chunk to each named row and return the final hidden states at its positions."""
        ...

    def release(self, row: int) -> None:
        """Forget a row, so that the next document can use it."""
        ...


class CachedReader:
    """Reads every position once."""

    def __init__(self, language_model: PreTrainedModel, *, num_rows: int, max_length: int) -> None:
        self.language_model = language_model
        self.max_length = max_length
        self.lengths = [0] * num_rows
        self.cache = RowCache(
            num_layers=num_cache_layers(language_model), num_rows=num_rows, max_length=max_length
        )

    def read(self, chunks: Chunks) -> Chunks:
        """Append a chunk to each named row and return the final hidden states at its positions."""
        rows = sorted(chunks)
        embeds, sizes = _pad([chunks[row] for row in rows])
        starts = torch.tensor([self.lengths[row] for row in rows])
        steps = torch.arange(embeds.shape[1])
        is_real = steps < sizes[:, None]  # (A, T)
        positions = starts[:, None] + steps.minimum(sizes[:, None] - 1)  # padding repeats the last position
        entry_rows, entry_steps = is_real.nonzero(as_tuple=True)
        cache_rows = torch.tensor(rows)
        device = embeds.device
        are_neighbours = rows[-1] - rows[0] == len(rows) - 1
        plan = WritePlan(
            rows=slice(rows[0], rows[-1] + 1) if are_neighbours else cache_rows.to(device),
            entries=(entry_rows.to(device), entry_steps.to(device)),
            targets=(cache_rows[entry_rows].to(device), positions[entry_rows, entry_steps].to(device)),
            length=int((starts + sizes).max()),
        )
        self.cache.set_plan(plan)
        mask = torch.arange(plan.length) <= positions[:, :, None]  # (A, T, length)
        hidden = run_decoder(
            self.language_model, embeds, mask[:, None].to(device), positions.to(device), self.cache
        )
        for row, size in zip(rows, sizes.tolist(), strict=True):
            self.lengths[row] += size
        return {row: hidden[i, :size] for i, (row, size) in enumerate(zip(rows, sizes.tolist(), strict=True))}

    def release(self, row: int) -> None:
        """Forget a row; its entries stay behind the mask until they are overwritten."""
        self.lengths[row] = 0


class PrefixReader:
    """Reads all positions of a row again at every step. Slow; the measure that the cache is held to."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        self.language_model = language_model
        self.prefixes: Chunks = {}

    def read(self, chunks: Chunks) -> Chunks:
        """Append a chunk to each named row and return the final hidden states at its positions."""
        rows = sorted(chunks)
        for row in rows:
            old = self.prefixes.get(row)
            self.prefixes[row] = chunks[row] if old is None else torch.cat([old, chunks[row]])
        embeds, sizes = _pad([self.prefixes[row] for row in rows])
        size = embeds.shape[1]
        causal = torch.ones(size, size, dtype=torch.bool, device=embeds.device).tril()
        hidden = run_decoder(
            self.language_model,
            embeds,
            causal.expand(len(rows), 1, size, size),
            torch.arange(size, device=embeds.device).expand(len(rows), size),
        )
        return {
            row: hidden[i, length - chunks[row].shape[0] : length]
            for i, (row, length) in enumerate(zip(rows, sizes.tolist(), strict=True))
        }

    def release(self, row: int) -> None:
        """Forget a row."""
        self.prefixes.pop(row, None)


def _pad(chunks: list[Float[Tensor, "T D"]]) -> tuple[Float[Tensor, "A T D"], Tensor]:
    """Right-padded chunks and their (A,) true lengths, the lengths on the CPU."""
    sizes = torch.tensor([chunk.shape[0] for chunk in chunks])
    return nn.utils.rnn.pad_sequence(chunks, batch_first=True), sizes
