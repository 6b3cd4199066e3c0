"""The learning rate as a pure function of the step: linear warm-up, then a decay.

Nothing to save, nothing to resume.
"""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def num_warmup_steps(num_steps: int, warmup_ratio: float) -> int:
    """Length of the warm-up, rounded up: any ratio above zero warms up for at least one step."""
    return math.ceil(num_steps * warmup_ratio)


def lr_factor(
    step: int, *, num_steps: int, schedule: Schedule, warmup_ratio: float = 0.0, final_ratio: float = 0.0
) -> float:
    """Factor of the peak learning rate for the optimizer step with this number, counted from 0.

    The warm-up climbs in equal parts and its last step has factor 1, so no step is spent at a rate of zero.
    The decay starts at 1 on the first step after the warm-up and reaches `final_ratio` on step `num_steps`.
    """
    warmup = num_warmup_steps(num_steps, warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    decay = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return final_ratio + (1.0 - final_ratio) * decay
