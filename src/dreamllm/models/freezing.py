"""What trains and what is frozen, set in a model, and the table that shows it.

The groups are those of `trainable.py`. The vision encoder and the VAE never train.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.lora import add_lora, lora_parameters, merge_in_place
from dreamllm.models.quantization import num_weights
from dreamllm.models.special_token_rows import SpecialTokenRows
from dreamllm.models.trainable import Trainable


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
    `model.special_token_rows` while they do, and go back into the tables when they no longer train. So do
    adapters: those of an earlier call are merged first, and new ones start at zero.

    Raises:
        ConfigError: special token rows are to train but no ids are given, or adapters fit no layer.
        MissingExtraError: adapters are to train and peft is not installed.
    """
    _undo(model)
    model.requires_grad_(False)
    if trainable.special_token_rows:
        model.special_token_rows = SpecialTokenRows(model.language_model, special_token_ids)
    if trainable.language_model_lora is not None:
        add_lora(model.language_model, trainable.language_model_lora)
    if trainable.image_decoder_lora is not None:
        add_lora(model.image_decoder.denoiser, trainable.image_decoder_lora)
    wholes = (
        (model.language_model, trainable.language_model),
        (model.special_token_rows, trainable.special_token_rows),
        (model.visual_projector, trainable.visual_projector),
        (model.dream_queries, trainable.dream_queries),
        (model.condition_projector, trainable.condition_projector),
        (model.pooled_projector, trainable.condition_projector),
        (model.image_decoder.denoiser, trainable.image_decoder),
    )
    for module, is_trained in wholes:
        if module is not None and is_trained:
            module.requires_grad_(True)
    return tuple(_rows(model))


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


def _undo(model: DreamLLM) -> None:
    """Leave stock parts, with what an earlier call has trained in them."""
    if model.special_token_rows is not None:
        model.special_token_rows.detach()
        model.special_token_rows = None
    merge_in_place(model.language_model)
    merge_in_place(model.image_decoder.denoiser)


def _rows(model: DreamLLM) -> Iterator[GroupRow]:
    """A line for each part, and one below it for the adapters inside."""
    for name, module in model.named_children():
        adapters = lora_parameters(module)
        ours = {id(parameter) for parameter in adapters}
        yield _row(name, [each for each in module.parameters() if id(each) not in ours])
        if adapters:
            yield _row(f"{name}_lora", adapters)


def _row(name: str, parameters: Sequence[nn.Parameter]) -> GroupRow:
    return GroupRow(
        group=name,
        num_parameters=sum(num_weights(p) for p in parameters),
        num_trainable=sum(num_weights(p) for p in parameters if p.requires_grad),
    )
