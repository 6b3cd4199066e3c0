"""Fills the caches of a recipe with the workers of a Ray cluster: each takes some steps of the run at a time.

A worker holds the model and writes its own shards into the folder, which all must reach; no record travels
through Ray. A lost worker's steps are done again by another.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dreamllm.data.feature_cache_writer import write_index
from dreamllm.errors import MissingExtraError
from dreamllm.train.cache import CacheFiller, CacheOptions, Filled
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

    Joins the cluster that Ray finds, or starts one on this machine. It needs a CPU for each worker and one
    more, to hand out steps. `on_task` is called with the number of steps done and what has been done in them.
    A task writes its shards when it ends, so its steps should hold enough pictures for a shard.

    Raises:
        MissingExtraError: Ray is not installed.
    """
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
    tasks = ray.data.range(config.steps, override_num_blocks=-(-config.steps // steps_per_task)).map_batches(
        StepBatches,
        fn_constructor_args=(config, run_dir.resolve(), out.resolve(), options),
        batch_size=steps_per_task,
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_gpus=gpus_per_worker,
    )
    done, num_steps = Filled(), 0
    for row in tasks.iter_rows():
        done.add(_filled(row))
        num_steps += int(row["steps"])
        if on_task is not None:
            on_task(num_steps, done)
    for name in options.caches:
        write_index(out / name)
    return done


class StepBatches:
    """For `map_batches`: a column `id` of steps in, one row out that says what was done in them."""

    def __init__(self, config: RunConfig, run_dir: Path, out: Path, options: CacheOptions) -> None:
        """See `CacheFiller`; called once in every worker."""
        self._filler = CacheFiller(config, run_dir, out=out, options=options)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Compute and write the caches of some steps."""
        steps = [int(step) for step in batch["id"]]
        done = self._filler.fill(steps, index=False)
        row = {
            "steps": len(steps),
            "documents": done.documents,
            "pictures": done.pictures,
            "num_bytes": done.num_bytes,
            "rest": json.dumps([done.written, done.faults, done.examples]),
        }
        return {name: [value] for name, value in row.items()}


def _filled(row: Mapping[str, Any]) -> Filled:
    written, faults, examples = json.loads(row["rest"])
    return Filled(
        documents=int(row["documents"]),
        pictures=int(row["pictures"]),
        num_bytes=int(row["num_bytes"]),
        written=Counter(written),
        faults=Counter(faults),
        examples=examples,
    )
