import pytest
import torch
from tests.models.tiny import decoder
from torch import nn
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.models.whitening import (
    fold_into_cross_attention,
    fold_into_linear,
    start_condition_projector,
    whitening,
)


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


def keys_and_values(unet):
    return [layer for name, layer in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]


def test_cross_attention_with_a_folded_whitening_reads_whitened_text():
    """Up to one constant a channel: the mean, which keys add to every score and values to every output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 24, generator=generator) * torch.linspace(0.3, 3, 24) + 1
    mean, matrix = whitening(x, shrinkage=0)
    plain, folded = decoder().unet, decoder().unet

    fold_into_cross_attention(folded, matrix)

    layers = list(zip(keys_and_values(plain), keys_and_values(folded), strict=True))
    assert len(layers) == 2 * (1 + 2 + 1)  # keys and values; one block down, two up, one in the middle
    with torch.no_grad():
        for fresh, ours in layers:
            difference = ours(x[:50]) - fresh((x[:50] - mean) @ matrix)
            assert_close(difference, difference[:1].expand(50, -1), atol=1e-4, rtol=0)
            assert_close(difference[0], fresh(mean @ matrix), atol=1e-4, rtol=0)


def test_only_what_reads_the_condition_is_folded():
    plain, folded = decoder().unet, decoder().unet

    fold_into_cross_attention(folded, 2 * torch.eye(24))

    changed = {
        name
        for (name, before), after in zip(plain.named_parameters(), folded.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert {tuple(name.split(".")[-3:]) for name in changed} == {
        ("attn2", "to_k", "weight"),
        ("attn2", "to_v", "weight"),
    }


@pytest.mark.parametrize("width", [24, 32])
def test_a_started_condition_projector_is_white_in_keys_and_values(width):
    """L^T c has a multiple of the identity as second moment, where L L^T = G, the metric of the condition."""
    states = torch.randn(4000, width, generator=torch.Generator().manual_seed(2))
    states = states * torch.linspace(0.5, 2, width) + 1
    unet, projector = decoder().unet, nn.Linear(width, 24, bias=False)

    start_condition_projector(projector, states, unet, generator=torch.Generator().manual_seed(3))

    weights = torch.cat([layer.weight.detach().double() for layer in keys_and_values(unet)])
    cholesky = torch.linalg.cholesky(weights.T @ weights)
    with torch.no_grad():
        heard = projector(states).double() @ cholesky
    moment = heard.T @ heard / len(heard)
    fresh = len(weights) / (3 * 24)  # variance of a default layer's weights is 1 / (3 fan_in)
    assert_close(moment, fresh * torch.eye(24, dtype=torch.float64), atol=0.03 * fresh, rtol=0)


def test_narrow_states_fill_as_many_directions_of_the_condition_as_they_have():
    states = torch.randn(4000, 8, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.5, 2, 8)
    unet, projector = decoder().unet, nn.Linear(8, 24, bias=False)

    start_condition_projector(projector, states, unet, generator=torch.Generator().manual_seed(3))

    weights = torch.cat([layer.weight.detach().double() for layer in keys_and_values(unet)])
    with torch.no_grad():
        heard = projector(states).double() @ torch.linalg.cholesky(weights.T @ weights)
    variances = torch.linalg.eigvalsh(heard.T @ heard / len(heard)) / (len(weights) / (3 * 24))
    assert_close(variances, torch.tensor([0.0] * 16 + [1.0] * 8, dtype=torch.float64), atol=0.03, rtol=0)
