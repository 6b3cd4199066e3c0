"""Cross-attention between two towers (JAM-Cross, arXiv:2309.15564, section 3.1), one direction a block.

States of one tower ask, states of the other answer; a gated feed-forward network may follow. The block is
pre-norm, has no biases, and adds to the states of the tower that asks. The paper's towers have learned
positions in their states; parents with rotary positions have none there, so queries and keys are rotated here
as in the parents' own attention.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half

Gating = Literal["zero", "tanh", "random"]
Start = Literal["normal", "zero", "first", "last", "mean"]
Rotation = tuple[Float[Tensor, "B T Dh"], Float[Tensor, "B T Dh"]]
"""Cosines and sines of the positions of a pass."""


class StartedLinear(nn.Linear):
    """A linear layer without bias that says how it begins.

    `normal`: cut at three standard deviations; `zero`; `first` and `last`: its outputs are its first or last
    inputs; `mean`: they are the mean of both halves of its inputs.
    """

    def __init__(self, in_features: int, out_features: int, *, start: Start = "normal") -> None:
        super().__init__(in_features, out_features, bias=False)
        self.start = start

    def reset(self, std: float) -> None:
        """First weights, unless the weight was loaded from a file."""
        size, width = self.weight.shape
        unit = torch.eye(size, dtype=self.weight.dtype, device=self.weight.device)
        rest = unit.new_zeros(size, width - size) if width > size else unit[:, :0]
        match self.start:
            case "zero":
                init.zeros_(self.weight)
            case "normal":
                init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)
            case "first":
                init.copy_(self.weight, torch.cat([unit, rest], dim=1))
            case "last":
                init.copy_(self.weight, torch.cat([rest, unit], dim=1))
            case "mean":
                init.copy_(self.weight, torch.cat([unit, unit], dim=1) / 2)


class CrossAttention(nn.Module):
    """Multi-head attention whose queries and whose keys and values come from different towers."""

    def __init__(
        self, query_size: int, source_size: int, *, num_heads: int, head_dim: int, out_start: Start
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = StartedLinear(query_size, num_heads * head_dim)
        self.k_proj = StartedLinear(source_size, num_heads * head_dim)
        self.v_proj = StartedLinear(source_size, num_heads * head_dim)
        self.o_proj = StartedLinear(num_heads * head_dim, query_size, start=out_start)

    def keys_values(
        self, source: Float[Tensor, "B S Ds"], rotation: Rotation
    ) -> tuple[Float[Tensor, "B N S Dh"], Float[Tensor, "B N S Dh"]]:
        """What a cache would keep of the source."""
        keys, values = self._heads(self.k_proj(source)), self._heads(self.v_proj(source))
        return _rotate(keys, rotation), values

    def forward(
        self,
        states: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B N S Dh"],
        values: Float[Tensor, "B N S Dh"],
        mask: Bool[Tensor, "B 1 T S"],
        rotation: Rotation,
    ) -> Float[Tensor, "B T D"]:
        """The answer at every position; a query that may see nothing gets zeros."""
        queries = _rotate(self._heads(self.q_proj(states)), rotation)
        sees = mask.any(-1, keepdim=True)
        answer = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask | ~sees)
        return self.o_proj((answer * sees).transpose(1, 2).flatten(2))

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GatedFeedForward(nn.Module):
    """The feed-forward network of Llama-like parents, without biases."""

    def __init__(self, size: int, inner_size: int, *, activation: str, out_start: Start) -> None:
        super().__init__()
        self.gate_proj = StartedLinear(size, inner_size)
        self.up_proj = StartedLinear(size, inner_size)
        self.down_proj = StartedLinear(inner_size, size, start=out_start)
        self.act_fn = ACT2FN[activation]

    def forward(self, states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """down(act(gate) * up)."""
        return self.down_proj(self.act_fn(self.gate_proj(states)) * self.up_proj(states))


class CrossBlock(nn.Module):
    """One direction: what a tower learns from the other after one of its layers."""

    def __init__(
        self,
        query_size: int,
        source_size: int,
        *,
        num_heads: int,
        head_dim: int,
        ffn_size: int,
        activation: str,
        norm_eps: float,
        gating: Gating,
    ) -> None:
        """`ffn_size` 0 leaves the feed-forward network out."""
        super().__init__()
        out_start: Start = "zero" if gating == "zero" else "normal"
        self.query_norm = LlamaRMSNorm(query_size, eps=norm_eps)
        self.source_norm = LlamaRMSNorm(source_size, eps=norm_eps)
        self.attention = CrossAttention(
            query_size, source_size, num_heads=num_heads, head_dim=head_dim, out_start=out_start
        )
        self.ffn: GatedFeedForward | None = None
        self.ffn_norm: nn.Module | None = None
        if ffn_size:
            self.ffn_norm = LlamaRMSNorm(query_size, eps=norm_eps)
            self.ffn = GatedFeedForward(query_size, ffn_size, activation=activation, out_start=out_start)
        self.gates = nn.Parameter(torch.zeros(2 if ffn_size else 1)) if gating == "tanh" else None

    def keys_values(
        self, source: Float[Tensor, "B S Ds"], rotation: Rotation
    ) -> tuple[Float[Tensor, "B N S Dh"], Float[Tensor, "B N S Dh"]]:
        """Keys and values of the other tower's states."""
        return self.attention.keys_values(self.source_norm(source), rotation)

    def forward(
        self,
        states: Float[Tensor, "B T D"],
        keys_values: tuple[Float[Tensor, "B N S Dh"], Float[Tensor, "B N S Dh"]],
        mask: Bool[Tensor, "B 1 T S"],
        rotation: Rotation,
    ) -> Float[Tensor, "B T D"]:
        """The states of the tower that asks, with what it learned added."""
        answer = self.attention(self.query_norm(states), *keys_values, mask, rotation)
        states = states + self._gate(answer, 0)
        if self.ffn is not None and self.ffn_norm is not None:
            states = states + self._gate(self.ffn(self.ffn_norm(states)), 1)
        return states

    def _gate(self, answer: Tensor, index: int) -> Tensor:
        return answer if self.gates is None else self.gates[index].tanh() * answer


def _rotate(heads: Float[Tensor, "B N T Dh"], rotation: Rotation) -> Float[Tensor, "B N T Dh"]:
    cosines, sines = (part[:, None] for part in rotation)
    return heads * cosines + rotate_half(heads) * sines
