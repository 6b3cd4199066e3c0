import pytest
import torch
from tests.models import tiny
from tests.models.tiny_decoders import sana
from torch.testing import assert_close

from dreamllm.models.decoders.condition import Condition
from dreamllm.models.decoders.draws import device_of, draw_rows, generators_of
from dreamllm.models.decoders.image_decoder import ImageDecoder

SEEDS = (11, 2**62 + 5, 7)
DECODERS = pytest.mark.parametrize("decoder", [tiny.decoder(), sana()], ids=["diffusion", "flow"])


def losses(decoder: ImageDecoder, chosen: list[int], *, noises_per_image: int = 2) -> torch.Tensor:
    """The loss of some of three pictures, each with its own seed, in the order asked for."""
    fixed = torch.Generator().manual_seed(0)
    height, width = decoder.image_size
    pixels = torch.rand(3, 3, height, width, generator=fixed) * 2 - 1
    tokens = torch.randn(3, 4, decoder.condition_width, generator=fixed)
    own = generators_of([SEEDS[i] for i in chosen])
    return decoder.denoising_loss(
        decoder.encode(pixels[chosen], own),
        Condition.of_tokens(tokens[chosen]),
        own,
        noises_per_image=noises_per_image,
    )


@DECODERS
def test_the_loss_of_a_picture_does_not_depend_on_its_neighbours(decoder: ImageDecoder) -> None:
    together = losses(decoder, [0, 1, 2])

    alone = torch.cat([losses(decoder, [i]) for i in range(3)])

    assert_close(alone, together, rtol=1e-5, atol=1e-6)
    assert_close(losses(decoder, [2, 0]), together[[2, 0]], rtol=1e-5, atol=1e-6)
    assert len(set(together.tolist())) == 3


def test_a_generator_a_picture_draws_what_it_would_draw_alone() -> None:
    rows = draw_rows(6, generators_of(SEEDS), lambda n, g: torch.randn(n, 20, generator=g))

    expected = [torch.randn(2, 20, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS]
    assert torch.equal(rows, torch.cat(expected))


def test_one_generator_draws_for_all_where_it_lives() -> None:
    one = torch.Generator().manual_seed(3)

    rows = draw_rows(6, one, lambda n, g: torch.rand(n, generator=g))

    assert torch.equal(rows, torch.rand(6, generator=torch.Generator().manual_seed(3)))
    assert device_of(one, otherwise=torch.device("meta")) == torch.device("cpu")
    assert device_of(None, otherwise=torch.device("meta")) == torch.device("meta")
    assert device_of(generators_of([1]), otherwise=torch.device("meta")) == torch.device("cpu")


def test_a_denoiser_that_trains_has_a_gradient_of_zeros_without_pictures() -> None:
    decoder = tiny.decoder()
    decoder.denoiser.requires_grad_(True)
    nothing = Condition.of_tokens(torch.zeros(0, 4, decoder.condition_width))

    decoder.denoising_loss(torch.zeros(0, *decoder.latent_shape), nothing, None).sum().backward()

    gradients = [parameter.grad for parameter in decoder.denoiser.parameters()]
    assert all(grad is not None and not grad.any() for grad in gradients)
