"""How two parents become one model, as data: free of torch, so that a recipe is read at once."""

from dataclasses import dataclass, field
from typing import Literal

from dreamllm.errors import ConfigError

Method = Literal["uniform", "width", "cross"]
OffDiagonal = Literal["copy_row", "copy_col", "avg", "zero", "noise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UniformOptions:
    """How tensors are averaged."""

    alpha: float = 0.5
    """Share of the text parent; the paper takes 1/2."""
    embedding_rows: Literal["average", "by_modality"] = "average"
    """`by_modality`: in the input table and the head, words keep the text parent's rows, codes and special
    tokens of pictures the image parent's."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"alpha is {self.alpha}; it is the share of the text parent, choose one in [0, 1]"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WidthOptions:
    """How the wide model begins."""

    off_diagonal: OffDiagonal = "copy_row"
    """`copy_row`: X = A, Y = B; `copy_col`: X = B, Y = A; `avg`: both their mean; `zero`; `noise`."""
    off_diagonal_scale: float = 1.0
    """Factor of X and Y."""
    noise_std: float = 0.006
    """Spread of `noise`; the parents' own first weights in the paper."""
    scale: float = 1.0
    """Factor of every matrix in the layers. With 1/2, copies and means of two equal parents are that
    parent."""
    norm: Literal["joint", "grouped"] = "joint"
    """`joint`: a stock model; `grouped`: each half by its own root mean square, with a class of this
    package."""
    logits: Literal["half", "sum", "by_modality"] = "half"
    """`sum`: both parents' logits are added; `half`: their mean; `by_modality`: words from the text half,
    codes and special tokens of pictures from the image half. The first two keep tied tables tied."""

    def __post_init__(self) -> None:
        if self.noise_std < 0 or self.scale <= 0:
            raise ConfigError(
                f"noise_std is {self.noise_std} and scale {self.scale}; expected a spread of 0 or more and "
                "a factor above 0; correct them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossOptions:
    """How the towers are joined; see `JamCrossConfig`."""

    every: int = 2
    """They meet after layers e, 2e, ... before the last; 0: never."""
    after_last: bool = False
    """Whether they meet after the last layer too."""
    content: Literal["attention", "attention+ffn"] = "attention+ffn"
    heads: int | None = None
    """Heads of a meeting; None: as many as the text parent has. Half as many, with half the `ffn_size`, makes
    meetings after every layer as large as full ones after every second."""
    ffn_size: int | None = None
    """Inner width of its feed-forward network; None: the parent's."""
    gating: Literal["zero", "tanh", "random"] = "zero"
    """What writes to the states begins at 0, behind tanh gates at 0, or as it was drawn."""
    init_std: float | None = None
    """Spread of new weights; None: what the text parent began with."""
    embeddings: Literal["per_tower", "shared", "mapped"] = "per_tower"
    special_rows: Literal["image", "text"] = "image"
    """Whose input rows `<break> <mask> <infill>` have in a shared table."""
    ridge: float = 1e-3
    """Of the regression behind `mapped`, relative to the mean square of the text parent's channels."""
    head: Literal["split", "half", "random"] = "split"
    text_skips_images: bool = False
    """JAM-X: the text tower does not read codes."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.ridge < 0 or (self.heads is not None and self.heads < 1):
            raise ConfigError(
                f"every is {self.every}, ridge {self.ridge} and heads {self.heads}; expected 0 or more, "
                "and 1 or more heads; correct them"
            )
        if self.ffn_size is not None and self.ffn_size < 1:
            raise ConfigError(
                f"ffn_size is {self.ffn_size}; expected 1 or more; leave the network out with "
                "content=attention"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """How two parents become one model."""

    method: Method = "cross"
    """`uniform`: their mean; `width`: side by side in one model; `cross`: two towers that read each other."""
    uniform: UniformOptions = field(default_factory=UniformOptions)
    """For method uniform."""
    width: WidthOptions = field(default_factory=WidthOptions)
    """For method width."""
    cross: CrossOptions = field(default_factory=CrossOptions)
    """For method cross."""
