"""Documents for people: a self-contained HTML page, Markdown with a picture folder, or JSON.

An HTML page holds its style and its pictures and asks nothing of a network; its content policy forbids it.
All text of a document is escaped, in HTML and in Markdown, so that it reads as it was written. JSON is
lossless, and `load_json` reads it back.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from PIL import Image as PILImage

from dreamllm.document.atomic import write_bytes
from dreamllm.document.document import Document, Image, Part, Role, Text
from dreamllm.document.images import png_bytes, png_data_url
from dreamllm.document.jsonl import json_bytes, read_json
from dreamllm.document.messages import (
    content_part,
    read_content_part,
    read_role_and_learn,
    role_and_learn,
    shown,
)
from dreamllm.document.page_style import PAGE_CSS
from dreamllm.errors import DocumentError, ImageError

JSON_FORMAT: Final = "dreamllm.document.v1"
_MIN_SHOWN_PX = 256
_ROLE_NAMES: dict[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant"}
_CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def save_document(document: Document, path: str | Path) -> Path:
    """Write to `.html`, `.md` (pictures go to `NAME_images/` beside it) or `.json`, by the suffix.

    Raises:
        DocumentError: the suffix is another one.
        DiskError: the file cannot be written.
        ImageError: a picture cannot be opened.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".html":
            page = documents_to_html([document], title=document.id or path.stem)
            write_bytes(path, _utf8(page, document))
        case ".md":
            _save_markdown(document, path)
        case ".json":
            write_bytes(path, json_bytes(_to_json(document), name=f"document {document.id!r}", indent=1))
        case suffix:
            raise DocumentError(
                f"cannot save a document to {path}: suffix {suffix!r} is unknown; "
                "expected .html, .md or .json; rename the file"
            )
    return path


