"""Who is evaluated, and how: what every task is given."""

from dataclasses import dataclass, field

from dreamllm.errors import ConfigError
from dreamllm.eval.baseline import Baseline
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.options import GenerationOptions, Mode
from dreamllm.world.judge import Judge
from dreamllm.world.splits import Split

HELD_OUT = "held-out pairs"
Cell = tuple[str, Split, tuple[int, ...]]
CELLS: tuple[Cell, ...] = (
    ("1 object", "test", (1,)),
    ("2 objects", "test", (2,)),
    ("3 objects", "test", (3,)),
    (HELD_OUT, "held_out", (1, 2, 3)),
)
"""Column, split and numbers of objects of the tasks about single scenes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What an evaluation may choose. The same options and model give the same scores."""

    num: int = 150
    """Items a cell: questions, captions or pictures of one kind, split and number of objects."""
    seed: int = 0
    """Of the items and of the pictures' noise."""
    is_quick: bool = False
    """Whether held-out pairs and all styles but full captions are left out."""
    guidance_scale: float = 2.0
    num_inference_steps: int = 20
    max_batch_size: int = 32

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are evaluated."""
        return CELLS[:-1] if self.is_quick else CELLS

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"num is {self.num}; a cell needs at least 1 item; raise it")

    def generation(self, mode: Mode, *, max_new_tokens: int = 1, max_images: int = 0) -> GenerationOptions:
        """Greedy generation."""
        return GenerationOptions(
            mode=mode,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            guidance_scale=self.guidance_scale,
            num_inference_steps=self.num_inference_steps,
            max_batch_size=self.max_batch_size,
            draw_batch_size=self.max_batch_size,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, and the baseline beside it."""

    generator: InterleavedGenerator
    baseline: Baseline | None = None
    judge: Judge = field(default_factory=Judge)
