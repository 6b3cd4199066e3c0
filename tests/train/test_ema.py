import torch
from torch import nn

from dreamllm.train.ema import WeightAverage


def test_the_average_follows_the_warmed_up_decay() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = WeightAverage({"weight": weight}, decay=0.15)
    seen = []

    for value in (2.0, 3.0, 4.0):
        weight.data.fill_(value)
        average.update()
        seen.append(average.averages["weight"].item())

    # Decays 1/10, then 2/11 and 3/12 held down to 0.15.
    first = 0.1 * 1 + 0.9 * 2
    second = 0.15 * first + 0.85 * 3
    third = 0.15 * second + 0.85 * 4
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([first, second, third]))


def test_lent_weights_are_given_back_to_the_bit_even_after_an_error() -> None:
    weight = nn.Parameter(torch.randn(5))
    average = WeightAverage({"weight": weight}, decay=0.9)
    weight.data.add_(1.0)
    before = weight.detach().clone()

    try:
        with average.lent():
            inside = weight.detach().clone()
            raise KeyError
    except KeyError:
        pass

    torch.testing.assert_close(inside, before - 1.0)
    assert torch.equal(weight, before)
