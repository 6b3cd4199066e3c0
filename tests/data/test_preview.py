"""The page shows every document with its facts, whatever the document holds, and is one file."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.data.measures import MeasureOptions
from dreamllm.data.preview import MAX_CHARACTERS, MAX_PARTS, preview_item, preview_page
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import FaultError


def page(*documents: Document | FaultError, summary: str = "") -> str:
    options = MeasureOptions(decode=True)
    items = [preview_item(10 + number, each, options=options) for number, each in enumerate(documents)]
    return preview_page(items, title="A title", summary=summary)


def facts_of(html: str) -> list[list[str]]:
    """What the list under each document says."""
    lists = re.findall(r'<ul class="facts">(.*?)</ul>', html, flags=re.DOTALL)
    return [re.findall(r"<li[^>]*>(.*?)</li>", entries, flags=re.DOTALL) for entries in lists]


def gray(width: int, height: int) -> PILImage.Image:
    return PILImage.new("RGB", (width, height), (90, 90, 90))


def test_every_document_stands_under_its_index_with_its_facts() -> None:
    html = page(
        Document(parts=(Text(text="One word?"), Image(source=gray(30, 20))), id="first"),
        Document(parts=(Text(text="read", learn=False),)),
        summary="2 of 2 & no more",
    )

    assert re.findall(r"<h2>(.*?)</h2>", html) == ["10: first", "11"]
    assert facts_of(html) == [
        ["2 words", "picture 1: 30 × 20, drawn"],
        ["1 word", "no pictures", "nothing is learned"],
    ]
    assert '<p class="about">2 of 2 &amp; no more</p>' in html


def test_a_page_holds_everything_itself_and_text_stays_text() -> None:
    nasty = "</article></ul><script>alert(1)</script></style></header>"

    html = page(Document(parts=(Text(text=nasty),), id=nasty), FaultError("bad_json", nasty), summary=nasty)

    assert "<script" not in html
    assert html.count("</article>") == 1
    assert not re.search(r'(src|href)="(?!data:)', html)


def test_a_picture_that_cannot_be_opened_is_a_field_in_its_place_and_the_fault_is_told() -> None:
    html = page(
        Document(parts=(Text(text="gone: "), Image(source=Path("gone.png")), Text(text=" and after")))
    )

    assert html.count("<img") == 1
    assert "and after" in html
    (facts,) = facts_of(html)
    assert len(facts) == 1
    assert facts[0].startswith("missing_image: picture gone.png")


def test_documents_that_cannot_be_read_are_listed_with_their_fault() -> None:
    html = page(FaultError("bad_json", "line 3 is <not> JSON"))

    assert "Documents that cannot be read" in html
    assert "<td>10</td><td>bad_json</td><td>line 3 is &lt;not&gt; JSON</td>" in html


def test_large_pictures_are_scaled_down_and_long_documents_cut_and_it_is_said() -> None:
    rng = np.random.default_rng(0)
    large = PILImage.fromarray(rng.integers(0, 256, (800, 1600, 3), dtype=np.uint8))
    long = Document(parts=(Text(text="x" * (MAX_CHARACTERS + 9)), Image(source=large)))
    many = Document(parts=tuple(Text(text=f"{number};") for number in range(MAX_PARTS + 5)))

    html = page(long, many)

    assert 'width="384" height="192"' in html
    assert "x" * MAX_CHARACTERS in html
    assert "x" * (MAX_CHARACTERS + 1) not in html
    first, second = facts_of(html)
    assert "picture 1: 1600 × 800, drawn" in first
    assert f"texts are cut after {MAX_CHARACTERS} characters" in first
    assert f"the first {MAX_PARTS} of {MAX_PARTS + 5} parts are shown" in second
    assert f"{MAX_PARTS - 1};" in html
    assert f"{MAX_PARTS};" not in html


@pytest.mark.parametrize("num", [0, 1, 3])
def test_a_page_of_any_number_of_documents_can_be_written(num: int) -> None:
    broken = Document(parts=(Text(text="half \ud83d pair"),), metadata={"a": "\ud83d"}, id="\ud83d")

    assert page(*[broken] * num).encode("utf-8")
