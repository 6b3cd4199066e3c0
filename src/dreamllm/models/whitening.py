"""Whitening: a start for a projector that reads features of any scale and correlation.

Statistics of the frozen encoder's features flow in; the weights of a linear layer come out whose outputs, on
those features, are uncorrelated and of one chosen size. A projector started so does not first spend its steps
on undoing the encoder's own scale.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamllm.errors import ConfigError


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
