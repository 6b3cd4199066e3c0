"""Fills the caches of a recipe with the workers of a Ray cluster: each takes some steps of the run at a time.

A worker holds the model and writes its own shards into the folder, which all must reach; no record travels
through Ray. A lost worker's steps are done again by another.
"""

import functools
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dreamllm.data.feature_cache_writer import write_index
from dreamllm.errors import ConfigError, DreamLLMError, MissingExtraError
from dreamllm.train.cache import CacheFiller, CacheOptions, Filled, chosen_caches
from dreamllm.train.run_config import RunConfig


def fill_with_ray(
    config: RunConfig,
    run_dir: Path,
    *,
    out: Path,
    options: CacheOptions,
    num_workers: int,
    gpus_per_worker: float = 0.0,
    steps_per_task: int = 64,
    on_task: Callable[[int, Filled], None] | None = None,
) -> Filled:
    """Fill the caches of all steps of a run, then write their index.

    Joins the cluster that Ray finds, or starts one on this machine; it needs a CPU for each worker. `on_task`
    is called with the number of steps done and what has been done in them. A task writes its shards when it
    ends, so its steps should hold enough pictures for a shard.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the recipe has nothing to cache, or the cluster has too few CPUs or GPUs.
        DreamLLMError: what stopped a worker.
    """
    names = chosen_caches(config, options)
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "workers of a Ray cluster are asked for but Ray is not installed; "
            "run: pip install 'dreamllm[ray]', or use --workers on one machine"
        ) from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    _check_resources(ray.cluster_resources(), num_workers, gpus_per_worker)
    steps = [{"id": step} for step in range(config.steps)]  # `ray.data.range` would take a CPU for itself
    steps_per_task = min(steps_per_task, -(-config.steps // num_workers))  # so that none is without
    num_tasks = -(-config.steps // steps_per_task)
    tasks = ray.data.from_items(steps, override_num_blocks=num_tasks).map_batches(
        StepBatches,
        fn_constructor_args=(config, run_dir.resolve(), out.resolve(), options),
        batch_size=steps_per_task,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_gpus=gpus_per_worker,
    )
    done, num_steps = Filled(), 0
    for row in tasks.iter_rows():
        done.add(filled(row))
        num_steps += int(row["steps"])
        if on_task is not None:
            on_task(num_steps, done)
    for name in names:
        write_index(out / name)
    return done


def _check_resources(found: Mapping[str, float], num_workers: int, gpus_per_worker: float) -> None:
    """Ray would wait for what is not there, without a word."""
    for name, needed in (("CPU", num_workers), ("GPU", num_workers * gpus_per_worker)):
        if found.get(name, 0) < needed:
            raise ConfigError(
                f"{num_workers} Ray workers need {needed:g} {name}s and the cluster has "
                f"{found.get(name, 0):g}; expected as many, since Ray waits for what is missing; take fewer "
                f"workers, or start Ray with more: ray start --head --num-{name.lower()}s {needed:g}"
            )


class StepBatches:
    """For `map_batches`: a column `id` of steps in, one row out that says what was done in them.

    An error of this package is said in the row too: Ray would wrap it, or make of it a worker that died.
    """

    def __init__(self, config: RunConfig, run_dir: Path, out: Path, options: CacheOptions) -> None:
        """See `CacheFiller`; called once in every worker."""
        self._make_filler = functools.cache(partial(CacheFiller, config, run_dir, out=out, options=options))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Compute and write the caches of some steps; `result` is a pickled `Filled`, or the error."""
        steps = [int(step) for step in batch["id"]]
        result: Filled | DreamLLMError
        try:
            result = self._make_filler().fill(steps, index=False)
        except DreamLLMError as error:
            result = error
        return {"steps": [len(steps)], "result": [pickle.dumps(result)]}


def filled(row: Mapping[str, Any]) -> Filled:
    """What a row of `StepBatches` says.

    Raises:
        DreamLLMError: what stopped its worker.
    """
    result: Filled | DreamLLMError = pickle.loads(row["result"])
    if isinstance(result, DreamLLMError):
        raise result
    return result
