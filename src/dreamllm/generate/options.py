"""What a caller may choose about generation.

Most options mean the same to every model. Some concern denoising, some picture codes; a model of the other
family refuses them if they are changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final, Literal, TypedDict

from dreamllm.errors import ConfigError

Mode = Literal["interleaved", "text", "image"]
Scheduler = Literal["dpm", "ddpm", "ddim", "euler"]

DIFFUSION_FIELDS: Final = ("num_inference_steps", "negative_prompt", "scheduler")
"""What only a model that draws by diffusion can obey."""
CODE_FIELDS: Final = (
    "image_temperature",
    "image_top_p",
    "guidance_keeps_pictures",
    "contrastive_k",
    "contrastive_alpha",
    "num_candidates",
)
"""What only a model that draws by codes can obey."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How documents are continued. The same seed gives the same documents, whatever else is in the batch."""

    mode: Mode = "interleaved"
    """Words and pictures as the model decides; words only; or one picture at once and nothing else."""
    max_new_tokens: int = 256
    """Text tokens a document; the positions of pictures do not count."""
    max_images: int = 8
    """Pictures drawn in a document."""
    temperature: float = 0.0
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Samples from the smallest set of tokens whose probability reaches this."""
    guidance_scale: float = 2.0
    """Classifier-free guidance; 1 is none."""
    image_temperature: float = 1.0
    """Of picture codes: 0 takes the likeliest, 1 samples from the model's own distribution."""
    image_top_p: float = 1.0
    """Samples from the smallest set of codes whose probability reaches this."""
    guidance_keeps_pictures: bool = False
    """Whether the other side of guidance still sees the earlier pictures of the document; the words it never
    sees."""
    contrastive_k: int | None = None
    """With it codes are chosen by contrastive decoding instead of guidance: among those that have
    `contrastive_alpha` of the probability of the k-th likeliest, by how much the document speaks for them."""
    contrastive_alpha: float = 0.3
    """Smaller lets more codes in."""
    num_candidates: int = 1
    """Pictures drawn side by side, of which the best is kept."""
    num_inference_steps: int = 20
    """Denoising steps a picture."""
    negative_prompt: str = ""
    """Text that guidance moves away from; the empty text is the unconditional model."""
    scheduler: Scheduler | None = None
    """DPM-Solver++, ancestral DDPM, DDIM, or Euler along a flow; None takes what fits the image decoder."""
    seed: int = 0
    """Seed of text sampling and of every picture's noise or codes."""
    preview_every: int | None = None
    """Denoising steps, or codes, between previews of a picture under way; None shows none."""
    draw_batch_size: int = 8
    """Pictures that share one denoising loop, or one decoding of codes."""
    max_batch_size: int = 16
    """Documents under way at once; the others wait for a free row."""
    use_cache: bool = True
    """Keep keys and values; off, every step reads each document from its beginning (for comparison only)."""

    def __post_init__(self) -> None:
        for name in (
            "max_new_tokens",
            "num_inference_steps",
            "draw_batch_size",
            "max_batch_size",
            "num_candidates",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1; raise it")
        if self.max_images < 0:
            raise ConfigError(f"max_images is {self.max_images}; it must be 0 or more; 0 draws no picture")
        for name in ("temperature", "image_temperature"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be 0 or more; 0 takes the likeliest token"
                )
        for name in ("top_p", "image_top_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must lie in (0, 1]; 1 keeps every token"
                )
        self._check_codes()
        if self.preview_every is not None and self.preview_every < 1:
            raise ConfigError(
                f"preview_every is {self.preview_every}; it must be at least 1; leave it out for no previews"
            )
        for name, allowed in (
            ("mode", ("interleaved", "text", "image")),
            ("scheduler", (None, "dpm", "ddpm", "ddim", "euler")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(each for each in allowed if each)}; choose one"
                )

    def refuse(self, names: Iterable[str], family: str) -> None:
        """Raise ConfigError if one of these options is not at its default."""
        defaults = {field.name: field.default for field in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which {family} cannot obey; it must be "
                    f"{defaults[name]!r}; leave it out"
                )

    def _check_codes(self) -> None:
        if self.contrastive_k is not None and self.contrastive_k < 1:
            raise ConfigError(
                f"contrastive_k is {self.contrastive_k}; it must be at least 1; leave it out for guidance"
            )
        if not 0 < self.contrastive_alpha <= 1:
            raise ConfigError(
                f"contrastive_alpha is {self.contrastive_alpha}; it must lie in (0, 1]; "
                "1 keeps the k likeliest codes"
            )
        if self.num_candidates > 1 and self.image_temperature == 0:
            raise ConfigError(
                f"num_candidates is {self.num_candidates}, but at image_temperature 0 all of them are the "
                "same picture; ask for 1, or raise image_temperature"
            )


class WriteOptions(TypedDict, total=False):
    """The options that concern words, as keyword arguments; what they mean stands in `GenerationOptions`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    max_batch_size: int
    use_cache: bool


class DrawOptions(TypedDict, total=False):
    """The options that concern one picture for each text, as keyword arguments."""

    guidance_scale: float
    image_temperature: float
    image_top_p: float
    guidance_keeps_pictures: bool
    contrastive_k: int | None
    contrastive_alpha: float
    num_candidates: int
    num_inference_steps: int
    negative_prompt: str
    scheduler: Scheduler | None
    seed: int
    draw_batch_size: int
    max_batch_size: int
    use_cache: bool


class OptionFields(TypedDict, total=False):
    """All fields of `GenerationOptions`, as keyword arguments."""

    mode: Mode
    max_new_tokens: int
    max_images: int
    temperature: float
    top_p: float
    guidance_scale: float
    image_temperature: float
    image_top_p: float
    guidance_keeps_pictures: bool
    contrastive_k: int | None
    contrastive_alpha: float
    num_candidates: int
    num_inference_steps: int
    negative_prompt: str
    scheduler: Scheduler | None
    seed: int
    preview_every: int | None
    draw_batch_size: int
    max_batch_size: int
    use_cache: bool
