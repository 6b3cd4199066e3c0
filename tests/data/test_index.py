"""Index files: made once, kept, checked, moved; expected numbers of readings are counted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dreamllm.data.index import FileIndex, FileScan, find_files, index_files
from dreamllm.errors import ConfigError, DocumentError


class CountingScan:
    """A row a line, and a note of every reading."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, path: Path) -> FileScan:
        self.read.append(path.name)
        lines = path.read_bytes().split()
        rows = np.asarray([[int(line)] for line in lines], dtype=np.int64).reshape(-1, 1)
        return FileScan(groups=(len(lines),), rows=rows, faults=int((rows < 0).sum()))


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.x").write_text(text)


def opened(folder: Path, index_folder: Path | None = None) -> tuple[list[str], FileIndex]:
    scan = CountingScan()
    index = index_files(find_files(folder, (".x",)), scan, reader="test", folder=index_folder)
    return scan.read, index


def values(index: FileIndex) -> list[int]:
    return [int(index.row(*index.locate(at))[0]) for at in range(len(index))]


def test_only_files_that_changed_are_read_again(tmp_path: Path) -> None:
    write(tmp_path, a="1 2", b="3", c="")
    assert opened(tmp_path)[0] == ["a.x", "b.x", "c.x"]
    assert opened(tmp_path)[0] == []

    write(tmp_path, b="4 5", d="6")
    read, index = opened(tmp_path)

    assert read == ["b.x", "d.x"]
    assert values(index) == [1, 2, 4, 5, 6]
    assert index.bounds.tolist() == [0, 2, 4, 5]  # an empty file is no group
    assert index.first.tolist() == [0, 2, 4, 4, 5]


def test_a_file_of_equal_size_and_another_time_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    opened(tmp_path)

    write(tmp_path, a="2")
    os.utime(tmp_path / "a.x", ns=(1, 1))

    assert values(opened(tmp_path)[1]) == [2]


def test_an_index_moves_with_its_data(tmp_path: Path) -> None:
    write(tmp_path / "here", a="1 2")
    opened(tmp_path / "here")

    shutil.move(tmp_path / "here", tmp_path / "there")
    read, index = opened(tmp_path / "there")

    assert (read, values(index)) == ([], [1, 2])


def test_a_shared_folder_keeps_equal_names_apart(tmp_path: Path) -> None:
    write(tmp_path / "one", a="1")
    write(tmp_path / "two", a="2")

    indices = [opened(tmp_path / name, tmp_path / "index")[1] for name in ("one", "two")]

    assert [values(index) for index in indices] == [[1], [2]]
    assert [opened(tmp_path / name, tmp_path / "index")[0] for name in ("one", "two")] == [[], []]


def test_an_interrupted_reading_keeps_no_half_index(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="not a number")

    with pytest.raises(ValueError):
        opened(tmp_path)
    write(tmp_path, b="2")

    assert values(opened(tmp_path)[1]) == [1, 2]


def test_a_damaged_catalog_is_made_anew_and_a_damaged_table_is_named(tmp_path: Path) -> None:
    write(tmp_path, a="1")
    opened(tmp_path)
    [catalog] = (tmp_path / ".dreamllm").glob("*.json")
    catalog.write_bytes(b'{"a.x": ')
    read, index = opened(tmp_path)
    assert read == ["a.x"]

    [table] = (tmp_path / ".dreamllm").glob("*.npy")
    table.write_bytes(b"")

    with pytest.raises(DocumentError, match=r"remove the folder .*\.dreamllm"):
        index.row(0, 0)


def test_known_faults_are_counted(tmp_path: Path) -> None:
    write(tmp_path, a="1 -1", b="-1")
    opened(tmp_path)

    assert opened(tmp_path)[1].num_faults == 2


def test_files_of_a_path(tmp_path: Path) -> None:
    write(tmp_path, b="", a="")
    write(tmp_path / "deep" / "er", c="")
    (tmp_path / ".hidden.x").write_text("")
    (tmp_path / "folder.x").mkdir()

    def names(path: Path) -> list[str]:
        return [file.name for file in find_files(path, (".x",))]

    assert names(tmp_path) == ["a.x", "b.x"]
    assert names(tmp_path / "a.x") == ["a.x"]
    assert names(tmp_path / "[b-z].x") == ["b.x"]
    assert names(tmp_path / "deep" / "*" / "*.x") == ["c.x"]
    assert names(tmp_path / "**" / "*.x") == ["a.x", "b.x", "c.x"]
    with pytest.raises(ConfigError, match="holds no files"):
        names(tmp_path / "none.x")


SLOW_BUILDER = """
import logging, sys
from pathlib import Path
import numpy as np
from dreamllm.data.index import FileScan, find_files, index_files

def scan(path):
    print("scans", path.name, flush=True)
    sys.stdin.readline()
    return FileScan(groups=(1,), rows=np.asarray([[7]]))

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
index = index_files(find_files(Path(sys.argv[1]), (".x",)), scan, reader="test")
print("has", [int(index.row(*index.locate(at))[0]) for at in range(len(index))], flush=True)
"""


def builder(folder: Path) -> subprocess.Popen[str]:
    """A process that indexes a folder, and needs a line of input for every file that it scans."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def say(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("is_killed", [False, True])
def test_of_two_processes_one_builds_and_the_other_takes_over_if_it_is_killed(
    tmp_path: Path, is_killed: bool
) -> None:
    write(tmp_path, a="7", b="7")
    with builder(tmp_path) as first:
        assert say(first) == "scans a.x"
        with builder(tmp_path) as second:
            assert say(second).startswith("another process builds the index; waiting until it lets ")
            assert first.stdin is not None
            assert second.stdin is not None
            if is_killed:
                first.kill()
                told = [say(second)]
                second.stdin.write("\n\n")
                told += [say(second), say(second)]
                assert told == ["scans a.x", "scans b.x", "has [7, 7]"]
            else:
                first.stdin.write("\n\n")
                assert [say(first), say(first)] == ["scans b.x", "has [7, 7]"]
                assert say(second) == "has [7, 7]"  # and scanned nothing
            assert second.wait() == 0


def test_an_index_that_fits_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    write(tmp_path, a="1 2")
    opened(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for lock in (tmp_path / ".dreamllm").glob("*.lock"):
        lock.unlink()

    assert values(opened(tmp_path)[1]) == [1, 2]

    assert [path for path in before if path.suffix != ".lock"] == sorted(tmp_path.rglob("*"))
