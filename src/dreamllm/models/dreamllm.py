"""DreamLLM (arXiv:2309.11499), figure 2: one causal language model between a frozen eye and a frozen brush.

    picture -> vision encoder -> visual projector -----.
    text ----> token embeddings -----------------------+-> language model -> head -> next token
    dream queries -------------------------------------'         |
                                          states at the queries -> condition projector -> image decoder

The language model is any `AutoModelForCausalLM`. It is given embeddings, an attention mask and positions, and
gives states; nothing in it is subclassed or patched.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel

from dreamllm.errors import ConfigError
from dreamllm.losses.next_token import next_token_sum
from dreamllm.losses.total import Term
from dreamllm.models.decoders.stable_diffusion import StableDiffusionDecoder
from dreamllm.models.dream_queries import DreamQueries
from dreamllm.models.projectors import ProjectorKind, condition_projector, visual_projector
from dreamllm.models.special_token_rows import SpecialTokenRows
from dreamllm.models.splice import read_slots, write_slots
from dreamllm.models.vision_encoder import VisionEncoder
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.chat import chat_template
from dreamllm.sequence.layout import SlotSizes

_LOGIT_CHANGES = {
    "final_logit_softcapping": (None,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DreamLLMConfig:
    """What the stock parts do not say of themselves; the defaults are the paper's."""

    num_dream_queries: int = 64
    """Q."""
    visual_projector: ProjectorKind = "linear"
    """From the vision encoder to the language model."""
    condition_projector: ProjectorKind = "linear"
    """From the language model to the image decoder."""
    select_layer: int = -2
    """Hidden state of the vision model that is read; -1 is the last."""
    drop_cls: bool = True
    """Whether the class token is left out."""
    post_layernorm: bool = False
    """Whether the final normalisation is applied; for the last layer only."""
    chat_template: str = "vicuna_v1_1"
    """How a conversation is written as text; see `sequence/chat.py`."""

    def __post_init__(self) -> None:
        if self.num_dream_queries < 1:
            raise ConfigError(
                f"num_dream_queries is {self.num_dream_queries}; a picture needs 1 query or more"
            )
        for name in ("visual_projector", "condition_projector"):
            if getattr(self, name) not in ("linear", "mlp"):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose 'linear' or 'mlp'")
        chat_template(self.chat_template)  # raises for an unknown name


