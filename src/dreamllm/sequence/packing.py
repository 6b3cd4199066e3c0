"""Several documents in one row, several rows in one batch.

Packing wastes no positions on padding and changes no result: positions start again in every document, a
document sees only itself (`Batch.attention_mask`), and a label is predicted from the position before it in
its own document.
"""

import heapq
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from torch import Tensor

from dreamllm.errors import LayoutError
from dreamllm.sequence.batch import Batch, Segments, Sequence
from dreamllm.sequence.cached_pictures import CachedPictures
from dreamllm.sequence.pixels import Pixels

_ROW_MULTIPLE = 8  # row lengths are multiples of it, which matrix units like


def pack(sequences: SequenceOf[Sequence], max_length: int, *, enabled: bool = True) -> list[list[Sequence]]:
    """Put sequences into few rows of at most `max_length` positions, the longest of them as short as it goes.

    First-fit decreasing says how many rows there are. A batch is padded to its longest row, so they are then
    filled evenly, the longest sequence first and each into the emptiest row, where that makes the longest
    row shorter. The result depends on the lengths alone. Sequences keep their order within a row, and rows
    are ordered by their first sequence. With `enabled=False` every sequence has a row of its own, for
    comparison.

    Raises:
        LayoutError: a sequence is longer than a row.
    """
    lengths = [len(sequence.input_ids) for sequence in sequences]
    for sequence, length in zip(sequences, lengths, strict=True):
        if length > max_length:
            raise LayoutError(
                f"document {sequence.document_id!r} has {length} positions, but a row has {max_length}; "
                "expected no document longer than a row; shorten it or make the rows longer"
            )
    if not enabled or not sequences:
        return [[sequence] for sequence in sequences]
    first_fit = _first_fit(lengths, max_length)
    even = _filled_evenly(lengths, len(first_fit))
    rows = min(first_fit, even, key=lambda rows: max(sum(lengths[index] for index in row) for row in rows))
    return [[sequences[index] for index in row] for row in sorted(sorted(row) for row in rows)]


def _first_fit(lengths: list[int], max_length: int) -> list[list[int]]:
    """Indices by row: the longest first, each into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths):
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max_length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def _filled_evenly(lengths: list[int], num_rows: int) -> list[list[int]]:
    """Indices by row: the longest first, each into the emptiest of so many rows."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    emptiest = [(0, row) for row in range(num_rows)]
    for index in _longest_first(lengths):
        used, row = emptiest[0]
        heapq.heapreplace(emptiest, (used + lengths[index], row))
        rows[row].append(index)
    return rows


