"""Which groups of parameters train. Free of torch, so that a recipe is read before anything heavy.

Stage I of DreamLLM trains the connectors, stages II and III the language model too (arXiv:2309.11499, section
4). What would take too much memory may train by low-rank adapters instead (LoRA, arXiv:2106.09685).
"""

from dataclasses import dataclass

from dreamllm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters on linear layers: W x becomes W x + alpha / rank * B A x, of which A and B train."""

    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """Together with the rank, how strongly the adapters speak."""
    dropout: float = 0.0
    """Share of the adapters' inputs that is dropped in training."""
    target_modules: tuple[str, ...] = ()
    """Ends of the names of the linear layers that are adapted, such as `q_proj`. None named: in a language
    model all of its blocks, in an image decoder the projections of its attention."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"rank is {self.rank}, alpha {self.alpha} and dropout {self.dropout}; "
                "expected rank >= 1, alpha > 0 and 0 <= dropout < 1; correct them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainable:
    """The groups of parameters that train; the defaults are those of stage I."""

    language_model: bool = False
    """The whole language model, embeddings and head included."""
    language_model_lora: LoraConfig | None = None
    """Adapters in the blocks of the language model, which is frozen; `{}` in a recipe takes the defaults."""
    special_token_rows: bool = False
    """The rows of the bracket tokens alone, while the language model is frozen."""
    visual_projector: bool = True
    """From the vision encoder to the language model."""
    dream_queries: bool = True
    """The learned queries."""
    condition_projector: bool = True
    """From the language model to the image decoder, the pooled condition included."""
    image_decoder: bool = False
    """The whole denoiser; the VAE never trains."""
    image_decoder_lora: LoraConfig | None = None
    """Adapters in the denoiser, which is frozen."""

    def __post_init__(self) -> None:
        if self.language_model and self.special_token_rows:
            raise ConfigError(
                "language_model and special_token_rows are both to train, but the rows are part of the "
                "language model; set special_token_rows to false"
            )
        for part in ("language_model", "image_decoder"):
            if getattr(self, part) and getattr(self, f"{part}_lora") is not None:
                raise ConfigError(
                    f"{part} is to train as a whole and by {part}_lora, expected one of them; set {part} to "
                    f"false, or {part}_lora to null"
                )
        if self.image_decoder_lora is not None and self.image_decoder_lora.dropout:
            raise ConfigError(
                f"image_decoder_lora has dropout {self.image_decoder_lora.dropout}, but the image decoder "
                "stays in evaluation mode, where nothing is dropped; set it to 0"
            )
