"""The connectors between the vision encoder, the language model and the image decoder.

DreamLLM uses one linear layer each way, with a bias on the way in and without one on the way out, both with
PyTorch's own initialisation (arXiv:2309.11499, section 3.2). MetaQuery puts a bidirectional transformer over
the query states before the last linear layer, its "Enc-Proj" (arXiv:2504.06256, section 3.2).
"""

from typing import Literal, assert_never

from jaxtyping import Float
from torch import Tensor, nn

ProjectorKind = Literal["linear", "mlp"]
"""`linear`: one layer, as in the paper. `mlp`: two layers with a GELU between them."""

ConnectorKind = Literal["linear", "mlp", "transformer"]
"""As above; `transformer`: a bidirectional encoder over the queries of a picture, then one linear layer."""

HEAD_WIDTH = 64
"""Width of a transformer connector's attention heads, where the model's width allows it."""


def visual_projector(vision_width: int, model_width: int, *, kind: ProjectorKind = "linear") -> nn.Module:
    """From vision features (E) to language-model embeddings (D), with bias."""
    return _projector(vision_width, model_width, kind=kind, bias=True)


def condition_projector(
    model_width: int, condition_width: int, *, kind: ConnectorKind = "linear", num_layers: int = 6
) -> nn.Module:
    """From language-model states (D) to the image decoder's condition (C), without bias.

    `num_layers` counts the layers of a `transformer`.
    """
    if kind == "transformer":
        return TransformerConnector(model_width, condition_width, num_layers=num_layers)
    return _projector(model_width, condition_width, kind=kind, bias=False)


def pooled_projector(model_width: int, pooled_width: int) -> nn.Linear | None:
    """From the mean state at the queries (D) to a pooled condition (G), without bias; None where G is 0."""
    return nn.Linear(model_width, pooled_width, bias=False) if pooled_width else None


class TransformerConnector(nn.Module):
    """A pre-norm transformer encoder at the language model's width, then a projection."""

    def __init__(self, model_width: int, condition_width: int, *, num_layers: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            model_width,
            nhead=_num_heads(model_width),
            dim_feedforward=4 * model_width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(model_width), enable_nested_tensor=False
        )
        self.projection = nn.Linear(model_width, condition_width, bias=False)

    def forward(self, states: Float[Tensor, "M Q D"]) -> Float[Tensor, "M Q C"]:
        """Every query sees all queries of its picture."""
        if states.shape[0] == 0:  # fused attention refuses an empty batch
            return self.projection(states) + 0 * sum(p.sum() for p in self.encoder.parameters())
        return self.projection(self.encoder(states))


def _num_heads(width: int) -> int:
    """The most heads of `HEAD_WIDTH` or wider that divide the width."""
    return next(heads for heads in range(max(1, width // HEAD_WIDTH), 0, -1) if width % heads == 0)


def _projector(in_width: int, out_width: int, *, kind: ProjectorKind, bias: bool) -> nn.Module:
    match kind:
        case "linear":
            return nn.Linear(in_width, out_width, bias=bias)
        case "mlp":
            first = nn.Linear(in_width, out_width, bias=bias)
            return nn.Sequential(first, nn.GELU(), nn.Linear(out_width, out_width, bias=bias))
        case _:
            assert_never(kind)
