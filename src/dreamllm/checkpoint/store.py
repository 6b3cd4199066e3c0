"""Run checkpoints on disk: a training run's state, whole or not there at all.

One folder a checkpoint, `step-00000500/`: safetensors for tensors, `state.json` for the rest, and
`manifest.json` with the size and SHA-256 of all of them. A save writes everything into a hidden folder beside
it, flushes it to the disk and renames it into place, so a process killed at any moment leaves the earlier
checkpoints as they were. A run on many ranks has a folder `shards/` in place of the safetensors files, which
the ranks fill in the background (`ShardedSaves`). Either kind is read by any number of ranks.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from dreamllm.checkpoint import shards
from dreamllm.document.atomic import flush_to_disk, replace_folder, writing
from dreamllm.errors import CheckpointError
from dreamllm.runtime.distributed import Ranks

logger = logging.getLogger(__name__)

FORMAT = 1
SHARDED_FORMAT = 2
_FOLDER = re.compile(r"step-(\d{8,})")
_MANIFEST = "manifest.json"
_STATE = "state.json"
_SHARDS = "shards"
_ASIDE = ".unfinished-"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """Everything a run needs to go on."""

    step: int
    """Optimizer steps done."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """Tensors by name, one file for each outer key."""
    info: Mapping[str, Any]
    """The rest: what JSON can hold."""


def save_run(directory: Path, state: RunState, *, keep: int | None = None) -> Path:
    """Write a checkpoint into the run's folder and return its path; then leave only the newest `keep`.

    One process writes a folder at a time. A checkpoint of the same step is replaced.

    Raises:
        DiskError: the disk is full or the folder cannot be written. Earlier checkpoints are untouched.
    """
    path, aside = _places(directory, state.step)
    with writing(path, size_bytes=_size_of(state)):
        try:
            _make_aside(aside)
            _write(aside, state)
            replace_folder(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    _leave_newest(directory, state.step, keep)
    return path


class ShardedSaves:
    """The checkpoints of a run on many ranks, written while it goes on; at most one is under way.

    A checkpoint appears when the shards of all ranks are on the disk: the main rank then writes its manifest
    and renames it into place. Ranks share the folder. What hinders one of them is an error on all of them.
    """

    def __init__(
        self, directory: Path, ranks: Ranks, *, keep: int | None = None, timeout_min: int = 60
    ) -> None:
        self._directory = directory
        self._ranks = ranks
        self._keep = keep
        self._group = shards.new_group(timeout_min=timeout_min)
        self._under_way: tuple[RunState, Future[Any]] | None = None

    def begin(self, state: RunState) -> Path:
        """Start to write the checkpoint that `state` is now, after an earlier one is done; all must call it.

        Raises:
            DiskError: the earlier one could not be written, or the folder cannot be.
        """
        self.finish()
        path, aside = _places(self._directory, state.step)
        with self._ranks.agreed(), writing(path):
            if self._ranks.is_main:
                _make_aside(aside)
        future = shards.start_writing(state.tensors, aside / _SHARDS, self._group)
        self._under_way = (state, future)
        return path

    def settle(self) -> None:
        """Let a checkpoint appear that all have written meanwhile; waits for no disk. All must call it.

        Raises:
            DiskError: it could not be written.
        """
        if self._under_way is not None and not self._ranks.any(flag=not self._under_way[1].done()):
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is under way; all must call it, and find it in place afterwards.

        Raises:
            DiskError: it could not be written.
        """
        with self._ranks.agreed():
            self._complete()

    def leave(self) -> None:
        """After an error of this rank: let a checkpoint appear that all have written, without a word with
        the others."""
        if self._under_way is not None and self._under_way[1].done():
            self._complete()

    def _complete(self) -> None:
        if self._under_way is None:
            return
        state, future = self._under_way
        self._under_way = None
        path, aside = _places(self._directory, state.step)
        with writing(path, size_bytes=_size_of(state)):
            try:
                shards.wait_for(future)
                if self._ranks.is_main:
                    _write_manifest(aside, state, format_=SHARDED_FORMAT)
                    replace_folder(aside, path)
            except BaseException:
                if self._ranks.is_main:
                    shutil.rmtree(aside, ignore_errors=True)
                raise
        if self._ranks.is_main:
            _leave_newest(self._directory, state.step, self._keep)


def _places(directory: Path, step: int) -> tuple[Path, Path]:
    """Where a checkpoint appears, and where it is written."""
    path = directory / f"step-{step:08d}"
    return path, directory / f"{_ASIDE}{path.name}"


def _make_aside(aside: Path) -> None:
    """A new folder to write to, in the place of what an earlier process has left."""
    aside.parent.mkdir(parents=True, exist_ok=True)
    for leftover in aside.parent.glob(f"{_ASIDE}*"):
        shutil.rmtree(leftover)
    aside.mkdir()


