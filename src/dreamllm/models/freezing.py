"""What trains and what is frozen, as data, and the table that shows it.

Stage I of DreamLLM trains the connectors, stages II and III the language model too. The vision encoder and
the image decoder are never trained (arXiv:2309.11499, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import nn

from dreamllm.errors import ConfigError
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.special_token_rows import SpecialTokenRows


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainable:
    """The groups of parameters that train; the defaults are those of stage I."""

    language_model: bool = False
    """The whole language model, embeddings and head included."""
    special_token_rows: bool = False
    """The rows of the bracket tokens alone, while the language model is frozen."""
    visual_projector: bool = True
    """From the vision encoder to the language model."""
    dream_queries: bool = True
    """The learned queries."""
    condition_projector: bool = True
    """From the language model to the image decoder."""

    def __post_init__(self) -> None:
        if self.language_model and self.special_token_rows:
            raise ConfigError(
                "language_model and special_token_rows are both to train, but the rows are part of the "
                "language model; set special_token_rows to false"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRow:
    """One line of the table: how much of a group trains."""

    group: str
    num_parameters: int
    num_trainable: int

    @property
    def num_frozen(self) -> int:
        """Parameters that stay as they are."""
        return self.num_parameters - self.num_trainable


def apply_trainable(
    model: DreamLLM, trainable: Trainable, *, special_token_ids: Sequence[int] = ()
) -> tuple[GroupRow, ...]:
    """Set `requires_grad` on every parameter and tell what trains.

    `special_token_ids` are the rows that train when the language model does not. They live in
    `model.special_token_rows` while they do, and go back into the tables when they no longer train.

    Raises:
        ConfigError: special token rows are to train but no ids are given.
    """
    if model.special_token_rows is not None:
        model.special_token_rows.detach()
        model.special_token_rows = None
    model.requires_grad_(False)
    if trainable.special_token_rows:
        model.special_token_rows = SpecialTokenRows(model.language_model, special_token_ids)
    for group in fields(trainable):
        module = getattr(model, group.name)
        if getattr(trainable, group.name) and module is not None:
            module.requires_grad_(True)
    return tuple(_row(name, module) for name, module in model.named_children())


def render_table(rows: Sequence[GroupRow]) -> str:
    """The table as text, one line a group and the sum below."""
    total = GroupRow(
        group="total",
        num_parameters=sum(row.num_parameters for row in rows),
        num_trainable=sum(row.num_trainable for row in rows),
    )
    lines = [f"{'group':<20} {'parameters':>16} {'trainable':>16} {'frozen':>16}"]
    lines += [
        f"{row.group:<20} {row.num_parameters:>16,} {row.num_trainable:>16,} {row.num_frozen:>16,}"
        for row in (*rows, total)
    ]
    return "\n".join(lines)


def _row(name: str, module: nn.Module) -> GroupRow:
    parameters = list(module.parameters())
    return GroupRow(
        group=name,
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
    )
