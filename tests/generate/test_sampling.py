import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dreamllm.generate.sampling import next_tokens, nucleus, row_generator, sample_at

LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
ALL = torch.ones(1, 4, dtype=torch.bool)


def test_temperature_divides_the_logits():
    # softmax(log p / 0.5) is p squared, normalised: 0.25, 0.0625, 0.0225, 0.01 over 0.345
    probabilities = nucleus(LOGITS, temperature=0.5, top_p=1.0)

    assert_close(probabilities, torch.tensor([[0.25, 0.0625, 0.0225, 0.01]]) / 0.345)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    # 0.5 + 0.25 = 0.75 is short of 0.8; with 0.15 it is 0.9
    probabilities = nucleus(LOGITS, temperature=1.0, top_p=0.8)

    assert_close(probabilities, torch.tensor([[0.5, 0.25, 0.15, 0.0]]) / 0.9)


@pytest.mark.parametrize(
    ("point", "token"), [(0.0, 1), (0.2499, 1), (0.25, 2), (0.7499, 2), (0.75, 4), (1 - 2**-53, 4)]
)
def test_a_point_picks_the_token_whose_share_it_falls_in(point, token):
    probabilities = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]], dtype=torch.float64)

    assert sample_at(probabilities, torch.tensor([point], dtype=torch.float64)).tolist() == [token]


def test_sampling_frequencies_follow_the_probabilities():
    count = 4000
    generators = [row_generator(0, i) for i in range(count)]

    tokens = next_tokens(
        LOGITS.expand(count, 4), ALL.expand(count, 4), generators, temperature=1.0, top_p=1.0
    )

    shares = torch.bincount(tokens, minlength=4) / count
    margin = 4 * math.sqrt(0.25 / count)
    assert_close(shares, torch.tensor([0.5, 0.25, 0.15, 0.1]), atol=margin, rtol=0.0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
)
def test_a_forbidden_token_is_never_taken(seed, temperature, top_p):
    logits = torch.randn(5, 12, generator=row_generator(seed)) * 8
    is_allowed = torch.rand(5, 12, generator=row_generator(seed, "allowed")) < 0.3
    is_allowed[:, seed % 12] = True

    tokens = next_tokens(
        logits,
        is_allowed,
        [row_generator(seed, row) for row in range(5)],
        temperature=temperature,
        top_p=top_p,
    )

    assert is_allowed[torch.arange(5), tokens].all()


def test_a_row_draws_the_same_token_in_any_company():
    logits = torch.randn(6, 50, generator=row_generator(1)) * 2
    is_allowed = torch.ones(6, 50, dtype=torch.bool)

    together = next_tokens(
        logits, is_allowed, [row_generator(7, r) for r in range(6)], temperature=1.0, top_p=0.95
    )
    alone = [
        next_tokens(
            logits[r : r + 1], is_allowed[:1], [row_generator(7, r)], temperature=1.0, top_p=0.95
        ).item()
        for r in range(6)
    ]

    assert together.tolist() == alone


def test_generators_differ_by_seed_and_by_every_name():
    draws = {
        torch.rand((), generator=row_generator(*names)).item()
        for names in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a")]
    }

    assert len(draws) == 5