def load_json(path: str | Path) -> Document:
    """The document that `save_document` wrote to a `.json` file.

    Raises:
        DocumentError: the file cannot be read, or holds something else.
        ImageError: a picture in it is not a base64 data URL.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DocumentError(
            f"cannot read {path}: {error.strerror or error}; expected a document saved as .json; "
            "check the path and its permissions"
        ) from error
    try:
        return _from_json(read_json(data, name="the file"))
    except DocumentError as error:
        raise type(error)(f"{path}: {error}") from error


def documents_to_html(
    documents: Sequence[Document], *, title: str, extra_html_sections: Sequence[tuple[str, str]] = ()
) -> str:
    """One self-contained page that shows the documents in order.

    `extra_html_sections` are (title, HTML) pairs shown after them, such as tables. Their HTML is taken as it
    stands: never pass text from outside there. Scripts and outside resources in it are blocked by the page.

    Raises:
        ImageError: a picture cannot be opened; the message names its document.
    """
    many = ' class="many"' if len(documents) > 1 or extra_html_sections else ""
    articles = "\n".join(_article(document, number, title) for number, document in enumerate(documents, 1))
    extras = "\n".join(
        f'<section class="extra">\n<h2>{escape(heading)}</h2>\n{html}\n</section>'
        for heading, html in extra_html_sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{PAGE_CSS}</style>\n</head>\n<body>\n"
        f'<header class="page"><h1>{escape(title)}</h1></header>\n'
        f"<main{many}>\n{articles}\n{extras}\n</main>\n</body>\n</html>\n"
    )


def _article(document: Document, number: int, title: str) -> str:
    pictures = itertools.count(1)
    blocks = []
    for role, turn in itertools.groupby(document, key=lambda part: part.role):
        inner = "\n".join(_blocks(list(turn), document, pictures))
        if role is None:
            blocks.append(inner)
        else:
            name = _ROLE_NAMES[role]
            blocks.append(
                f'<section class="turn {role}">\n<div class="who">{name}</div>\n{inner}\n</section>'
            )
    label = document.id or f"Document {number}"
    heading = f"<h2>{escape(document.id)}</h2>\n" if document.id and document.id != title else ""
    if document.metadata:
        text = json_bytes(document.metadata, name=f"metadata of document {document.id!r}", indent=2).decode()
        blocks.append(f"<details><summary>Metadata</summary><pre>{escape(text)}</pre></details>")
    body = "\n".join(blocks)
    return f'<article class="document" aria-label="{escape(label)}">\n{heading}{body}\n</article>'


def _blocks(parts: Sequence[Part], document: Document, pictures: Iterator[int]) -> Iterator[str]:
    """Paragraphs, and rows of pictures that follow each other."""
    for is_text, run in itertools.groupby(parts, key=lambda part: isinstance(part, Text)):
        if is_text:
            text = "".join(part.text for part in run if isinstance(part, Text))
            yield from (f'<p dir="auto">{escape(paragraph)}</p>' for paragraph in _paragraphs(text))
        else:
            figures = (_figure(part, document, next(pictures)) for part in run if isinstance(part, Image))
            yield '<div class="pictures">\n' + "\n".join(figures) + "\n</div>"


def _figure(image: Image, document: Document, number: int) -> str:
    picture = _opened(image, document, number)
    width, height = picture.size
    longer = max(width, height)
    is_small = longer < _MIN_SHOWN_PX
    scale = -(-_MIN_SHOWN_PX // longer) if is_small else 1  # whole, so that every pixel is a square
    small = ' class="small"' if is_small else ""
    alt = f"{_picture_name(document, number)}, {width} by {height} pixels"
    if image.role is not None:
        alt += f", from the {image.role}"
    return (
        f'<figure><img{small} src="{png_data_url(picture)}" alt="{escape(alt)}" '
        f'width="{width * scale}" height="{height * scale}"></figure>'
    )


def _save_markdown(document: Document, path: Path) -> None:
    folder = path.parent / f"{path.stem}_images"
    blocks = [f"# {_markdown_text(document.id)}"] if document.id else []
    number = 0
    for role, turn in itertools.groupby(document, key=lambda part: part.role):
        if role is not None:
            blocks.append(f"### {_ROLE_NAMES[role]}")
        for is_text, run in itertools.groupby(turn, key=lambda part: isinstance(part, Text)):
            if is_text:
                text = "".join(part.text for part in run if isinstance(part, Text))
                blocks += [_markdown_text(paragraph) for paragraph in _paragraphs(text)]
                continue
            for image in run:
                assert isinstance(image, Image)
                number += 1
                write_bytes(folder / f"{number}.png", png_bytes(_opened(image, document, number)))
                link = quote(f"{folder.name}/{number}.png")
                blocks.append(f"![{_picture_name(document, number)}]({link})")
    write_bytes(path, _utf8("\n\n".join(blocks) + "\n", document))


def _markdown_text(paragraph: str) -> str:
    """The paragraph with everything that Markdown or HTML would read as mark-up escaped."""
    lines = []
    for line in paragraph.splitlines():
        line = re.sub(r"([\\`*_\[\]<>&~|$])", r"\\\1", line.strip())
        line = re.sub(r"^([#+\-=:])", r"\\\1", line)
        line = re.sub(r"^(\d{1,9})([.)])", r"\1\\\2", line)
        lines.append(line)
    return "\\\n".join(lines)  # a backslash before a line's end keeps the break


def _to_json(document: Document) -> dict[str, Any]:
    return {
        "format": JSON_FORMAT,
        "id": document.id,
        "metadata": document.metadata,
        "parts": [content_part(part) | role_and_learn(part) for part in document],
    }


def _from_json(value: Any) -> Document:
    match value:
        case {"format": str(found), "id": str(id_), "metadata": dict(metadata), "parts": list(items)}:
            pass
        case _:
            raise DocumentError(
                f"{shown(value)} is not a saved document; expected an object with format, id, metadata "
                "and parts; save it again with save_document"
            )
    if found != JSON_FORMAT:
        raise DocumentError(
            f"its format is {shown(found)}; expected {JSON_FORMAT!r}; read it with the version that wrote it"
        )
    parts = []
    for number, item in enumerate(items):
        try:
            role, learn = read_role_and_learn(item) if isinstance(item, dict) else (None, True)
            parts.append(read_content_part(item, role=role, learn=learn))
        except DocumentError as error:
            raise type(error)(f"part {number}: {error}") from error
    return Document(parts=tuple(parts), id=id_, metadata=metadata)


def _paragraphs(text: str) -> list[str]:
    """The text cut at blank lines; empty paragraphs are left out."""
    return [paragraph.strip("\n") for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def _picture_name(document: Document, number: int) -> str:
    return f"Picture {number} of {len(document.images)}"


def _opened(image: Image, document: Document, number: int) -> PILImage.Image:
    try:
        return image.load()
    except ImageError as error:
        raise ImageError(f"document {document.id!r}, {_picture_name(document, number)}: {error}") from error


def _utf8(text: str, document: Document) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"document {document.id!r} holds half a surrogate pair ({error.reason}); "
            "expected whole Unicode characters; repair or remove them"
        ) from error
