import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamllm.runtime.seeding import derive_seed, make_generator, seed_everything

Parts = tuple[int | str, ...]
PARTS = st.lists(st.integers() | st.text(), max_size=4).map(tuple)


def test_a_derived_seed_is_the_same_in_every_process_and_version() -> None:
    """The first 63 bits of SHA-256 over the text `[1, "noise"]`."""
    assert derive_seed(1, "noise") == 0x4DE2CEED2FA5DA22


@settings(deadline=None)
@given(PARTS, PARTS)
def test_different_parts_give_different_seeds(first: Parts, second: Parts) -> None:
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)
    assert 0 <= derive_seed(*first) < 2**63


def test_a_number_and_its_text_are_different_parts() -> None:
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_seeding_repeats_every_global_generator() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002

    seed_everything(2**40 + 1)
    first = draw()
    seed_everything(2**40 + 1)

    assert draw() == first


def test_a_generator_draws_alike_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)

    first = torch.rand(4, generator=make_generator(5))
    second = torch.rand(4, generator=make_generator(5))

    assert torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)
