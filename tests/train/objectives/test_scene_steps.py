from collections.abc import Sequence

import numpy as np
import pytest

from dreamllm.errors import ConfigError
from dreamllm.train.objectives.configs import ScenePhase, VaeObjectiveConfig
from dreamllm.train.objectives.scene_steps import SceneSteps
from dreamllm.world.scene import Scene
from dreamllm.world.splits import split_of

Made = tuple[list[Scene], float, float]
PHASES = (ScenePhase(until=0.5, num_objects=(1,)), ScenePhase(until=1.0, num_objects=(2, 3)))


def scene_steps(seed: int = 0) -> SceneSteps[Made]:
    def make(scenes: Sequence[Scene], rng: np.random.Generator, progress: float) -> Made:
        return list(scenes), rng.random(), progress

    return SceneSteps(make, PHASES, scenes_per_step=6, steps=10, seed=seed)


def test_a_step_is_a_pure_function_of_seed_and_number() -> None:
    steps, same, other = scene_steps(), scene_steps(), scene_steps(seed=1)

    backwards = [same[step] for step in reversed(range(10))]

    assert [steps[step] for step in range(10)] == backwards[::-1]
    assert steps[0] != steps[1]
    assert steps[0] != other[0]


def test_a_step_is_one_micro_batch_of_training_scenes_and_knows_how_far_the_run_is() -> None:
    steps = scene_steps()

    made = [steps[step] for step in range(len(steps))]

    assert [len(micro_batches) for micro_batches in made] == [1] * 10
    assert [micro_batches[0][2] for micro_batches in made] == [step / 10 for step in range(10)]
    assert all(len(micro_batches[0][0]) == 6 for micro_batches in made)
    assert {split_of(scene) for micro_batches in made for scene in micro_batches[0][0]} == {"train"}


def test_phases_decide_how_many_objects_a_scene_has() -> None:
    steps = scene_steps()

    counts = [{len(scene.objects) for scene in steps[step][0][0]} for step in range(10)]

    assert counts[:5] == [{1}] * 5
    assert set.union(*counts[5:]) == {2, 3}


@pytest.mark.parametrize("ends", [(), (0.5,), (0.7, 0.2, 1.0), (1.0, 2.0)])
def test_phases_that_do_not_cover_the_run_are_refused(ends: tuple[float, ...]) -> None:
    phases = tuple(ScenePhase(until=end, num_objects=(1,)) for end in ends)

    with pytest.raises(ConfigError, match=r"phases end at .*expected .*the last until 1\.0"):
        VaeObjectiveConfig(phases=phases)
