"""Conversations about pictures: LLaVA's JSON, ShareGPT's, and `messages` with roles.

    {"id": .., "image": "a.jpg" | [..], "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ..]}
    {"images": [..], "system": "..", "messages": [{"role": "user", "content": "<image>What?"}, ..]}

A marker stands where a picture is; the markers are counted against the pictures. What the assistant says is
learned, and a picture at a marker in its turn is drawn; everything else is only read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dreamllm.data.formats.named_pictures import NamedPictures
from dreamllm.data.formats.records import Record, RecordArchive, Records, required
from dreamllm.data.formats.tar_pictures import TarPictures
from dreamllm.document.document import Document, Image, Part, Role, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.document.messages import shown

_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationOptions:
    """How conversations are read."""

    images: Path | None = None
    """Folder of the pictures; null: that of the file."""
    image_name: str = "{path}"
    """A picture's path in the folder: `path` is what the record says, `url_name url_sha256 url_md5` belong to
    a URL."""
    marker: str = "<image>"
    """Stands in a text where a picture is."""
    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""


def open_conversations(path: Path, options: ConversationOptions) -> RecordArchive:
    """Conversations as a JSON array or as JSON lines."""
    records = Records(path, index_folder=options.index_folder)
    folder = records.files[0].parent if options.images is None else options.images
    tars = TarPictures(index_folder=options.index_folder)
    pictures = NamedPictures(folder=folder, name=options.image_name, tars=tars)
    return RecordArchive(records, ReadConversation(options, pictures))


@dataclass(frozen=True, slots=True)
class ReadConversation:
    """A record with turns."""

    options: ConversationOptions
    pictures: NamedPictures

    def __call__(self, record: Record, index: int) -> Document:
        """A conversation."""
        value, where = record.json(), record.where
        turns = [*_system(value), *_turns(value, where)]
        pictures = _pictures(value, where)
        num_markers = sum(text.count(self.options.marker) for _, text in turns)
        if num_markers != len(pictures):
            raise FaultError(
                "wrong_image_count",
                f"{where} has {num_markers} markers {self.options.marker!r} and {len(pictures)} pictures; "
                "expected the same number; leave the conversation out, or correct the option marker",
            )
        sources = iter([self.pictures.find_value(picture, where=where) for picture in pictures])
        parts = [part for role, text in turns for part in self._parts(role, text, sources)]
        if not any(part.learn for part in parts):
            raise FaultError(
                "missing_text",
                f"{where} has nothing that an assistant says; expected an answer; leave the conversation out",
            )
        return Document(parts=tuple(parts), id=str(value.get("id", f"{record.file.stem}-{record.number}")))

    def _parts(self, role: Role, text: str, sources: Iterator[Path | bytes]) -> Iterator[Part]:
        learn = role == "assistant"
        for number, words in enumerate(text.split(self.options.marker)):
            if number > 0:
                yield Image(source=next(sources), role=role, learn=learn)
            if words.strip():
                yield Text(text=words.strip(), role=role, learn=learn)


def _system(value: Any) -> list[tuple[Role, str]]:
    told = value.get("system") if isinstance(value, dict) else None
    return [("system", told)] if isinstance(told, str) and told.strip() else []


def _turns(value: Any, where: str) -> list[tuple[Role, str]]:
    key = "messages" if isinstance(value, dict) and "messages" in value else "conversations"
    turns: list[tuple[Role, str]] = []
    for turn in required(value, key, list, where=where):
        match turn:
            case {"from": str(name), "value": str(text)} | {"role": str(name), "content": str(text)}:
                pass
            case _:
                raise FaultError(
                    "bad_part",
                    f"{where}: turn {shown(turn)} cannot be read; expected from and value, or role and "
                    "content, both text; leave the conversation out",
                )
        if name not in _ROLES:
            raise FaultError(
                "bad_part",
                f"{where}: a turn is of {shown(name)}; expected one of {', '.join(_ROLES)}; "
                "leave the conversation out",
            )
        turns.append((_ROLES[name], text))
    return turns


def _pictures(value: dict[str, Any], where: str) -> list[Any]:
    if "video" in value or "videos" in value:
        raise FaultError(
            "bad_document", f"{where} shows a video; expected pictures alone; leave the conversation out"
        )
    given = value.get("images", value.get("image"))
    if given is None or given == "":
        return []
    return given if isinstance(given, list) else [given]
