"""Who is evaluated, and how: what every task is given."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from dreamllm.document.document import Document
from dreamllm.errors import ConfigError
from dreamllm.eval.baseline import Baseline
from dreamllm.generate.codes import CodeGenerator
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.options import GenerationOptions, Mode
from dreamllm.world.judge import Judge
from dreamllm.world.splits import Split

Kind = Literal["DreamLLM", "JAM", "JAM of words alone"]
"""What can be evaluated: the last is a parent without an image tokenizer."""
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
    """Of a DreamLLM and its baseline."""
    image_temperature: float = 1.0
    """Of the picture codes of a JAM."""
    max_batch_size: int = 32

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are evaluated."""
        return CELLS[:-1] if self.is_quick else CELLS

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"num is {self.num}; a cell needs at least 1 item; raise it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model, and the baseline beside it.

    Tasks ask it and the judge, which enlarges pictures of any size; none asks which family it is of.
    """

    generator: InterleavedGenerator | CodeGenerator
    baseline: Baseline | None = None
    judge: Judge = field(default_factory=Judge)

    @property
    def kind(self) -> Kind:
        """What the model is, as far as tasks differ."""
        if isinstance(self.generator, InterleavedGenerator):
            return "DreamLLM"
        return "JAM of words alone" if self.generator.model.image_tokenizer is None else "JAM"

    @property
    def opens_picture(self) -> int:
        """Id of the token that decides to draw."""
        if isinstance(self.generator, InterleavedGenerator):
            return self.generator.tokenizer.special.dream_start
        return self.generator.tokens.break_

    def is_code(self, ids: np.ndarray) -> np.ndarray:
        """Which ids are picture codes; a DreamLLM has none."""
        if isinstance(self.generator, InterleavedGenerator):
            return np.zeros(ids.shape, dtype=np.bool_)
        return self.generator.tokens.is_code(ids)

    def generate(
        self,
        documents: Sequence[Document],
        options: EvalOptions,
        mode: Mode,
        *,
        max_new_tokens: int = 1,
        max_images: int = 0,
    ) -> list[Document]:
        """Continue documents; words are the likeliest."""
        chosen = GenerationOptions(
            mode=mode,
            max_new_tokens=max_new_tokens,
            max_images=max_images,
            guidance_scale=options.guidance_scale,
            max_batch_size=options.max_batch_size,
            draw_batch_size=options.max_batch_size,
            seed=options.seed,
        )
        if self.kind == "DreamLLM":
            chosen = replace(chosen, num_inference_steps=options.num_inference_steps)
        else:
            chosen = replace(chosen, image_temperature=options.image_temperature)
        return self.generator.generate(documents, chosen)
