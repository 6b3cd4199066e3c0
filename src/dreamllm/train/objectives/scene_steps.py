"""Scenes of every step of a run that learns from pictures and captions rather than from documents."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

from dreamllm.train.objectives.configs import ScenePhase
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

T = TypeVar("T")


class SceneSteps(Dataset[list[T]], Generic[T]):
    """Item `step` is one micro-batch made of that step's scenes; a pure function of (seed, step)."""

    def __init__(
        self,
        make: Callable[[Sequence[Scene], np.random.Generator, float], T],
        phases: tuple[ScenePhase, ...],
        *,
        scenes_per_step: int,
        steps: int,
        seed: int,
    ) -> None:
        """`make` turns scenes into a micro-batch, given a generator and how far the run is, in [0, 1)."""
        self._make = make
        self._phases = phases
        self._scenes_per_step = scenes_per_step
        self._steps = steps
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> list[T]:
        progress = step / self._steps
        phase = next(phase for phase in self._phases if progress < phase.until)
        rng = np.random.default_rng([self._seed % 2**32, step])
        scenes = [sample_scene(rng, num_objects=phase.num_objects) for _ in range(self._scenes_per_step)]
        return [self._make(scenes, rng, progress)]
