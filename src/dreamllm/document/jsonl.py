"""Documents on disk: one JSON object a line, the pictures as files beside it.

    {"id": "a", "parts": [{"type": "text", "text": "A red circle."},
                          {"type": "image", "path": "train_images/3f2a.png", "learn": false}],
     "metadata": {...}, "num_images": 1}

A part may have "role" and "learn" (true if left out); "metadata" and "num_images" are optional, and a
declared count must match. Paths are relative to the JSONL file and stay inside its folder. Reading keeps
byte offsets, not documents, and opens a picture when it is needed.
"""

import hashlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from dreamllm.document.atomic import replacing, write_bytes
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.images import png_bytes
from dreamllm.document.messages import checked_text, read_role_and_learn, role_and_learn, shown
from dreamllm.errors import DocumentError, ImageError

logger = logging.getLogger(__name__)

FaultKind = Literal[
    "bad_json",
    "bad_document",
    "bad_part",
    "path_outside_folder",
    "missing_image",
    "missing_text",
    "corrupt_image",
    "wrong_image_count",
    "duplicate_key",
    "corrupt_archive",
    "truncated_archive",
]
_EXAMPLES_PER_KIND = 3


class FaultError(DocumentError):
    """What should be a document and cannot be used as one."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind

    def __reduce__(self) -> tuple[type["FaultError"], tuple[FaultKind, str]]:
        return FaultError, (self.kind, str(self))  # pickling would pass the message alone


class JsonlDocuments:
    """The usable documents of a JSONL file, by index; each access reads one line.

    It can be copied to worker processes: no file stays open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: Counter[str] = Counter()
        """Lines left out, by kind of fault."""
        self.fault_examples: dict[str, list[str]] = {}
        """The first messages of each kind."""
        self._offsets = array("q")
        self._lines = array("q")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Document:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {self.path}, which has {len(self)}")
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            return _read_line(file.readline(), path=self.path, line=self._lines[index])

    def __iter__(self) -> Iterator[Document]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"JsonlDocuments({str(self.path)!r}, {len(self)} documents, {self.faults.total()} faults)"

    def _scan(self, *, on_fault: str, check_images: bool) -> None:
        offset = 0
        with self.path.open("rb") as file:
            for line, raw in enumerate(file, start=1):
                start, offset = offset, offset + len(raw)
                if not raw.strip():
                    continue
                try:
                    document = _read_line(raw, path=self.path, line=line)
                    _check_images(document, path=self.path, line=line, decode=check_images)
                except FaultError as fault:
                    if on_fault == "raise":
                        raise
                    self._count(fault)
                    continue
                self._offsets.append(start)
                self._lines.append(line)

    def _count(self, fault: FaultError) -> None:
        self.faults[fault.kind] += 1
        examples = self.fault_examples.setdefault(fault.kind, [])
        if len(examples) < _EXAMPLES_PER_KIND:
            examples.append(str(fault))


def read_documents(
    path: str | Path, on_fault: Literal["raise", "skip"] = "raise", *, check_images: bool = False
) -> JsonlDocuments:
    """Check every line of a JSONL file once, and give access to its documents.

    Every picture must exist; with `check_images` every picture is decoded too. With `on_fault="skip"` lines
    with a fault are left out and counted in `.faults`. Blank lines are no documents and no faults.

    Raises:
        DocumentError: the file cannot be read, or `on_fault` is `raise` and a line has a fault; the message
            starts with file:line.
    """
    path = Path(path)
    if on_fault not in ("raise", "skip"):
        raise DocumentError(f"on_fault is {on_fault!r}; expected 'raise' or 'skip'; choose one of them")
    documents = JsonlDocuments(path)
    try:
        documents._scan(on_fault=on_fault, check_images=check_images)
    except OSError as error:
        raise DocumentError(
            f"cannot read {path}: {error.strerror or error}; expected a JSONL file of documents; "
            "check the path and its permissions"
        ) from error
    if documents.faults:
        logger.warning(
            "%s: left out %d lines, kept %d: %s",
            path,
            documents.faults.total(),
            len(documents),
            dict(documents.faults),
        )
    return documents


def write_documents(
    documents: Iterable[Document], path: str | Path, image_dir: str | Path | None = None
) -> Path:
    """Write a JSONL file, and the pictures as PNG files into `image_dir` (`NAME_images` beside it if None).

    A picture is named for its content, so equal pictures are one file, and a run that fails half-way leaves
    an older JSONL file and its pictures intact.

    Raises:
        DocumentError: a document cannot be written as JSON, or `image_dir` is outside the file's folder.
        ImageError: a picture cannot be opened.
    """
    path = Path(path)
    folder = path.parent / f"{path.stem}_images" if image_dir is None else Path(image_dir)
    try:
        prefix = folder.resolve().relative_to(path.parent.resolve())
    except ValueError as error:
        raise DocumentError(
            f"pictures would go to {folder}, outside the folder of {path}; expected a folder inside "
            f"{path.parent}; choose one, or leave image_dir out"
        ) from error

    def write_picture(image: Image) -> str:
        data = png_bytes(image.load())
        name = f"{hashlib.sha256(data).hexdigest()[:24]}.png"
        if not (folder / name).exists():
            write_bytes(folder / name, data)
        return (prefix / name).as_posix()

    with replacing(path) as file:
        for number, document in enumerate(documents):
            name = f"document {number} ({document.id!r})"
            file.write(document_json(document, name=name, write_picture=write_picture) + b"\n")
    return path


