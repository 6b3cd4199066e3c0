"""JAM (arXiv:2309.15564): one autoregressive model over words and picture codes.

    text ----> tokenizer -------.
                                +-> ids -> language model -> head -> next id, word or code
    picture -> image tokenizer -'                                       |
                                                     G codes -> image tokenizer -> picture

The language model is a stock causal one (a parent, or parents fused by averages or by width), or two towers
with cross-attention (`jam_cross.py`). Its input embeddings may be wider than its states: what is asked of it
stands in `language_model.py`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from dreamllm.errors import ConfigError
from dreamllm.losses.next_token import log_partition_squares, next_token_losses
from dreamllm.losses.total import Term
from dreamllm.models.image_tokenizer import ImageTokenizer
from dreamllm.models.language_model import check_language_model, run_decoder
from dreamllm.models.packed_attention import attention_of, use_packed_attention
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.chat import chat_template


@dataclass(frozen=True, kw_only=True, slots=True)
class JAMConfig:
    """What the stock parts do not say of themselves."""

    first_code: int
    """Id of picture code 0; see `sequence/code_tokens.py`."""
    num_codes: int
    """Codes of the image tokenizer."""
    codes_per_picture: int
    """G."""
    chat_template: str = "plain_chat"
    """How a conversation is written as text; `tokenizer` is the tokenizer's own."""

    def __post_init__(self) -> None:
        if min(self.first_code, self.num_codes, self.codes_per_picture) < 1:
            raise ConfigError(
                f"first_code is {self.first_code}, num_codes {self.num_codes} and codes_per_picture "
                f"{self.codes_per_picture}; expected 1 or more each; correct them"
            )
        if self.chat_template != "tokenizer":
            chat_template(self.chat_template)  # raises for an unknown name


class JAM(nn.Module):
    """Reads and writes documents of words and codes. The image tokenizer is frozen."""

    def __init__(
        self, config: JAMConfig, *, language_model: PreTrainedModel, image_tokenizer: ImageTokenizer | None
    ) -> None:
        """A text parent has no image tokenizer, but the vocabulary has its codes all the same.

        Raises:
            ConfigError: the language model cannot be used, its vocabulary has no room for the codes, or the
                image tokenizer has other codes.
        """
        super().__init__()
        check_language_model(language_model)
        use_packed_attention(language_model)
        rows = language_model.config.get_text_config().vocab_size
        if rows < config.first_code + config.num_codes:
            raise ConfigError(
                f"the language model has a vocabulary of {rows}, but {config.num_codes} codes from "
                f"{config.first_code} on need {config.first_code + config.num_codes}; "
                "resize its embeddings, or give it the codes it was trained with"
            )
        if image_tokenizer is not None:
            own = (image_tokenizer.num_codes, image_tokenizer.codes_per_picture)
            if own != (config.num_codes, config.codes_per_picture):
                raise ConfigError(
                    f"the image tokenizer has {own[0]} codes and {own[1]} a picture, but the vocabulary is "
                    f"made for {config.num_codes} and {config.codes_per_picture}; "
                    "use the image tokenizer that the model was trained with"
                )
        self.config = config
        self.language_model = language_model
        self.image_tokenizer = image_tokenizer

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.language_model.device

    def forward(self, batch: Batch, *, z_loss: bool = False) -> dict[str, Term]:
        """The loss terms `text` and `codes`: cross-entropy at labels that are words, and that are codes.

        With `z_loss` a third, `z`, which holds the softmax of both together.
        """
        states = self.hidden_states(batch).flatten(0, 1).index_select(0, batch.label_positions)  # (L, D)
        is_code = batch.labels >= self.config.first_code
        owners, size = batch.label_documents, batch.num_documents
        terms = {
            name: Term.of_items(
                next_token_losses(states[chosen], self.logits, batch.labels[chosen]),
                owners[chosen],
                num_documents=size,
            )
            for name, chosen in (("text", ~is_code), ("codes", is_code))
        }
        if z_loss:
            terms["z"] = Term.of_items(log_partition_squares(states, self.logits), owners, num_documents=size)
        return terms

    def hidden_states(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """The language model's states after its final norm."""
        return run_decoder(
            self.language_model,
            self.embed_ids(batch.input_ids),
            attention_of(self.language_model, batch),
            batch.position_ids,
        )

    def embed_ids(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """What the language model is fed for ids; E is its own affair."""
        return self.language_model.get_input_embeddings()(ids)

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """The head, on states of the language model."""
        return self.language_model.get_output_embeddings()(hidden)
