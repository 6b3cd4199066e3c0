"""A page that shows a sample of documents as a model will see them, each with its facts.

The page is that of `document/export.py`: one self-contained file. Pictures are scaled down and long documents
are cut, and the page says so; a picture that cannot be opened is a grey field in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import islice
from typing import Final

from PIL import Image as PILImage
from PIL import ImageDraw

from dreamllm.data.measures import DocumentFacts, MeasureOptions, measure
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.export import documents_to_html
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ImageError

MAX_SHOWN_PX: Final = 384
MAX_PARTS: Final = 60
MAX_CHARACTERS: Final = 1500
"""Of one text part."""
_ARTICLE_END = "</article>"
_STYLE_END = "</style>"
_HEADER_END = "</header>"
_CSS = """
.facts { font: 0.78rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  color: var(--soft); display: flex; flex-wrap: wrap; gap: 0.4rem;
  margin: 1.25rem 0 0; padding: 0; list-style: none; }
.facts li { border: 1px solid var(--line); border-radius: 999px; padding: 0.1rem 0.65rem; }
.facts li.fault { color: #b3261e; border-color: currentColor; border-radius: 8px; }
@media (prefers-color-scheme: dark) { .facts li.fault { color: #f2938c; } }
.about { color: var(--soft); font-size: 0.95rem; margin: 0 0 1rem; }
section.extra td:first-child, section.extra td:nth-child(2) { white-space: nowrap; vertical-align: top; }
"""


@dataclass(frozen=True, slots=True)
class PreviewItem:
    """One document to show; or, where none could be read, the fault."""

    index: int
    document: Document | None
    fault: FaultError | None = None


def preview_item(
    index: int, document: Document | FaultError, *, options: MeasureOptions
) -> tuple[PreviewItem, DocumentFacts | None]:
    """What is shown of a document, and its facts if it has no fault."""
    if isinstance(document, FaultError):
        return PreviewItem(index, None, document), None
    try:
        return PreviewItem(index, document), measure(document, options)
    except FaultError as fault:
        return PreviewItem(index, document, fault), None


def preview_page(
    items: Sequence[tuple[PreviewItem, DocumentFacts | None]],
    *,
    title: str,
    summary: str = "",
) -> str:
    """The page as HTML. `summary` is plain text, shown under the title."""
    shown = [(item, facts) for item, facts in items if item.document is not None]
    documents = [_shown(item) for item, _ in shown]
    unread = [
        (item.index, item.fault) for item, _ in items if item.document is None and item.fault is not None
    ]
    rows = [(str(index), fault.kind, str(fault)) for index, fault in unread]
    sections = [("Documents that cannot be read", _table(rows))] if rows else []
    page = documents_to_html(documents, title=title, extra_html_sections=sections)
    head, style_end, body = page.partition(_STYLE_END)
    top, header_end, body = body.partition(_HEADER_END)
    pieces = body.split(_ARTICLE_END)  # text of documents is escaped, so these ends are the page's own
    assert len(pieces) == len(shown) + 1
    lists = [_facts_list(item, facts) for item, facts in shown]
    articles = (piece + facts + _ARTICLE_END for piece, facts in zip(pieces[:-1], lists, strict=True))
    about = f'<p class="about">{escape(_writable(summary))}</p>\n' if summary else ""
    return head + _CSS + style_end + top + about + header_end + "".join(articles) + pieces[-1]


def _shown(item: PreviewItem) -> Document:
    """The document as far as it is shown, under a heading that names its place."""
    assert item.document is not None
    parts: list[Part] = []
    for part in islice(item.document, MAX_PARTS):
        if isinstance(part, Image):
            parts.append(replace(part, source=_small(part)))
        else:
            cut = part.text[:MAX_CHARACTERS] + " [...]" if len(part.text) > MAX_CHARACTERS else part.text
            parts.append(replace(part, text=_writable(cut)))
    heading = f"{item.index}: {_writable(item.document.id)}" if item.document.id else str(item.index)
    return Document(parts=tuple(parts), id=heading, metadata=_writable_value(item.document.metadata))


def _facts_list(item: PreviewItem, facts: DocumentFacts | None) -> str:
    entries = [] if facts is None else [_entry(text) for text in _facts(facts)]
    assert item.document is not None
    if len(item.document) > MAX_PARTS:
        entries.append(_entry(f"the first {MAX_PARTS} of {len(item.document)} parts are shown"))
    if any(isinstance(part, Text) and len(part.text) > MAX_CHARACTERS for part in item.document):
        entries.append(_entry(f"texts are cut after {MAX_CHARACTERS} characters"))
    if item.fault is not None:
        message = escape(_writable(f"{item.fault.kind}: {item.fault}"))
        entries.append(f'<li class="fault">{message}</li>')
    return '<ul class="facts">' + "".join(entries) + "</ul>\n"


def _facts(facts: DocumentFacts) -> list[str]:
    tokens = [] if facts.num_tokens is None else [_count(facts.num_tokens, "token")]
    pictures = [
        f"picture {number}: {picture.width} × {picture.height}, {'drawn' if picture.is_drawn else 'read'}"
        for number, picture in enumerate(facts.pictures, start=1)
    ]
    if len(pictures) > 8:
        sides = [picture.shorter_side_px for picture in facts.pictures]
        drawn = sum(picture.is_drawn for picture in facts.pictures)
        pictures = [f"{len(pictures)} pictures, {drawn} drawn, shorter sides {min(sides)} to {max(sides)}"]
    learned = [] if facts.learns else ["nothing is learned"]
    repeats = [f"{facts.repetition:.0%} repeats"] if facts.repetition >= 0.1 else []
    return [*tokens, _count(facts.num_words, "word"), *(pictures or ["no pictures"]), *repeats, *learned]


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'s' * (number != 1)}"


def _entry(text: str) -> str:
    return f"<li>{escape(text)}</li>"


def _small(image: Image) -> PILImage.Image:
    try:
        picture = image.load()
    except ImageError:
        return _grey_field()
    if max(picture.size) > MAX_SHOWN_PX:
        picture.thumbnail((MAX_SHOWN_PX, MAX_SHOWN_PX))
    return picture


def _grey_field() -> PILImage.Image:
    """What stands for a picture that cannot be opened: a crossed-out field."""
    side = 256
    field = PILImage.new("RGB", (side, side), (224, 222, 216))
    pen = ImageDraw.Draw(field)
    pen.line((0, 0, side, side), fill=(150, 146, 138), width=2)
    pen.line((0, side, side, 0), fill=(150, 146, 138), width=2)
    return field


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    cells = ("".join(f"<td>{escape(_writable(cell))}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def _writable(text: str) -> str:
    """The text with half surrogate pairs, which no UTF-8 file holds, made visible."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _writable_value(value: dict[str, object]) -> dict[str, object]:
    return {_writable(key): _writable(each) if isinstance(each, str) else each for key, each in value.items()}
