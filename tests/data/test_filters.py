"""Every rule leaves out what it says, and each document is counted under one rule."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from tests.data.byte_tokens import save_byte_tokenizer

from dreamllm.data.filters import Filter, FilterRules
from dreamllm.data.measures import MeasureOptions, measure
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError


def document(text: str = "some words here", *sizes: tuple[int, int], id: str = "") -> Document:
    pictures = (Image(source=PILImage.new("RGB", size, (9, 99, 9))) for size in sizes)
    return Document(parts=(Text(text=text), *pictures), id=id)


def kept(filter_: Filter, *documents: Document | FaultError, tokenizer: Path | None = None) -> list[int]:
    """Indices of the documents that stay."""
    options = MeasureOptions(tokenizer=tokenizer, decode=True)
    facts = [each if isinstance(each, FaultError) else measure(each, options) for each in documents]
    return [index for index, each in enumerate(facts) if filter_.keeps(index, each)]


@pytest.mark.parametrize(
    ("rules", "stays", "goes"),
    [
        ({"min_pictures": 1}, document("a", (8, 8)), document("a")),
        ({"max_pictures": 1}, document("a", (8, 8)), document("a", (8, 8), (8, 8))),
        ({"min_words": 3}, document("one two three"), document("one two")),
        ({"max_words": 3}, document("one two three"), document("one two three four")),
        ({"min_picture_side": 8}, document("a", (8, 20)), document("a", (20, 20), (20, 7))),
        ({"max_aspect_ratio": 2.5}, document("a", (20, 8)), document("a", (8, 21))),
        ({"max_repetition": 0.5}, document("no run of this one comes a second time"), document("ab" * 100)),
    ],
)
def test_a_rule_leaves_out_what_is_beyond_it_and_keeps_what_is_on_it(
    rules: dict[str, Any], stays: Document, goes: Document
) -> None:
    filter_ = Filter(FilterRules(**rules))

    assert kept(filter_, stays, goes) == [0]
    assert (filter_.num_kept, filter_.dropped) == (1, {next(iter(rules)): 1})


def test_tokens_are_counted_by_a_tokenizer(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    filter_ = Filter(FilterRules(min_tokens=2, max_tokens=3))

    assert kept(filter_, *(document("x" * num) for num in range(1, 6)), tokenizer=tmp_path) == [1, 2]
    assert filter_.dropped == {"min_tokens": 1, "max_tokens": 2}
    with pytest.raises(ConfigError, match="no tokens were counted"):
        kept(filter_, document())


def test_faults_are_left_out_and_counted_or_end_it() -> None:
    fault = FaultError("bad_json", "line 7 is not JSON")

    lenient, strict = Filter(FilterRules()), Filter(FilterRules(on_fault="raise"))

    assert kept(lenient, document(), fault, document()) == [0, 2]
    assert lenient.dropped == {"fault: bad_json": 1}
    assert lenient.examples == {"fault: bad_json": ["1: line 7 is not JSON"]}
    with pytest.raises(FaultError, match="document 1: line 7 is not JSON"):
        kept(strict, document(), fault)


def test_lists_of_ids(tmp_path: Path) -> None:
    wanted, unwanted = tmp_path / "wanted.txt", tmp_path / "unwanted.txt"
    wanted.write_text("a\nb\n\nç\n", encoding="utf-8")
    unwanted.write_text("b", encoding="utf-8")
    filter_ = Filter(FilterRules(ids=wanted, without_ids=unwanted))

    assert kept(filter_, *(document(id=name) for name in ("a", "b", "c", "ç", ""))) == [0, 3]
    assert filter_.dropped == {"ids": 2, "without_ids": 1}
    assert filter_.examples == {"ids": ["2: c", "4"], "without_ids": ["1: b"]}


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe"])
def test_a_list_of_ids_that_cannot_be_meant_is_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"ids\.txt"):
        Filter(FilterRules(ids=path))


def test_a_sample_is_the_same_every_time_has_its_share_and_grows_with_it() -> None:
    facts = measure(document())

    def sample(share: float, seed: int = 0) -> list[int]:
        filter_ = Filter(FilterRules(sample_share=share, sample_seed=seed))
        return [index for index in range(2000) if filter_.keeps(index, facts)]

    tenth, again, half, other = sample(0.1), sample(0.1), sample(0.5), sample(0.1, seed=1)

    assert tenth == again != other
    assert set(tenth) < set(half)
    assert 150 < len(tenth) < 250  # 200 and less than four standard deviations, of 13.4 each
    assert (len(sample(0.0)), len(sample(1.0))) == (0, 2000)


def test_duplicates() -> None:
    text = "a sentence about a red circle and a blue square that is long enough for a comparison of its runs"
    documents = [document(text, (8, 8)), document(text, (8, 8)), document(text + "!", (8, 8)), document("b")]

    results = {
        mode: kept(Filter(FilterRules(duplicates=mode)), *documents)  # type: ignore[arg-type]
        for mode in ("keep", "exact", "near")
    }

    assert results == {"keep": [0, 1, 2, 3], "exact": [0, 2, 3], "near": [0, 3]}


def test_a_document_that_another_rule_leaves_out_makes_no_duplicates() -> None:
    rules = FilterRules(duplicates="exact", without_ids=None, min_pictures=1)
    filter_ = Filter(rules)

    assert kept(filter_, document("a"), document("a", (8, 8)), document("a", (8, 8))) == [1]
    assert filter_.dropped == {"min_pictures": 1, "duplicates: exact": 1}


@pytest.mark.parametrize(
    "rules",
    [
        {"min_words": 5, "max_words": 4},
        {"min_pictures": -1},
        {"max_tokens": -1},
        {"sample_share": 1.5},
        {"sample_share": float("nan")},
        {"max_repetition": -0.1},
        {"similarity": 2.0},
        {"min_picture_side": 0},
        {"max_aspect_ratio": 0.5},
        {"max_aspect_ratio": float("nan")},
        {"remembered": 0},
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(rules))):
        FilterRules(**rules)


def test_the_report_names_the_rules_that_were_set() -> None:
    filter_ = Filter(FilterRules(min_words=2))
    kept(filter_, document("one"), document("one two"))

    assert filter_.to_dict() == {
        "kept": 1,
        "dropped": {"min_words": 1},
        "examples": {"min_words": ["0"]},
        "rules": {"min_words": 2},
    }
