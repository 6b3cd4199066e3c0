"""Whitening: a start for a layer that reads features of any scale and correlation.

Statistics of features flow in; weights come out whose outputs, on those features, are uncorrelated and of one
chosen size. A projector started so does not first spend its steps on undoing the scale of a frozen encoder.
For a U-Net there are both sides: its cross-attention can read whitened text, and a projector can give it
conditions that are white once they are keys and values.
"""

from typing import Literal

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from dreamllm.errors import ConfigError

SHRINKAGE = 1e-3
"""How far the starts here move a covariance towards a multiple of the identity; see `whitening`."""


def whitening(
    features: Float[Tensor, "n d"], *, shrinkage: float, kind: Literal["zca", "pca"] = "zca"
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """The mean and the matrix for which `(features - mean) @ matrix` has the identity as covariance.

    `zca` stays as near to the features as whitening can, `pca` turns to the principal axes, largest first.
    `shrinkage` in [0, 1] moves the covariance towards a multiple of the identity before it is inverted,
    which is needed where features are few or flat in some direction. Computed in float64, given in float32.

    Raises:
        ConfigError: shrinkage is outside [0, 1], or the covariance is singular and shrinkage too small.
    """
    if not 0 <= shrinkage <= 1:
        raise ConfigError(f"shrinkage is {shrinkage}; it is a share of the covariance, choose one in [0, 1]")
    size = features.shape[1]
    mean = features.double().mean(0)
    centred = features.double() - mean
    covariance = centred.T @ centred / features.shape[0]
    flat = covariance.trace() / size * torch.eye(size, dtype=torch.float64, device=features.device)
    variances, axes = torch.linalg.eigh((1 - shrinkage) * covariance + shrinkage * flat)
    if variances[0] <= 1e-12 * variances[-1] or variances[-1] <= 0:
        raise ConfigError(
            f"the covariance of {features.shape[0]} features of width {size} is singular (variances "
            f"from {variances[0].item():.3g} to {variances[-1].item():.3g}); "
            "give more features, or shrinkage above 0"
        )
    matrix = axes.flip(1) * variances.flip(0).rsqrt()
    if kind == "zca":
        matrix = matrix @ axes.flip(1).T
    return mean.float(), matrix.float()


@torch.no_grad()
def fold_into_linear(
    linear: nn.Linear,
    mean: Float[Tensor, " d"],
    matrix: Float[Tensor, "d d"],
    scale: float,
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Set a linear layer to a random orthogonal projection of whitened inputs, times `scale`.

    On the features the whitening came from, each output has mean 0 and, on average, variance scale ** 2; the
    outputs are uncorrelated unless there are more of them than inputs.

    Raises:
        ConfigError: the layer has no bias to hold the mean, or another input width.
    """
    if linear.bias is None or linear.in_features != mean.shape[0]:
        raise ConfigError(
            f"a whitening of width {mean.shape[0]} does not fit a linear layer of {linear.in_features} "
            f"inputs with bias={linear.bias is not None}; "
            f"it needs a layer with a bias and {mean.shape[0]} inputs"
        )
    size = max(linear.in_features, linear.out_features)
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    orthogonal = torch.linalg.qr(gaussian).Q[: linear.out_features, : linear.in_features].to(matrix.device)
    spread = max(1.0, linear.out_features / linear.in_features) ** 0.5
    weight = scale * spread * orthogonal @ matrix.double().T
    linear.weight.copy_(weight)
    linear.bias.copy_(-weight @ mean.double())


@torch.no_grad()
def fold_into_cross_attention(unet: UNet2DConditionModel, matrix: Float[Tensor, "C C"]) -> None:
    """Let keys and values read whitened text: W (x M) is (W M^T) x.

    The mean needs no place: in keys it adds the same to every token's score, in values the same to every
    output.
    """
    for layer in _keys_and_values(unet):
        layer.weight.copy_(layer.weight @ matrix.T)


@torch.no_grad()
def start_condition_projector(
    projector: nn.Linear,
    states: Float[Tensor, "n D"],
    unet: UNet2DConditionModel,
    *,
    generator: torch.Generator,
) -> None:
    """Set the projector to G^(-1/2) R S^(-1/2): states that are white, turned at random, then coloured so
    that they are white again in the U-Net's keys and values.

    S is the second moment of the states (the projector has no bias to take a mean off), G the metric of the
    U-Net's cross-attention, the sum of W^T W over its keys and values, at the scale of a fresh layer.
    """
    weights = torch.cat([layer.weight.double() for layer in _keys_and_values(unet)])
    width, state_width = projector.out_features, projector.in_features
    fresh = weights.shape[0] / (3 * width)  # E[W^T W] of a default-initialised layer, per direction
    colour = _inverse_root(weights.T @ weights) * fresh**0.5
    moment = states.double().T @ states.double() / states.shape[0]
    size = max(width, state_width)
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(gaussian).Q[:width, :state_width]
    projector.weight.copy_(colour @ turn @ _inverse_root(moment))


def _inverse_root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, axes = torch.linalg.eigh(matrix)
    values = (1 - SHRINKAGE) * values + SHRINKAGE * values.mean()
    return axes @ torch.diag(values.rsqrt()) @ axes.T


def _keys_and_values(unet: UNet2DConditionModel) -> list[nn.Linear]:
    """The layers of a U-Net that read its condition."""
    return [layer for name, layer in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
