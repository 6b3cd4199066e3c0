"""What one step computes on: documents -> positions, rows, micro-batches, pictures.

Only means are known before a run, so rows count as full: what packing leaves empty comes on top.
"""

import math
from dataclasses import dataclass

from dreamllm.errors import ConfigError
from dreamllm.sequence.layout import SlotSizes
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.plan.documents import DocumentShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A micro-batch, and how many of them make a step."""

    rows: int
    """B."""
    positions: int
    """T."""
    labels: int
    """L, at most: all of the text."""
    images_read: int
    """N."""
    images_drawn: int
    """M."""
    passes: float
    """Forward and backward passes of one GPU in a step; the last one may have fewer rows."""
    positions_per_step: float
    """Of one GPU, as are those below."""
    images_read_per_step: float
    images_drawn_per_step: float


def positions_of(document: DocumentShape, sizes: SlotSizes, *, condition_dropout: float) -> float:
    """Positions of a document, BOS and EOS and the unconditional sequences of its moved pictures included."""
    moved = condition_dropout * document.images_drawn * (1 + sizes.dream_length)
    slots = document.images_read * sizes.image_length + document.images_drawn * sizes.dream_length
    return 2 + document.text_tokens + slots + moved


def workload(
    objective: DreamLLMObjectiveConfig, document: DocumentShape, sizes: SlotSizes, *, gpus: int
) -> Workload:
    """What a step of a run comes to, its documents dealt evenly to the GPUs.

    Raises:
        ConfigError: a document is longer than a row, or there are more GPUs than documents in a step.
    """
    length = positions_of(document, sizes, condition_dropout=objective.condition_dropout)
    if length > objective.row_length:
        raise ConfigError(
            f"a document has {length:.0f} positions on the average but a row only {objective.row_length}; "
            "raise objective.row_length, or assume shorter documents"
        )
    if gpus > objective.documents_per_step:
        raise ConfigError(
            f"there are {gpus} GPUs for {objective.documents_per_step} documents a step; expected one "
            "document or more for each; raise objective.documents_per_step"
        )
    documents = objective.documents_per_step / gpus
    positions = objective.row_length if objective.packing else math.ceil(length)
    rows_per_step = documents * length / positions
    rows = min(objective.rows_per_micro_batch, math.ceil(rows_per_step))
    held = rows * positions / length  # documents of a pass
    return Workload(
        rows=rows,
        positions=positions,
        labels=math.ceil(held * document.text_tokens),
        images_read=math.ceil(held * document.images_read),
        images_drawn=math.ceil(held * document.images_drawn),
        passes=rows_per_step / rows,
        positions_per_step=documents * length,
        images_read_per_step=documents * document.images_read,
        images_drawn_per_step=documents * document.images_drawn,
    )