def document_json(document: Document, *, name: str, write_picture: Callable[[Image], str]) -> bytes:
    """The document as one line of JSON without its end; `write_picture` gives the path of each picture.

    Raises:
        DocumentError: it holds what JSON does not; `name` stands in the message.
    """
    value: dict[str, Any] = {
        "id": document.id,
        "parts": [
            (
                {"type": "text", "text": part.text}
                if isinstance(part, Text)
                else {"type": "image", "path": write_picture(part)}
            )
            | role_and_learn(part)
            for part in document
        ],
    }
    if document.metadata:
        value["metadata"] = document.metadata
    value["num_images"] = len(document.images)
    return json_bytes(value, name=name)


def json_bytes(value: Any, *, name: str, indent: int | None = None) -> bytes:
    """The value as UTF-8 JSON.

    Raises:
        DocumentError: it holds what JSON does not.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise DocumentError(
            f"{name} cannot be written as JSON: {error}; expected Unicode text and metadata of JSON values "
            "(no NaN, no infinity, no objects); convert or remove what is not"
        ) from error


def read_json(data: bytes, *, name: str) -> Any:
    """The value in UTF-8 JSON; NaN and infinities are refused, since JSON has none.

    Raises:
        DocumentError: it is not JSON.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DocumentError(
            f"{name} is not JSON ({error}); it starts with {data[:40]!r}; expected one UTF-8 object; "
            "repair or remove it"
        ) from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _read_line(raw: bytes, *, path: Path, line: int) -> Document:
    where = f"{path}:{line}"
    try:
        value = read_json(raw, name="the line")
    except DocumentError as error:
        raise FaultError("bad_json", f"{where}: {error}") from error
    return read_document(value, where=where, find_picture=lambda name: path.parent / picture_path(name))


def read_document(value: Any, *, where: str, find_picture: Callable[[str], Path | bytes]) -> Document:
    """The document in a JSON value; `find_picture` gives the source of the picture at a path.

    Raises:
        FaultError: it is no document, or contradicts itself; the message starts with `where`.
    """
    try:
        return _read_document(value, find_picture=find_picture)
    except FaultError as fault:
        raise FaultError(fault.kind, f"{where}: {fault}") from fault
    except DocumentError as error:
        raise FaultError("bad_document", f"{where}: {error}") from error


def _read_document(value: Any, *, find_picture: Callable[[str], Path | bytes]) -> Document:
    match value:
        case {"parts": list(items)}:
            pass
        case _:
            raise DocumentError(
                f"{shown(value)} is not a document; expected an object with a list 'parts'; add it"
            )
    expected: tuple[tuple[str, type, Any], ...] = (("id", str, ""), ("metadata", dict, {}))
    id_, metadata = (_typed(value, key, kind, default) for key, kind, default in expected)
    _refuse_unknown(value, ("id", "parts", "metadata", "num_images"))
    parts: list[Part] = []
    for number, item in enumerate(items):
        try:
            parts.append(_read_part(item, find_picture=find_picture))
        except FaultError as fault:
            raise FaultError(fault.kind, f"part {number}: {fault}") from fault
        except DocumentError as error:
            raise FaultError("bad_part", f"part {number}: {error}") from error
    document = Document(parts=tuple(parts), id=id_, metadata=metadata)
    declared, found = value.get("num_images"), len(document.images)
    if declared is not None and (type(declared) is not int or declared != found):
        raise FaultError(
            "wrong_image_count",
            f"document {id_!r} declares {shown(declared)} pictures and has {found}; "
            "expected the same number; correct 'num_images' or restore the missing parts",
        )
    return document


def _typed(value: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    found = value.get(key, default)
    if not isinstance(found, kind):
        raise DocumentError(
            f"{key!r} is {shown(found)}; expected a JSON value of type {kind.__name__}; correct or remove it"
        )
    return found


def _refuse_unknown(value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(value) - set(known)):
        raise DocumentError(f"unknown keys {unknown}; expected only {list(known)}; rename or remove them")


def _read_part(value: Any, *, find_picture: Callable[[str], Path | bytes]) -> Part:
    match value:
        case {"type": "text", "text": str(text)}:
            _refuse_unknown(value, ("type", "text", "role", "learn"))
            role, learn = read_role_and_learn(value)
            return Text(text=checked_text(text), role=role, learn=learn)
        case {"type": "image", "path": str(name)}:
            _refuse_unknown(value, ("type", "path", "role", "learn"))
            role, learn = read_role_and_learn(value)
            return Image(source=find_picture(checked_text(name)), role=role, learn=learn)
    raise DocumentError(
        f"{shown(value)} cannot be read; expected {{'type': 'text', 'text': ...}} or "
        "{'type': 'image', 'path': ...}; rewrite or remove the part"
    )


def picture_path(name: str) -> PurePosixPath:
    """A relative path that does not leave its folder, on this system or another; links are not followed.

    Raises:
        FaultError: it does.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.anchor or ".." in windows.parts or "\0" in name:
        raise FaultError(
            "path_outside_folder",
            f"picture path {shown(name)} leaves the folder of its documents; expected a relative path "
            "without '..'; move the picture into the folder",
        )
    return posix


def _check_images(document: Document, *, path: Path, line: int, decode: bool) -> None:
    for image in document.images:
        if isinstance(image.source, Path) and not image.source.is_file():
            raise FaultError(
                "missing_image",
                f"{path}:{line}: picture {image.source} does not exist; expected a file there; "
                "restore it or remove the document",
            )
        if not decode:
            continue
        try:
            image.load()
        except ImageError as error:
            raise FaultError("corrupt_image", f"{path}:{line}: {error}") from error