def _leave_newest(directory: Path, step: int, keep: int | None) -> None:
    if keep is not None:
        # A later step can only be a damaged one that a resumed run passed over: it must not crowd this out.
        done = [folder for number, folder in _folders(directory) if number <= step]
        for old in done[keep:]:
            shutil.rmtree(old)


def latest(directory: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged newer one is passed over with a warning."""
    for _, path in _folders(directory):
        fault = _fault(path)
        if fault is None:
            return path
        logger.warning("passing over the checkpoint %s: %s; the one before it is used", path, fault)
    return None


def load_run(path: Path) -> RunState:
    """Read a checkpoint folder, tensors on the CPU, in one piece even if many ranks wrote them.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    saved = read_header(path)
    if is_sharded(path):
        found = shards.read_whole(path / _SHARDS)
        tensors: Mapping[str, Mapping[str, Tensor]] = {part: found.get(part, {}) for part in saved.shapes}
    else:
        tensors = {name: load_file(path / f"{name}.safetensors") for name in saved.shapes}
    return RunState(step=saved.step, tensors=tensors, info=saved.info)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """What a checkpoint holds, without its tensors."""

    step: int
    info: Mapping[str, Any]
    shapes: Mapping[str, Mapping[str, torch.Size]]
    """Of every tensor, by part and name."""


def read_header(path: Path) -> SavedRun:
    """What is in a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    fault = _fault(path)
    if fault is not None:
        raise CheckpointError(
            f"the checkpoint {path} is not whole: {fault}; expected the files its {_MANIFEST} lists; use an "
            "earlier checkpoint of the run"
        )
    state = json.loads((path / _STATE).read_text(encoding="utf-8"))
    if is_sharded(path):
        found = shards.read_shapes(path / _SHARDS)
        shapes = {part: found.get(part, {}) for part in state["tensors"]}  # a part may be empty
    else:
        shapes = {part: _shapes(path / f"{part}.safetensors") for part in state["tensors"]}
    return SavedRun(step=state["step"], info=state["info"], shapes=shapes)


def is_sharded(path: Path) -> bool:
    """Whether many ranks wrote the checkpoint."""
    return (path / _SHARDS).is_dir()


def read_parts(path: Path, targets: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fill tensors, plain or sharded, with what the checkpoint has under their names and shapes.

    Of a sharded tensor a rank reads what it keeps, or one whole tensor at a time.
    """
    if is_sharded(path):
        shards.read_parts(path / _SHARDS, targets)
        return
    with torch.no_grad():
        for part, tensors in targets.items():
            with safe_open(path / f"{part}.safetensors", framework="pt") as file:
                for name, target in tensors.items():
                    _fill(target, file.get_tensor(name))


def _fill(target: Tensor, value: Tensor) -> None:
    if isinstance(target, DTensor):
        here = value.to(target.device)
        value = distribute_tensor(here, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def _shapes(path: Path) -> dict[str, torch.Size]:
    with safe_open(path, framework="pt") as file:
        return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _write(folder: Path, state: RunState) -> None:
    for name, tensors in state.tensors.items():
        # Copies, because safetensors refuses tensors that share memory.
        copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        save_file(copies, folder / f"{name}.safetensors")
    _write_manifest(folder, state, format_=FORMAT)


def _write_manifest(folder: Path, state: RunState, *, format_: int) -> None:
    """The rest of the state, and last of all what proves that everything is there.

    Shards are not read again to be hashed: it would take the main rank as long as all ranks take to write.
    """
    record = {"step": state.step, "tensors": list(state.tensors), "info": dict(state.info)}
    (folder / _STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        hashed = {} if name.startswith(f"{_SHARDS}/") else {"sha256": _hash(file)}
        files[name] = {"size": file.stat().st_size, **hashed}
    manifest = {"format": format_, "step": state.step, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in folder.rglob("*"):
        flush_to_disk(file)
    flush_to_disk(folder)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(directory: Path) -> list[tuple[int, Path]]:
    """Finished checkpoints and their steps, newest first."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _FOLDER.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or nothing."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] not in (FORMAT, SHARDED_FORMAT):
            return f"its format is {manifest['format']}, this version reads {FORMAT} and {SHARDED_FORMAT}"
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes, expected {expected['size']}"
            if "sha256" in expected and _hash(path / name) != expected["sha256"]:
                return f"the content of {name} has changed since it was written"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {_MANIFEST} cannot be read ({error})"
    return None


def _size_of(state: RunState) -> int:
    return sum(tensor.nbytes for tensors in state.tensors.values() for tensor in tensors.values())