def _longest_first(lengths: list[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def collate(rows: SequenceOf[SequenceOf[Sequence]], pad_id: int) -> Batch:
    """Lay rows of sequences out as one batch, padded on the right to the longest row and a multiple of 8.

    Pictures keep reading order: row by row, document by document.

    Raises:
        LayoutError: there is no sequence, or sequences have slots or pictures of different sizes.
    """
    sequences = [sequence for row in rows for sequence in row]
    _check_alike(sequences)
    row_lengths = [sum(len(sequence.input_ids) for sequence in row) for row in rows]
    size = -(-max(row_lengths) // _ROW_MULTIPLE) * _ROW_MULTIPLE
    lengths = np.asarray([len(sequence.input_ids) for sequence in sequences])
    starts = np.asarray(
        [
            row_index * size + before
            for row_index, row in enumerate(rows)
            for before in _counts_before(len(sequence.input_ids) for sequence in row)
        ]
    )
    number_in_row = np.asarray([number for row in rows for number, _ in enumerate(row, start=1)])
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.repeat(starts, lengths) + within  # flattened (B*T) position of every real token

    input_ids = np.full(len(rows) * size, pad_id, dtype=np.int64)
    position_ids = np.zeros(len(rows) * size, dtype=np.int64)
    document_index = np.zeros(len(rows) * size, dtype=np.int64)
    all_ids = np.concatenate([sequence.input_ids for sequence in sequences])
    is_label = np.concatenate([sequence.is_label for sequence in sequences])
    input_ids[places] = all_ids
    position_ids[places] = within
    document_index[places] = np.repeat(number_in_row, lengths)
    return Batch(
        input_ids=torch.from_numpy(input_ids.reshape(len(rows), size)),
        position_ids=torch.from_numpy(position_ids.reshape(len(rows), size)),
        document_index=torch.from_numpy(document_index.reshape(len(rows), size)),
        label_positions=torch.from_numpy(places[is_label] - 1),
        labels=torch.from_numpy(all_ids[is_label]),
        image_slots=_moved([sequence.slots.image_positions() for sequence in sequences], starts),
        dream_slots=_moved([sequence.slots.dream_positions() for sequence in sequences], starts),
        vision_pixels=Pixels.cat([sequence.vision_pixels for sequence in sequences]),
        target_pixels=Pixels.cat([sequence.target_pixels for sequence in sequences]),
        target_dreams=_target_dreams(sequences),
        label_documents=_owners(int(sequence.is_label.sum()) for sequence in sequences),
        target_documents=_owners(len(sequence.target_dreams) for sequence in sequences),
        document_ids=tuple(sequence.document_id for sequence in sequences),
        sources=tuple(sequence.source for sequence in sequences),
        noise_seeds=tuple(seed for sequence in sequences for seed in sequence.noise_seeds),
        segments=_segments(rows, size),
        cached_images=CachedPictures.cat(
            [(sequence.cached_images, len(sequence.slots.image_starts)) for sequence in sequences]
        ),
        cached_targets=CachedPictures.cat(
            [(sequence.cached_targets, len(sequence.target_dreams)) for sequence in sequences]
        ),
    )


def _moved(positions: list[np.ndarray], starts: np.ndarray) -> Tensor:
    """Positions in sequences as positions in the batch."""
    return torch.from_numpy(np.concatenate([at + start for at, start in zip(positions, starts, strict=True)]))


def _target_dreams(sequences: list[Sequence]) -> Tensor:
    """For each target, its row among the dream slots of the batch."""
    before = _counts_before(len(sequence.slots.dream_starts) for sequence in sequences)
    rows = [
        first + dream
        for first, sequence in zip(before, sequences, strict=True)
        for dream in sequence.target_dreams
    ]
    return torch.tensor(rows, dtype=torch.int64)


def _owners(counts: Iterable[int]) -> Tensor:
    """The number of its sequence, for everything that sequences have so many of."""
    repeats = torch.tensor(list(counts), dtype=torch.int64)
    return torch.arange(len(repeats)).repeat_interleave(repeats)


def _segments(rows: SequenceOf[SequenceOf[Sequence]], size: int) -> Segments:
    """The documents of every row, then its padding, row after row."""
    lengths: list[int] = []
    for row in rows:
        lengths += [len(sequence.input_ids) for sequence in row]
        padding = size - sum(len(sequence.input_ids) for sequence in row)
        lengths += [padding] if padding else []
    return Segments(torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32), max(lengths))


def _counts_before(counts: Iterable[int]) -> list[int]:
    """Running total before each entry."""
    before = [0]
    for count in counts:
        before.append(before[-1] + count)
    return before[:-1]


def _check_alike(sequences: list[Sequence]) -> None:
    if not sequences:
        raise LayoutError("a batch of 0 sequences has no shape; expected at least 1; leave out empty batches")
    kinds = {(s.slots.sizes, s.vision_pixels.kind, s.target_pixels.kind) for s in sequences}
    if len(kinds) > 1:
        raise LayoutError(
            f"sequences of {len(kinds)} kinds cannot share a batch: slot sizes and picture shapes are "
            f"{kinds}; expected one kind; encode them with one encoder"
        )
    drawn = [sequence for sequence in sequences if sequence.target_dreams]
    seeded = [sequence for sequence in drawn if sequence.noise_seeds]
    if len(seeded) not in (0, len(drawn)):
        raise LayoutError(
            f"{len(seeded)} of {len(drawn)} sequences with targets have noise seeds; expected all or none; "
            "give a seed to every target, or leave the noise to a generator"
        )