class DreamLLM(nn.Module):
    """Reads and writes illustrated documents. Vision encoder and image decoder are frozen."""

    def __init__(
        self,
        config: DreamLLMConfig,
        *,
        language_model: PreTrainedModel,
        vision_model: CLIPVisionModel,
        image_decoder: StableDiffusionDecoder,
    ) -> None:
        """Raises ConfigError for a language model that changes its logits after the head."""
        super().__init__()
        for name, plain in _LOGIT_CHANGES.items():
            if getattr(language_model.config, name, None) not in plain:
                raise ConfigError(
                    f"{type(language_model).__name__} has {name}={getattr(language_model.config, name)}, "
                    "which changes logits after the head, where the loss would not see it; "
                    "choose a language model whose logits are head(states)"
                )
        language_model.set_attn_implementation("sdpa")  # 'eager' would add a boolean mask as 0 and 1
        self.config = config
        self.language_model = language_model
        self.vision_encoder = VisionEncoder(
            vision_model,
            select_layer=config.select_layer,
            drop_cls=config.drop_cls,
            post_layernorm=config.post_layernorm,
        )
        width = language_model.get_input_embeddings().embedding_dim
        self.visual_projector = visual_projector(
            self.vision_encoder.width, width, kind=config.visual_projector
        )
        self.dream_queries = DreamQueries(config.num_dream_queries, width)
        self.condition_projector = condition_projector(
            width, image_decoder.condition_width, kind=config.condition_projector
        )
        self.image_decoder = image_decoder
        self.special_token_rows: SpecialTokenRows | None = None
        """Rows that train while the language model is frozen; put in place by `freezing.apply_trainable`."""

    @property
    def slot_sizes(self) -> SlotSizes:
        """How many positions a picture takes."""
        return SlotSizes(
            num_visual_tokens=self.vision_encoder.num_tokens, num_dream_queries=self.config.num_dream_queries
        )

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.language_model.device

    def forward(
        self,
        batch: Batch,
        generator: torch.Generator | None,
        *,
        noises_per_image: int = 1,
        min_snr_gamma: float | None = None,
    ) -> dict[str, Term]:
        """The loss terms `next_token` and `denoising`, as sums; `losses.total` divides and weighs them.

        Noise is drawn from `generator`, on its device. A batch without pictures, targets or labels is no
        special case: its empty terms are zero and every connector still gets a gradient, of zeros.
        """
        hidden = self.hidden_states(batch)
        return {
            "next_token": Term(self._next_token(hidden, batch), batch.num_labels),
            "denoising": Term(
                self._denoising(hidden, batch, generator, noises_per_image, min_snr_gamma), batch.num_targets
            ),
        }

    def hidden_states(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """The language model's states after its final norm."""
        return self.language_states(self.embed(batch), batch.attention_mask(), batch.position_ids)

    def embed(self, batch: Batch) -> Float[Tensor, "B T D"]:
        """Token embeddings with the pictures' features and the dream queries in their slots."""
        embeds = self.embed_ids(batch.input_ids)
        embeds = write_slots(embeds, self.image_embeds(batch.vision_pixels), batch.image_slots)
        return write_slots(embeds, self.dream_queries(batch.dream_slots.shape[0]), batch.dream_slots)

    def language_states(
        self,
        embeds: Float[Tensor, "B T D"],
        attention_mask: Bool[Tensor, "B 1 T S"],
        position_ids: Int[Tensor, "B T"],
        cache: Any = None,
    ) -> Float[Tensor, "B T D"]:
        """Run the language model without its head; S counts the positions in the cache and the new ones."""
        return self.language_model.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def conditions(
        self, hidden: Float[Tensor, "B T D"], dream_slots: Int[Tensor, "M Q"]
    ) -> Float[Tensor, "M Q C"]:
        """What the image decoder is to draw: the projected states at the dream queries."""
        return self.project_conditions(read_slots(hidden, dream_slots))

    def project_conditions(self, states: Float[Tensor, "M Q D"]) -> Float[Tensor, "M Q C"]:
        """The condition projector, on states at dream queries."""
        return self.condition_projector(states.to(_dtype(self.condition_projector)))

    def embed_ids(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Token embeddings."""
        return self.language_model.get_input_embeddings()(ids)

    def image_embeds(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P D"]:
        """Pictures as the language model reads them."""
        return self.visual_projector(self.vision_encoder(pixels).to(_dtype(self.visual_projector)))

    def query_embeds(self) -> Float[Tensor, "Q D"]:
        """The dream queries of one slot."""
        return self.dream_queries(1)[0]

    def logits(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """The head, on states of the language model."""
        return self.language_model.get_output_embeddings()(hidden)

    def _next_token(self, hidden: Tensor, batch: Batch) -> Tensor:
        states = hidden.flatten(0, 1).index_select(0, batch.label_positions)  # (L, D)
        return next_token_sum(states, self.logits, batch.labels)

    def _denoising(
        self,
        hidden: Tensor,
        batch: Batch,
        generator: torch.Generator | None,
        noises_per_image: int,
        min_snr_gamma: float | None,
    ) -> Tensor:
        condition = self.conditions(hidden, batch.dream_slots.index_select(0, batch.target_dreams))
        latents = self.image_decoder.encode(batch.target_pixels, generator)
        return self.image_decoder.denoising_loss(
            latents, condition, generator, noises_per_image=noises_per_image, min_snr_gamma=min_snr_gamma
        ).sum()


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
