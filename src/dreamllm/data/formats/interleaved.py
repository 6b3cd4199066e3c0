"""Text and pictures in one order: MMC4, and records that list texts and pictures themselves (CoMM, VIST).

    mmc4      text_list, image_info[]: image_name, raw_url, matched_text_index, matched_sim
              -> sentences joined by blanks up to each picture
    ordered   texts and pictures of the same place belong together: lists at two keys, a list of steps, or
              a list of {"type": "text" | "image"} items

All parts are learned: the text is written, the pictures are drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dreamllm.data.formats.named_pictures import NamedPictures, names_of_url
from dreamllm.data.formats.records import Record, RecordArchive, Records, required
from dreamllm.data.formats.tar_pictures import TarPictures
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.document.messages import shown
from dreamllm.errors import ConfigError

Missing = Literal["fault", "leave_out"]

_ITEMS: Final = "{'type': 'text', 'text': ..} or {'type': 'image', ..}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mmc4Options:
    """How documents of MMC4 are read."""

    images: Path
    """Folder of the downloaded pictures."""
    image_name: str = "{image_name}"
    """A picture's path in the folder: keys of its entry, `url_name url_sha256 url_md5` of its URL, and
    `shard`, the name of the file of documents without suffixes. In tar files: `{shard}.tar/{image_name}`."""
    min_similarity: float = 0.25
    """Pictures whose `matched_sim` is below are left out, and counted in the metadata."""
    position: Literal["after", "before"] = "after"
    """Where a picture stands to its sentence; DreamLLM puts it after."""
    missing: Missing = "fault"
    """What a picture that cannot be used does: its document cannot be used, or it alone is left out, and
    counted in the metadata."""
    max_images: int | None = None
    """Pictures of a document; those that match best are kept. Null: all."""
    min_images: int = 1
    """A document with fewer pictures left is a fault."""
    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderedOptions:
    """Where the texts and pictures of a record are."""

    images: Path | None = None
    """Folder of the pictures; null: that of the records."""
    image_name: str = "{path}"
    """A picture's path in the folder: `path` is what the record says, `url_name url_sha256 url_md5` belong to
    a URL."""
    texts: str = "texts"
    """Key of the list of texts, null where there is none."""
    pictures: str = "images"
    """Key of the list of pictures, each null, one or a list; as long as the list of texts."""
    items: tuple[str, ...] = ()
    """Keys of lists, nested or not, of `{"type": "text", "text": ..}` and `{"type": "image", ..}`; read
    instead of the two lists where given. CoMM: summary_info, step_info."""
    item_picture: str = "image_path"
    """Key of the picture in such an item, or of `steps`."""
    steps: str | None = None
    """Key of a list of objects with `step_text` and `item_picture`, read instead."""
    step_text: str = "text"
    """Key of the text in a step."""
    position: Literal["after", "before"] = "after"
    """Where a picture stands to the text of its place."""
    title: str | None = None
    """Key of a title, which becomes the first text."""
    index_folder: Path | None = None
    """Where the index is kept; null: `.dreamllm` beside the data."""


def open_mmc4(path: Path, options: Mmc4Options) -> RecordArchive:
    """Documents of MMC4, as JSON lines or the zip files they are published in."""
    if options.min_images < 0 or (options.max_images is not None and options.max_images < options.min_images):
        raise ConfigError(
            f"min_images={options.min_images}, max_images={options.max_images} cannot be meant; expected "
            "0 <= min_images <= max_images; correct them"
        )
    records = Records(path, index_folder=options.index_folder)
    tars = TarPictures(index_folder=options.index_folder)
    pictures = NamedPictures(folder=options.images, name=options.image_name, tars=tars)
    return RecordArchive(records, ReadMmc4(options, pictures))


def open_ordered(path: Path, options: OrderedOptions) -> RecordArchive:
    """Records that say their order, as JSON lines or an array."""
    records = Records(path, index_folder=options.index_folder)
    folder = records.files[0].parent if options.images is None else options.images
    tars = TarPictures(index_folder=options.index_folder)
    pictures = NamedPictures(folder=folder, name=options.image_name, tars=tars)
    return RecordArchive(records, ReadOrdered(options, pictures))


@dataclass(frozen=True, slots=True)
class ReadMmc4:
    """A record of MMC4."""

    options: Mmc4Options
    pictures: NamedPictures

    def __call__(self, record: Record, index: int) -> Document:
        """A plain document."""
        options, where = self.options, record.where
        value = record.json()
        sentences = required(value, "text_list", list, where=where)
        if not all(isinstance(sentence, str) for sentence in sentences):
            raise FaultError(
                "bad_document", f"{where}: text_list holds other things than text; leave the document out"
            )
        entries = required(value, "image_info", list, where=where)
        matching = [entry for entry in entries if self._similarity(entry, where) >= options.min_similarity]
        found = [(entry, file) for entry in matching if (file := self._find(entry, record)) is not None]
        if options.max_images is not None:
            best = sorted(range(len(found)), key=lambda at: -self._similarity(found[at][0], where))
            found = [found[at] for at in sorted(best[: options.max_images])]
        if len(found) < options.min_images:
            raise FaultError(
                "missing_image",
                f"{where} has {len(entries)} pictures, {len(matching)} of them with matched_sim of at least "
                f"{options.min_similarity}, and {len(found)} that can be used; expected {options.min_images}"
                "; leave the document out, or lower min_similarity or min_images",
            )
        places: dict[int, list[Path | bytes]] = {}
        for entry, file in found:
            place = required(entry, "matched_text_index", int, where=where)
            if not 0 <= place < len(sentences):
                raise FaultError(
                    "bad_document",
                    f"{where}: a picture belongs to sentence {place} of {len(sentences)}; expected one of "
                    "them; leave the document out",
                )
            places.setdefault(place, []).append(file)
        metadata = {
            "url": value.get("url"),
            "left_out": {"dissimilar": len(entries) - len(matching), "unusable": len(matching) - len(found)},
        }
        if options.max_images is not None:
            metadata["left_out"].pop("unusable")
            metadata["left_out"]["unusable_or_too_many"] = len(matching) - len(found)
        return Document(
            parts=tuple(_in_places(sentences, places, before=options.position == "before")),
            id=f"{_stem(record.file)}-{record.number}",
            metadata=metadata,
        )

    def _similarity(self, entry: Any, where: str) -> float:
        similarity = entry.get("matched_sim") if isinstance(entry, dict) else None
        if not isinstance(similarity, int | float) or isinstance(similarity, bool):
            raise FaultError(
                "bad_document",
                f"{where}: a picture has matched_sim {shown(similarity)}; expected a number; leave it out",
            )
        return float(similarity)

    def _find(self, entry: dict[str, Any], record: Record) -> Path | bytes | None:
        keys = {**names_of_url(str(entry.get("raw_url") or "")), **entry, "shard": _stem(record.file)}
        try:
            return self.pictures.find(keys, where=record.where)
        except FaultError:
            if self.options.missing == "fault":
                raise
            return None


def _in_places(
    sentences: Sequence[str], places: dict[int, list[Path | bytes]], *, before: bool
) -> Iterator[Part]:
    """Runs of sentences joined by blanks, with the pictures between them."""
    run: list[str] = []
    for number, sentence in enumerate(sentences):
        if not before:
            run.append(sentence.strip())
        if number in places:
            if text := " ".join(filter(None, run)):
                yield Text(text=text)
            run = []
            yield from (Image(source=file) for file in places[number])
        if before:
            run.append(sentence.strip())
    if text := " ".join(filter(None, run)):
        yield Text(text=text)


@dataclass(frozen=True, slots=True)
class ReadOrdered:
    """A record that lists what it shows."""

    options: OrderedOptions
    pictures: NamedPictures

    def __call__(self, record: Record, index: int) -> Document:
        """A plain document."""
        value, where = record.json(), record.where
        parts: list[Part] = []
        if self.options.title is not None:
            parts.append(Text(text=required(value, self.options.title, str, where=where).strip()))
        if self.options.items:
            for key in self.options.items:
                parts += self._items(required(value, key, list, where=where), record)
        else:
            for text, pictures in self._pairs(value, where):
                words = [Text(text=text.strip())] if text and text.strip() else []
                shown_here = [self._picture(picture, record) for picture in pictures]
                parts += [*words, *shown_here] if self.options.position == "after" else [*shown_here, *words]
        id_ = value.get("id", f"{_stem(record.file)}-{record.number}")
        return Document(parts=tuple(parts), id=str(id_))

    def _pairs(self, value: Any, where: str) -> list[tuple[str | None, list[Any]]]:
        options = self.options
        if options.steps is not None:
            steps = required(value, options.steps, list, where=where)
            texts = [step.get(options.step_text) if isinstance(step, dict) else step for step in steps]
            pictures = [step.get(options.item_picture) if isinstance(step, dict) else None for step in steps]
        else:
            texts = required(value, options.texts, list, where=where)
            pictures = required(value, options.pictures, list, where=where)
        if len(texts) != len(pictures):
            raise FaultError(
                "wrong_image_count",
                f"{where} has {len(texts)} texts and {len(pictures)} pictures; expected lists of one length, "
                "null where there is none; leave the document out",
            )
        wrong = [text for text in texts if text is not None and not isinstance(text, str)]
        if wrong:
            raise FaultError(
                "bad_document", f"{where}: a text is {shown(wrong[0])}; expected text; leave it out"
            )
        lists = [each if isinstance(each, list) else [] if each is None else [each] for each in pictures]
        return list(zip(texts, lists, strict=True))

    def _items(self, items: list[Any], record: Record) -> Iterator[Part]:
        for item in items:
            match item:
                case list():
                    yield from self._items(item, record)
                case {"type": "text", "text": str(text)}:
                    if text.strip():
                        yield Text(text=text.strip())
                case {"type": "image"}:
                    yield self._picture(item.get(self.options.item_picture), record)
                case _:
                    raise FaultError(
                        "bad_part",
                        f"{record.where}: {shown(item)} cannot be read; expected {_ITEMS}; "
                        "leave the document out",
                    )

    def _picture(self, value: Any, record: Record) -> Image:
        return Image(source=self.pictures.find_value(value, where=record.where))


def _stem(file: Path) -> str:
    return file.name.partition(".")[0]
