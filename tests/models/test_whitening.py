import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.whitening import fold_into_linear, whitening


def features(n=4000, d=6):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator) * torch.tensor([10.0, 3, 1, 1, 0.3, 0.1])
    return torch.randn(n, d, generator=generator) @ mix.T + torch.arange(d) * 5.0


def covariance(x):
    centred = (x - x.mean(0)).double()
    return (centred.T @ centred / len(x)).float()


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_whitened_features_have_the_identity_as_covariance(kind):
    x = features()

    mean, matrix = whitening(x, shrinkage=0, kind=kind)

    white = (x - mean) @ matrix
    assert_close(covariance(white), torch.eye(6), atol=2e-3, rtol=0)
    assert_close(white.mean(0), torch.zeros(6), atol=2e-3, rtol=0)


def test_zca_is_symmetric_and_pca_starts_with_the_widest_axis():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0])

    _, zca = whitening(x, shrinkage=0)
    _, pca = whitening(x, shrinkage=0, kind="pca")

    assert_close(zca, zca.T)
    assert pca[1, 0].abs() > 10 * pca[0, 0].abs()


def test_full_shrinkage_only_scales():
    x = features()

    _, matrix = whitening(x, shrinkage=1)

    assert_close(matrix, torch.eye(6) * (covariance(x).trace() / 6).rsqrt())


@pytest.mark.parametrize("out", [3, 6])
def test_a_folded_layer_gives_uncorrelated_outputs_of_the_chosen_size(out):
    x, linear = features(), nn.Linear(6, out)

    fold_into_linear(linear, *whitening(x, shrinkage=0), 0.02, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        y = linear(x)
    assert_close(covariance(y), torch.eye(out) * 0.02**2, atol=2e-6, rtol=0)
    assert_close(y.mean(0), torch.zeros(out), atol=1e-4, rtol=0)


def test_a_widening_layer_keeps_the_size_and_all_the_information():
    x, linear = features(), nn.Linear(6, 24)

    fold_into_linear(linear, *whitening(x, shrinkage=0), 0.5, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        spread = covariance(linear(x))
    assert spread.trace().item() / 24 == pytest.approx(0.25, rel=1e-2)
    variances = torch.linalg.eigvalsh(spread)
    assert_close(variances[-6:], torch.full((6,), 0.25 * 24 / 6), rtol=1e-2, atol=0)


def test_statistics_and_layers_that_cannot_serve_are_refused():
    x = features()

    with pytest.raises(ConfigError, match="singular"):
        whitening(x[:3], shrinkage=0)
    with pytest.raises(ConfigError, match=r"shrinkage is 1.5"):
        whitening(x, shrinkage=1.5)
    with pytest.raises(ConfigError, match="bias=False"):
        fold_into_linear(nn.Linear(6, 2, bias=False), *whitening(x, shrinkage=0), 1.0)
    with pytest.raises(ConfigError, match="5 inputs"):
        fold_into_linear(nn.Linear(5, 2), *whitening(x, shrinkage=0), 1.0)
    assert torch.isfinite(whitening(x[:3], shrinkage=0.1)[1]).all()
