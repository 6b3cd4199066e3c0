import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dreamllm.models.dream_queries import DreamQueries
from dreamllm.models.projectors import condition_projector, visual_projector


def test_every_slot_gets_the_same_queries_and_their_gradients_add_up():
    queries = DreamQueries(5, 8)

    given = queries(3)
    given.sum().backward()

    assert given.shape == (3, 5, 8)
    assert_close(given[0], given[2])
    assert_close(queries.queries.grad, torch.full((1, 5, 8), 3.0))


def test_queries_start_with_a_spread_of_two_hundredths():
    torch.manual_seed(0)

    start = DreamQueries(64, 512).queries

    assert start.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(start.mean().item()) < 5e-4


def test_the_papers_projectors_have_the_papers_numbers_of_parameters():
    def size(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        vision, condition = visual_projector(1024, 4096), condition_projector(4096, 1024)

    assert size(vision) == 4_198_400  # 1024 * 4096 + 4096
    assert size(condition) == 4_194_304  # 4096 * 1024, no bias


def test_an_mlp_projector_is_two_layers_with_a_gelu_between():
    torch.manual_seed(0)
    module, x = visual_projector(4, 6, kind="mlp"), torch.randn(3, 4)

    first, second = module[0], module[2]
    expected = nn.functional.gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias

    assert_close(module(x), expected)
    assert not any("bias" in name for name, _ in condition_projector(4, 6, kind="mlp").named_parameters())
