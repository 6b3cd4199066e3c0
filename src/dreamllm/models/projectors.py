"""The projectors between the vision encoder, the language model and the image decoder.

The paper uses one linear layer each way, with a bias on the way in and without one on the way out, both with
PyTorch's own initialisation. DreamLLM (arXiv:2309.11499), section 3.2.
"""

from typing import Literal, assert_never

from torch import nn

ProjectorKind = Literal["linear", "mlp"]
"""`linear`: one layer, as in the paper. `mlp`: two layers with a GELU between them."""


def visual_projector(vision_width: int, model_width: int, *, kind: ProjectorKind = "linear") -> nn.Module:
    """From vision features (E) to language-model embeddings (D), with bias."""
    return _projector(vision_width, model_width, kind=kind, bias=True)


def condition_projector(
    model_width: int, condition_width: int, *, kind: ProjectorKind = "linear"
) -> nn.Module:
    """From language-model states (D) to the image decoder's condition (C), without bias."""
    return _projector(model_width, condition_width, kind=kind, bias=False)


def _projector(in_width: int, out_width: int, *, kind: ProjectorKind, bias: bool) -> nn.Module:
    match kind:
        case "linear":
            return nn.Linear(in_width, out_width, bias=bias)
        case "mlp":
            first = nn.Linear(in_width, out_width, bias=bias)
            return nn.Sequential(first, nn.GELU(), nn.Linear(out_width, out_width, bias=bias))
        case _:
            assert_never(kind)
