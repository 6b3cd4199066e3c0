"""The embedding table of a language model: growing it, and training a few of its rows while it is frozen.

New bracket tokens need new rows. When the language model is frozen (stage I of DreamLLM) the connectors
align to these rows, so the rows must be trained and kept with them. The rows trained here are parameters of
their own that stand in for rows of the frozen tables; neither weight decay nor an optimizer's memory can
move any other row.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dreamllm.errors import ConfigError


def start_rows(
    language_model: PreTrainedModel,
    ids: Sequence[int],
    *,
    init: Literal["mean", "normal"] = "mean",
    generator: torch.Generator | None = None,
) -> None:
    """Give new tokens their rows in the input and output embeddings; all other rows keep their values.

    The tables grow where an id lies beyond them; in a padded table it may lie inside. New rows are the mean
    of the rows before the first of them, or normal with the model's own initial spread, drawn on the CPU.

    Raises:
        ConfigError: no row stands before the new ones.
    """
    if not ids or min(ids) < 1:
        raise ConfigError(
            f"new rows are asked for at ids {list(ids)}; expected ids above 0, after known tokens"
        )
    first, num_rows = min(ids), max(ids) + 1
    if num_rows > language_model.get_input_embeddings().num_embeddings:
        language_model.resize_token_embeddings(num_rows, mean_resizing=False)
    tables = [language_model.get_input_embeddings().weight]
    head = language_model.get_output_embeddings().weight
    if head is not tables[0]:
        tables.append(head)
    index = torch.tensor(sorted(set(ids)))
    with torch.no_grad():
        for table in tables:
            if init == "mean":
                table[index] = table[:first].double().mean(0).to(table.dtype)
            else:
                spread = language_model.config.get_text_config().initializer_range
                rows = spread * torch.randn(len(index), table.shape[1], generator=generator)
                table[index] = rows.to(table)


class SpecialTokenRows(nn.Module):
    """Trainable stand-ins for some rows of the embedding and of the head, by hooks on those two layers.

    The stock layers keep their parameters and their names; only their outputs change. With a tied head one
    set of rows serves both.
    """

    ids: Tensor
    row_of_id: Tensor

    def __init__(self, language_model: PreTrainedModel, token_ids: Sequence[int]) -> None:
        super().__init__()
        embedding, head = language_model.get_input_embeddings(), language_model.get_output_embeddings()
        if not token_ids or not all(0 <= i < embedding.num_embeddings for i in token_ids):
            raise ConfigError(
                f"token ids {list(token_ids)} are not rows of a table of {embedding.num_embeddings}; "
                "name one id or more, each inside the table"
            )
        ids = torch.tensor(sorted(set(token_ids)), device=embedding.weight.device)
        row_of_id = torch.full((embedding.num_embeddings,), -1, device=ids.device)
        row_of_id[ids] = torch.arange(len(ids), device=ids.device)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("row_of_id", row_of_id, persistent=False)
        self.embedding_rows = nn.Parameter(embedding.weight.detach()[ids].clone())
        tied = head.weight is embedding.weight
        self.head_rows = None if tied else nn.Parameter(head.weight.detach()[ids].clone())
        self._tables = (embedding, head)  # a tuple, so that they do not become submodules here
        self._hooks = (
            embedding.register_forward_hook(self._embed),
            head.register_forward_hook(self._score),
        )

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the rows into the stock tables, from where they are saved; nothing computed changes."""
        embedding, head = self._tables
        embedding.weight[self.ids] = self.embedding_rows.to(embedding.weight.dtype)
        if self.head_rows is not None:
            head.weight[self.ids] = self.head_rows.to(head.weight.dtype)

    def detach(self) -> None:
        """Write back and let the stock layers work on their own again."""
        self.write_back()
        for hook in self._hooks:
            hook.remove()

    def _embed(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        rows = self.row_of_id[inputs[0]]
        ours = F.embedding(rows.clamp(min=0), self.embedding_rows).to(output.dtype)
        if (scale := getattr(layer, "embed_scale", None)) is not None:  # Gemma's table scales what it gives
            ours = ours * scale.to(output.dtype)
        return torch.where((rows >= 0).unsqueeze(-1), ours, output)

    def _score(self, layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        rows = self.embedding_rows if self.head_rows is None else self.head_rows
        bias = None if layer.bias is None else layer.bias[self.ids]
        ours = F.linear(inputs[0], rows.to(inputs[0].dtype), bias)
        return output.index_copy(-1, self.ids, ours.to(output.dtype))
