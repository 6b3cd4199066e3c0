import math

import pytest

from dreamllm.train.schedule import lr_factor, num_warmup_steps


def test_the_warm_up_climbs_in_equal_parts_to_the_peak() -> None:
    factors = [lr_factor(s, num_steps=20, schedule="constant", warmup_ratio=0.2) for s in range(6)]

    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_linear_decay_falls_in_equal_parts() -> None:
    factors = [lr_factor(s, num_steps=4, schedule="linear") for s in range(4)]

    assert factors == [1.0, 0.75, 0.5, 0.25]


def test_the_cosine_is_half_way_down_in_the_middle_and_ends_at_the_final_ratio() -> None:
    def at(step: int) -> float:
        return lr_factor(step, num_steps=110, schedule="cosine", warmup_ratio=10 / 110, final_ratio=0.1)

    assert at(10) == 1.0
    assert at(60) == pytest.approx(0.55)
    # A quarter of the way: 0.1 + 0.9 * (1 + cos 45 deg) / 2.
    assert at(35) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert at(110) == pytest.approx(0.1)
    assert at(500) == pytest.approx(0.1)


def test_any_warm_up_ratio_above_zero_is_at_least_one_step() -> None:
    assert num_warmup_steps(300, 0.003) == 1
    assert num_warmup_steps(1000, 0.003) == 3
    assert num_warmup_steps(300, 0.0) == 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_no_step_of_a_run_has_a_rate_of_zero(schedule: str) -> None:
    factors = [lr_factor(s, num_steps=50, schedule=schedule, warmup_ratio=0.1) for s in range(50)]

    assert all(0 < factor <= 1 for factor in factors)
    assert factors[5:] == sorted(factors[5:], reverse=True)
