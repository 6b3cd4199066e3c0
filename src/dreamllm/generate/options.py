"""What a caller may choose about generation."""

from dataclasses import dataclass
from typing import Literal, TypedDict

from dreamllm.errors import ConfigError

Mode = Literal["interleaved", "text", "image"]
Scheduler = Literal["dpm", "ddpm", "ddim", "euler"]


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
    num_inference_steps: int = 20
    """Denoising steps a picture."""
    negative_prompt: str = ""
    """Text that guidance moves away from; the empty text is the unconditional model."""
    scheduler: Scheduler | None = None
    """DPM-Solver++, ancestral DDPM, DDIM, or Euler along a flow; None takes what fits the image decoder."""
    seed: int = 0
    """Seed of text sampling and of every picture's noise."""
    preview_every: int | None = None
    """Denoising steps between previews of a picture under way; None shows none."""
    draw_batch_size: int = 8
    """Pictures that share one denoising loop."""
    max_batch_size: int = 16
    """Documents under way at once; the others wait for a free row."""
    use_cache: bool = True
    """Keep keys and values; off, every step reads each document from its beginning (for comparison only)."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_inference_steps", "draw_batch_size", "max_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1; raise it")
        if self.max_images < 0:
            raise ConfigError(f"max_images is {self.max_images}; it must be 0 or more; 0 draws no picture")
        if self.temperature < 0:
            raise ConfigError(
                f"temperature is {self.temperature}; it must be 0 or more; 0 takes the likeliest token"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; it must lie in (0, 1]; 1 keeps every token")
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
    num_inference_steps: int
    negative_prompt: str
    scheduler: Scheduler | None
    seed: int
    preview_every: int | None
    draw_batch_size: int
    max_batch_size: int
    use_cache: bool
