import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file
from tests.document.full_disk import largest_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from dreamllm.data.index import write_table
from dreamllm.document.atomic import replacing, write_bytes, writing
from dreamllm.errors import DiskError

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
WORDS = {f"word{number}": number for number in range(1000)}
LIMIT = 4096

WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 9000),
    "numpy": lambda path: np.save(path.open("wb"), NOISE),
    "png": lambda path: PILImage.fromarray(NOISE).save(path, format="PNG"),
    "safetensors": lambda path: save_file({"noise": torch.from_numpy(NOISE)}, path),
    "torch": lambda path: torch.save(torch.from_numpy(NOISE), path),
    "tokenizers": lambda path: Tokenizer(WordLevel(WORDS, unk_token="word0")).save(str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.filterwarnings("ignore:unclosed file")
def test_a_full_disk_is_one_line_whichever_library_writes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"

    with (
        largest_file(LIMIT),
        pytest.raises(
            DiskError, match=r"^cannot write .*file: .*; expected room for 2\.0 MiB .*MiB are free"
        ),
        writing(path, size_bytes=2**21),
    ):
        WRITERS[name](path)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, bytes(9000)),
        lambda path: write_table(path, np.zeros((500, 3), dtype=np.int64)),
    ],
)
def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    with largest_file(LIMIT), pytest.raises(DiskError, match="file: File too large; expected room for 0"):
        write(path)

    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_many_small_writes_are_counted(tmp_path: Path) -> None:
    def fill() -> None:
        with replacing(tmp_path / "file") as file:
            for _ in range(3 * 2**10):
                file.write(bytes(2**10))

    with largest_file(2**21), pytest.raises(DiskError, match=r"expected room for 2\.\d MiB"):
        fill()

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_the_last_moment_leaves_the_old_file(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse)

    with pytest.raises(DiskError, match=f"file: {os.strerror(number)}; expected .*room.*; make room"):
        write_bytes(path, b"new")

    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_place_that_takes_no_files_is_told_from_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DiskError, match=r"cannot write .*a place that takes new files; check the path"):
        write_bytes(tmp_path / "file" / "inside", b"new")


@pytest.mark.parametrize(
    "error", [FileNotFoundError("a picture"), ValueError("a document"), KeyboardInterrupt]
)
def test_errors_of_what_is_written_are_not_those_of_the_disk(
    error: BaseException | type[BaseException], tmp_path: Path
) -> None:
    def fill() -> None:
        with replacing(tmp_path / "file"):
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        fill()

    assert os.listdir(tmp_path) == []
