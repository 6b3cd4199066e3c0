import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dreamllm.losses.next_token import cross_entropy_sum, next_token_sum


def test_cross_entropy_of_even_logits_is_the_logarithm_of_the_vocabulary():
    loss = cross_entropy_sum(torch.zeros(3, 8), torch.tensor([0, 4, 7]))

    assert loss.item() == pytest.approx(3 * math.log(8))


def test_weights_multiply_the_loss_of_each_label():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])  # probabilities 1/4 and 3/4

    loss = cross_entropy_sum(logits, torch.tensor([0, 1]), torch.tensor([2.0, 0.5]))

    assert loss.item() == pytest.approx(2 * math.log(4) + 0.5 * math.log(4 / 3))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_the_chunk_size_changes_neither_the_loss_nor_a_gradient(chunk_size, weighted):
    torch.manual_seed(0)
    head, hidden = nn.Linear(5, 11), torch.randn(7, 5, requires_grad=True)
    labels = torch.randint(0, 11, (7,))
    weights = torch.rand(7) if weighted else None
    plain = (
        nn.functional.cross_entropy(head(hidden), labels, reduction="none") * (weights if weighted else 1)
    ).sum()
    expected = torch.autograd.grad(plain, [hidden, head.weight])

    loss = next_token_sum(hidden, head, labels, weights=weights, chunk_size=chunk_size)

    assert_close(loss, plain)
    assert_close(torch.autograd.grad(loss, [hidden, head.weight]), expected)


def test_the_head_never_sees_more_positions_than_a_chunk():
    seen = []

    def head(states):
        seen.append(states.shape[0])
        return states

    next_token_sum(
        torch.randn(10, 6, requires_grad=True), head, torch.zeros(10, dtype=torch.long), chunk_size=4
    ).backward()

    assert max(seen) == 4
    assert sorted(seen) == [2, 2, 4, 4, 4, 4]  # each chunk once forward and once again for the gradient


def test_half_precision_logits_are_scored_in_float32():
    logits, labels = (
        torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16(),
        torch.tensor([1, 2, 3, 4]),
    )

    loss = cross_entropy_sum(logits, labels)

    assert loss.dtype == torch.float32
    assert_close(loss, nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))


def test_no_label_is_a_zero_with_a_zero_gradient():
    hidden = torch.randn(0, 5, requires_grad=True)
    head = nn.Linear(5, 3)

    loss = next_token_sum(hidden, head, torch.zeros(0, dtype=torch.long))
    loss.backward()

    assert loss.item() == 0
    assert head.weight.grad.abs().max() == 0
