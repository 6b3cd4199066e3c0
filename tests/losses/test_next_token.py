import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dreamllm.losses.next_token import log_partition_squares, next_token_losses


def test_even_logits_cost_the_logarithm_of_the_vocabulary():
    losses = next_token_losses(torch.zeros(3, 8), nn.Identity(), torch.tensor([0, 4, 7]))

    assert losses.tolist() == pytest.approx(3 * [math.log(8)])


def test_every_position_has_its_own_loss():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])  # probabilities 1/4 and 3/4

    losses = next_token_losses(logits, nn.Identity(), torch.tensor([0, 1]))

    assert losses.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])


def test_the_square_of_the_log_partition_of_each_position():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])

    squares = log_partition_squares(logits, nn.Identity(), chunk_size=1)

    assert squares.tolist() == pytest.approx([math.log(2) ** 2, math.log(4) ** 2])


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_the_chunk_size_changes_neither_a_loss_nor_a_gradient(chunk_size):
    torch.manual_seed(0)
    head, hidden = nn.Linear(5, 11), torch.randn(7, 5, requires_grad=True)
    labels, weights = torch.randint(0, 11, (7,)), torch.rand(7)
    plain = nn.functional.cross_entropy(head(hidden), labels, reduction="none")
    expected = torch.autograd.grad(plain, [hidden, head.weight], grad_outputs=weights)

    losses = next_token_losses(hidden, head, labels, chunk_size=chunk_size)

    assert_close(losses, plain)
    assert_close(torch.autograd.grad(losses, [hidden, head.weight], grad_outputs=weights), expected)


def test_the_head_never_sees_more_positions_than_a_chunk():
    seen = []

    def head(states):
        seen.append(states.shape[0])
        return states

    hidden = torch.randn(10, 6, requires_grad=True)
    next_token_losses(hidden, head, torch.zeros(10, dtype=torch.long), chunk_size=4).sum().backward()

    assert max(seen) == 4
    assert sorted(seen) == [2, 2, 4, 4, 4, 4]  # each chunk once forward and once again for the gradient


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([1, 2, 3, 4])

    losses = next_token_losses(logits, nn.Identity(), labels)

    assert losses.dtype == torch.float32
    assert_close(losses, nn.functional.cross_entropy(logits.float(), labels, reduction="none"))


def test_no_label_gives_a_zero_gradient():
    hidden = torch.randn(0, 5, requires_grad=True)
    head = nn.Linear(5, 3)

    loss = next_token_losses(hidden, head, torch.zeros(0, dtype=torch.long)).sum()
    loss.backward()

    assert loss.item() == 0
    assert head.weight.grad.abs().max() == 0
