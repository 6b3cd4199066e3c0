"""Run checkpoints on disk: a training run's state, whole or not there at all.

One folder a checkpoint, `step-00000500/`: safetensors for tensors, `state.json` for the rest, and
`manifest.json` with the size and SHA-256 of all of them. A save writes everything into a hidden folder beside
it, flushes it to the disk and renames it into place, so a process killed at any moment leaves the earlier
checkpoints as they were.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamllm.errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT = 1
_FOLDER = re.compile(r"step-(\d{8,})")
_MANIFEST = "manifest.json"
_STATE = "state.json"
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
        CheckpointError: the disk is full or the folder cannot be written. Earlier checkpoints are untouched.
    """
    path = directory / f"step-{state.step:08d}"
    aside = directory / f"{_ASIDE}{path.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"{_ASIDE}*"):
            shutil.rmtree(leftover)
        aside.mkdir()
        _write(aside, state)
        if path.exists():
            shutil.rmtree(path)
        aside.rename(path)
        _flush(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {state.step} cannot be written to {path}: {error}; expected a folder "
            f"with room for {_size_of(state) / 2**20:.0f} MiB; free some space or check permissions, then "
            "resume from the earlier checkpoint, which is untouched"
        ) from error
    if keep is not None:
        # A later step can only be a damaged one that a resumed run passed over: it must not crowd this out.
        done = [folder for step, folder in _folders(directory) if step <= state.step]
        for old in done[keep:]:
            shutil.rmtree(old)
    return path


def latest(directory: Path) -> Path | None:
    """The newest checkpoint that is whole; a damaged newer one is passed over with a warning."""
    for _, path in _folders(directory):
        fault = _fault(path)
        if fault is None:
            return path
        logger.warning("passing over the checkpoint %s: %s; the one before it is used", path, fault)
    return None


def load_run(path: Path) -> RunState:
    """Read a checkpoint folder, tensors on the CPU.

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
    return RunState(
        step=state["step"],
        tensors={name: load_file(path / f"{name}.safetensors") for name in state["tensors"]},
        info=state["info"],
    )


def _write(folder: Path, state: RunState) -> None:
    for name, tensors in state.tensors.items():
        # Copies, because safetensors refuses tensors that share memory.
        copies = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
        save_file(copies, folder / f"{name}.safetensors")
    record = {"step": state.step, "tensors": list(state.tensors), "info": dict(state.info)}
    (folder / _STATE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    files = {file.name: {"size": file.stat().st_size, "sha256": _hash(file)} for file in folder.iterdir()}
    manifest = {"format": FORMAT, "step": state.step, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in folder.iterdir():
        _flush(file)
    _flush(folder)


def _flush(path: Path) -> None:
    """Push a file or a folder's list of names to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder; its renames are journalled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes, expected {expected['size']}"
            if _hash(path / name) != expected["sha256"]:
                return f"the content of {name} has changed since it was written"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {_MANIFEST} cannot be read ({error})"
    return None


def _size_of(state: RunState) -> int:
    return sum(tensor.nbytes for tensors in state.tensors.values() for tensor in tensors.values())
