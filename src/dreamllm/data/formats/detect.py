"""Which format a path holds: from names, and for JSON and parquet from the keys of the first record."""

import gzip
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from dreamllm.data.index import find_files
from dreamllm.data.shards import MANIFEST
from dreamllm.errors import ConfigError

_HEAD_BYTES = 2**22
_SUFFIXES = (".tar", ".parquet", ".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zip", ".json.zip", ".json", ".txt")
_KEYS: tuple[tuple[str, frozenset[str]], ...] = (
    ("documents", frozenset({"parts"})),
    ("mmc4", frozenset({"text_list", "image_info"})),
    ("conversations", frozenset({"conversations"})),
    ("conversations", frozenset({"messages"})),
    ("obelics", frozenset({"texts", "images"})),
    ("table", frozenset({"image", "captions"})),
    ("table", frozenset({"image_list", "instruction_list"})),
)
_ONLY_PARQUET = ("obelics", "table")


def detect_format(path: Path) -> str:
    """The name of the format of a path.

    Raises:
        ConfigError: it cannot be told.
    """
    if path.name == MANIFEST or (path / MANIFEST).is_file():
        return "shards"
    file = find_files(path, _SUFFIXES)[0]
    if file.suffix == ".tar":
        return "captions"
    if file.suffix in (".txt", ".md", ".text"):
        return "text"
    is_parquet = file.suffix == ".parquet"
    keys = _columns(file) if is_parquet else _first_keys(file)
    for name, expected in _KEYS:
        if expected <= keys and (name in _ONLY_PARQUET) == is_parquet:
            return name
    if not is_parquet and {"texts", "images"} <= keys:
        return "ordered"
    seen = f"its first record has keys {sorted(keys)[:20]}"
    if not keys:
        seen = f"no record can be read in its first {_HEAD_BYTES} bytes"
    raise ConfigError(
        f"the format of {file} cannot be told: {seen}; expected those "
        "of a known format; name it with format, and its keys with options"
    )


def _columns(file: Path) -> set[str]:
    from dreamllm.data.formats.parquet_rows import column_names

    return column_names(file)


def _first_keys(file: Path) -> set[str]:
    """Keys of the first record; none where it cannot be read."""
    text = _head(file).decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    value: Any
    try:
        value, _ = json.JSONDecoder().raw_decode(text.lstrip("[ \t\r\n"))
    except ValueError:
        return set()
    return set(value) if isinstance(value, dict) else set()


def _head(file: Path) -> bytes:
    try:
        if file.suffix == ".gz":
            with gzip.open(file) as stream:
                return stream.read(_HEAD_BYTES)
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive, archive.open(sorted(archive.namelist())[0]) as member:
                return member.read(_HEAD_BYTES)
        with file.open("rb") as plain:
            return plain.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, IndexError) as error:
        raise ConfigError(
            f"the format of {file} cannot be told: {error}; expected a whole file; fetch it again, or name "
            "the format"
        ) from error
