"""`dreamllm data cache`: what a recipe's frozen models say of its pictures, computed once."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dreamllm.cli.data import make_console
from dreamllm.config import load_config
from dreamllm.errors import ConfigError
from dreamllm.recipes import FOLDER, find_recipe, is_family

if TYPE_CHECKING:
    from collections.abc import Callable

    from dreamllm.train.cache import CacheOptions, Filled
    from dreamllm.train.run_config import RunConfig

FAULTS_FOUND = 1


def run(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")],
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY=VALUE ...]")
    ] = (),
    /,
    *,
    out: Path,
    run_dir: Path | None = None,
    caches: tuple[Literal["vision", "latents", "codes"], ...] = (),
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
    part: str = "0/1",
    ray_workers: int = 0,
    gpus_per_ray_worker: float = 0.0,
) -> int:
    """Compute what frozen encoders say of all pictures that a run will see, and store it.

    Of a DreamLLM these are vision features and VAE latents, which a run reads with
    objective.vision_cache=OUT/vision and objective.latent_cache=OUT/latents; of a JAM picture codes, with
    objective.code_cache=OUT/codes. Run it again to go on where it was stopped: what is stored is neither
    decoded nor computed again. Exits with 1 if a document or a picture could not be read; those are counted
    and left out.

    Args:
        recipe: A YAML file or a shipped recipe, of the objective dreamllm or jam.
        overrides: Dotted assignments, as for train.
        out: Folder of the caches.
        run_dir: Folder of the run, which paths in the recipe are relative to; as --out of train.
        caches: Which ones, all if left out; a run of read pictures alone needs no latents.
        dtype: Type in which features and latents are stored.
        batch_size: Pictures computed at once.
        workers: Processes that read and decode pictures.
        device: Where to compute: auto, cpu, cuda, cuda:1 or mps.
        part: K/N does every N-th step from K on: N commands with one OUT share the work.
        ray_workers: Workers of a Ray cluster that share the work; 0 does it here.
        gpus_per_ray_worker: GPUs of each of them.
    """
    path, config = _read(recipe, overrides)
    from dreamllm.train.cache import CacheOptions, chosen_caches

    options = CacheOptions(
        caches=caches, dtype=dtype, batch_size=batch_size, num_workers=workers, device=device
    )
    start = time.perf_counter()
    run_dir = run_dir or _default_run_dir(path, config.name)
    ray = (ray_workers, gpus_per_ray_worker)
    done = _fill(config, run_dir, out=out, options=options, part=part, ray=ray)
    _report(done, out, chosen_caches(config, options), seconds=time.perf_counter() - start)
    return FAULTS_FOUND if done.faults else 0


def _read(recipe: str, overrides: tuple[str, ...]) -> "tuple[Path, RunConfig]":
    path = find_recipe(recipe)
    if is_family(path):
        raise ConfigError(
            f"{recipe} is a family of recipes; expected one run; name one, as {path.parent.name}/NAME"
        )
    from dreamllm.runtime.logs import configure_logging
    from dreamllm.train.run_config import RunConfig

    configure_logging()
    return path, load_config(RunConfig, path, overrides)


def _fill(
    config: "RunConfig",
    run_dir: Path,
    *,
    out: Path,
    options: "CacheOptions",
    part: str,
    ray: tuple[int, float],
) -> "Filled":
    """Here, or on a Ray cluster, while a line on stderr says how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dreamllm.train.cache import CacheFiller
    from dreamllm.train.cache_with_ray import fill_with_ray

    number, parts = _part(part)
    num_workers, gpus = ray
    if num_workers and parts > 1:
        raise ConfigError(
            f"part is {part!r} and ray_workers {num_workers}; expected one way to share the work; drop one"
        )
    steps = range(number, config.steps, parts)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("steps", total=len(steps))

        def show(num_steps: int, done: "Filled") -> None:
            rate = done.pictures / max(time.perf_counter() - start, 1e-9)
            told = f"steps, {rate:,.1f} pictures/s, {done.num_bytes / 1e6:,.1f} MB"
            progress.update(task, completed=num_steps, description=told)

        if num_workers:
            return fill_with_ray(
                config,
                run_dir,
                out=out,
                options=options,
                num_workers=num_workers,
                gpus_per_worker=gpus,
                on_task=show,
            )
        return CacheFiller(config, run_dir, out=out, options=options).fill(steps, _counting(show))


def _counting(show: "Callable[[int, Filled], None]") -> "Callable[[Filled], None]":
    """Adds the number of calls."""
    calls = 0

    def counted(done: "Filled") -> None:
        nonlocal calls
        calls += 1
        show(calls, done)

    return counted


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and int(number) < int(parts)):
        raise ConfigError(f"part is {text!r}; expected K/N with K from 0 to N - 1, as 0/4; correct it")
    return int(number), int(parts)


def _default_run_dir(path: Path, name: str) -> Path:
    """Where `dreamllm train` would write."""
    if path.parent.parent == FOLDER:
        return Path("runs") / path.parent.name / path.stem
    return Path("runs") / name


def _report(done: "Filled", out: Path, caches: tuple[str, ...], *, seconds: float) -> None:
    console = make_console()
    lines = [
        f"{done.documents:,} documents with {done.pictures:,} pictures in {seconds:,.1f} s, "
        f"{done.pictures / seconds:,.1f} pictures/s",
        *(f"{done.written[name]:,} new entries in {out / name}" for name in caches),
        f"{done.num_bytes / 1e6:,.1f} MB written",
        *(f"left out: {count:,} x {kind}" for kind, count in sorted(done.faults.items())),
        *done.examples,
    ]
    settings = {"vision": "vision_cache", "latents": "latent_cache", "codes": "code_cache"}
    lines.append("train with " + " ".join(f"objective.{settings[n]}={(out / n).resolve()}" for n in caches))
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
