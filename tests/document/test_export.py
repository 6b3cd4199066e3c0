"""Documents for people: pages that ask no network, Markdown that reads as written, lossless JSON."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from tests.document.random_documents import content, documents

from dreamllm.document.document import Document, Image, Text
from dreamllm.document.export import documents_to_html, load_json, save_document
from dreamllm.document.images import data_url_bytes, open_image
from dreamllm.errors import DiskError, DocumentError, ImageError

VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.paragraphs: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open_tags.append(tag)
        if tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open_tags:
            self.text += data
        if "p" in self.open_tags:
            self.paragraphs[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(width: int = 64, height: int = 64) -> Image:
    return Image(source=PILImage.new("RGB", (width, height), (10, 20, 30)))


def test_a_page_is_one_file_with_its_pictures_inside_and_no_request(tmp_path: Path) -> None:
    document = Document(
        id="Mud", parts=(Text(text="One.\n\nTwo."), picture(), picture(300, 200), Text(text="End"))
    )

    html = save_document(document, tmp_path / "page.html").read_text()
    page = Page(html)

    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    assert page.paragraphs == ["One.", "Two.", "End"]
    small, large = page.all("img")
    assert (small["class"], small["width"], small["height"]) == ("small", "256", "256")
    assert ("class" in large, large["width"], large["height"]) == (False, "300", "200")
    assert small["alt"] == "Picture 1 of 2, 64 by 64 pixels"
    opened = PILImage.open(io.BytesIO(data_url_bytes(str(small["src"]))))
    assert (opened.size, opened.getpixel((0, 0))) == ((64, 64), (10, 20, 30))
    assert not re.search(r"https?://|url\(|@import|<script|<link", html)
    policies = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme: dark" in html
    assert "image-rendering: pixelated" in html
    assert len([div for div in page.all("div") if div["class"] == "pictures"]) == 1  # side by side


def test_every_text_of_a_document_is_escaped() -> None:
    evil = '</p></title><script>alert("1")</script>&amp;<img src=x onerror=y>'
    document = Document(id=evil, parts=(Text(text=evil),), metadata={"note": evil})

    html = documents_to_html([document, document], title=evil)
    page = Page(html)

    assert page.paragraphs == [evil, evil]
    assert not page.all("img")
    assert not page.all("script")
    assert page.all("article")[0]["aria-label"] == evil


@settings(max_examples=25, deadline=None)
@given(shown=st.lists(documents(), max_size=2), title=st.text(max_size=5))
def test_every_document_makes_a_well_formed_page_with_all_its_pictures(
    shown: list[Document], title: str
) -> None:
    page = Page(documents_to_html(shown, title=title))

    assert len(page.all("article")) == len(shown)
    images = page.all("img")
    assert len(images) == sum(len(document.images) for document in shown)
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert all(max(int(str(image["width"])), int(str(image["height"]))) >= 256 for image in images)


def test_a_conversation_is_shown_as_turns() -> None:
    document = Document(
        parts=(
            Text(text="What is", role="user"),
            Text(text=" it?", role="user"),
            Image(source=PILImage.new("RGB", (8, 8)), role="user"),
            Text(text="Night.", role="assistant"),
        )
    )

    page = Page(documents_to_html([document], title="Talk"))

    assert [section["class"] for section in page.all("section")] == ["turn user", "turn assistant"]
    assert page.paragraphs == ["What is it?", "Night."]
    assert page.all("img")[0]["alt"] == "Picture 1 of 1, 8 by 8 pixels, from the user"


def test_trusted_sections_follow_the_documents() -> None:
    table = "<table><tr><td>0.5</td></tr></table>"

    html = documents_to_html([Document(parts=())], title="Report", extra_html_sections=[("A & B", table)])

    Page(html)
    assert html.index("</article>") < html.index("<h2>A &amp; B</h2>") < html.index(table)


def test_a_picture_that_cannot_be_opened_is_named_with_its_document() -> None:
    document = Document(id="d7", parts=(picture(), Image(source=b"")))

    with pytest.raises(ImageError, match="document 'd7', Picture 2 of 2: picture of 0 bytes"):
        documents_to_html([document], title="x")


def test_markdown_has_its_pictures_beside_it_and_no_live_mark_up(tmp_path: Path) -> None:
    document = Document(
        parts=(
            Text(text="# *not* a heading\n1. <b>not</b> bold\n\n[x](y)", role="user"),
            Image(source=picture().source, role="assistant"),
        )
    )

    markdown = document.save(tmp_path / "my page.md").read_text()

    assert markdown == (
        "### User\n\n"
        "\\# \\*not\\* a heading\\\n1\\. \\<b\\>not\\</b\\> bold\n\n"
        "\\[x\\](y)\n\n"
        "### Assistant\n\n"
        "![Picture 1 of 1](my%20page_images/1.png)\n"
    )
    saved = open_image(tmp_path / "my page_images" / "1.png")
    assert (saved.size, saved.getpixel((0, 0))) == ((64, 64), (10, 20, 30))


@settings(max_examples=25, deadline=None)
@given(document=documents())
def test_json_returns_the_same_document(document: Document) -> None:
    with TemporaryDirectory() as folder:
        loaded = load_json(document.save(Path(folder) / "a.json"))

    assert content(loaded) == content(document)
    assert (loaded.id, loaded.metadata) == (document.id, document.metadata)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the file is not JSON"),
        ("[]", "is not a saved document; expected an object with format"),
        ('{"format": "other", "id": "", "metadata": {}, "parts": []}', "expected 'dreamllm.document.v1'"),
        (
            '{"format": "dreamllm.document.v1", "id": "", "metadata": {}, "parts": [{"type": "video"}]}',
            "part 0: content part .* cannot be read",
        ),
    ],
)
def test_json_of_another_kind_is_refused_with_the_file_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)

    with pytest.raises(DocumentError, match=rf"a\.json: .*{message}"):
        load_json(tmp_path / "a.json")


def test_missing_files_and_unknown_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"cannot read .*gone\.json"):
        load_json(tmp_path / "gone.json")
    with pytest.raises(DocumentError, match=r"suffix '\.pdf' is unknown; expected \.html, \.md or \.json"):
        save_document(Document(parts=()), tmp_path / "a.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        save_document(Document(parts=()), tmp_path / "file" / "a.html")


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = save_document(Document(parts=(Text(text="old"),)), tmp_path / "a.html")
    before = path.read_bytes()

    for bad in (Text(text="\ud800"), Image(source=b"")):
        with pytest.raises(DocumentError):
            save_document(Document(parts=(bad,)), path)

    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.html"]
