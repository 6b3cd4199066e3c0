"""Facts of a document, the faults that prevent them, and a pass that no number of workers changes."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.data.byte_tokens import save_byte_tokenizer
from tests.data.faulty import SomeFaulty

from dreamllm.data.measures import DocumentFacts, MeasureOptions, measure, measure_all, usable
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.images import png_bytes
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError, DocumentError, ImageError


def red(width: int = 30, height: int = 20) -> PILImage.Image:
    return PILImage.new("RGB", (width, height), (200, 10, 10))


def noise_png(side: int = 64) -> bytes:
    rng = np.random.default_rng(0)
    return png_bytes(PILImage.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)))


def test_the_facts_of_a_plain_document() -> None:
    document = Document(
        id="a",
        parts=(
            Text(text="A red\npicture: "),
            Image(source=png_bytes(red()), learn=False),
            Text(text=" and the same, "),
            Image(source=png_bytes(red()), learn=True),
        ),
    )

    facts = measure(document)

    assert (facts.id, facts.roles, facts.learns) == ("a", (), True)
    assert (facts.num_words, facts.num_characters, facts.num_tokens) == (6, 15 + 15, None)
    assert [(p.width, p.height, p.is_drawn) for p in facts.pictures] == [(30, 20, False), (30, 20, True)]
    assert facts.pictures[0].digest == facts.pictures[1].digest
    assert (facts.pictures[0].shorter_side_px, facts.pictures[0].aspect_ratio) == (20, 1.5)


def test_roles_decide_what_is_learned_and_drawn() -> None:
    asked = Document(parts=(Text(text="draw", role="user"), Image(source=red(), role="user")))
    answered = Document(parts=(*asked.parts, Text(text="there", role="assistant")))

    assert not measure(asked).learns
    assert not measure(asked).pictures[0].is_drawn
    assert measure(answered).learns
    assert measure(answered).roles == ("user", "user", "assistant")


def test_equal_documents_have_equal_digests_whatever_their_ids_and_nothing_else_has() -> None:
    parts = (Text(text="one"), Image(source=red()))
    same = Document(parts=(Text(text="one"), Image(source=red())), id="other", metadata={"a": 1})
    others = [
        Document(parts=parts[::-1]),
        Document(parts=(Text(text="One"), parts[1])),
        Document(parts=(Text(text="one", learn=False), parts[1])),
        Document(parts=(parts[0], Image(source=red(20, 30)))),
        Document(parts=(Text(text="one", role="user"), Image(source=red(), role="user"))),
    ]

    digests = [measure(document).digest for document in (Document(parts=parts), *others)]

    assert measure(same).digest == digests[0]
    assert len(set(digests)) == len(digests)


def test_tokens_are_those_of_the_text_and_names_of_special_tokens_are_letters(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path / "tokenizer")
    document = Document(parts=(Text(text="né "), Image(source=red()), Text(text="</s>")))

    for folder in (tmp_path, tmp_path / "tokenizer"):
        assert measure(document, MeasureOptions(tokenizer=folder)).num_tokens == 4 + 4


@pytest.mark.parametrize("content", [None, "not JSON", json.dumps({"version": "1.0"})])
def test_a_folder_without_a_tokenizer_is_told_before_the_first_document(
    content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises((ConfigError, DocumentError), match=r"tokenizer\.json"):
        next(measure_all(SomeFaulty([]), [], options=MeasureOptions(tokenizer=tmp_path)), None)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (Path("gone.png"), "missing_image"),
        (b"", "corrupt_image"),
        (b"<html>not found</html>", "corrupt_image"),
        (noise_png()[:20], "corrupt_image"),
    ],
)
def test_a_picture_that_cannot_be_opened_is_a_fault(source: Path | bytes, kind: str, decode: bool) -> None:
    with pytest.raises(FaultError) as fault:
        measure(Document(parts=(Image(source=source),)), MeasureOptions(decode=decode))

    assert fault.value.kind == kind


def test_damage_behind_the_header_is_found_by_decoding_alone() -> None:
    document = Document(parts=(Image(source=noise_png()[:3000]),))

    assert measure(document).pictures[0].width == 64
    with pytest.raises(FaultError, match="corrupt or truncated"):
        measure(document, MeasureOptions(decode=True))


def test_a_picture_that_claims_to_be_huge_is_a_fault_even_when_it_is_not_decoded() -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PILImage.new("1", (9000, 9000)).save(buffer, format="PNG")

    with pytest.raises(FaultError, match="too large"):
        measure(Document(parts=(Image(source=buffer.getvalue()),)))


def test_pictures_in_other_bytes_look_the_same_only_when_they_are_decoded() -> None:
    picture = PILImage.open(io.BytesIO(noise_png(8))).resize((64, 64), PILImage.Resampling.NEAREST)
    other = io.BytesIO()
    picture.save(other, format="BMP")
    documents = [Document(parts=(Image(source=data),)) for data in (png_bytes(picture), other.getvalue())]

    def cells(decode: bool) -> list[np.ndarray]:
        sketches = [measure(document, MeasureOptions(decode=decode)).sketch for document in documents]
        return [sketch.picture for sketch in sketches if sketch is not None and sketch.picture is not None]

    assert np.array_equal(*cells(True))
    assert not np.array_equal(*cells(False))


def mixed(num: int) -> SomeFaulty:
    return SomeFaulty(
        [
            ("bad_json", f"line {number}")
            if number % 7 == 3
            else Document(parts=(Text(text=f"text {number}"),))
            for number in range(num)
        ]
    )


def test_a_pass_gives_every_index_in_order_with_facts_or_its_fault() -> None:
    passed = list(measure_all(mixed(20), range(0, 20, 2), options=MeasureOptions()))

    assert [index for index, _ in passed] == list(range(0, 20, 2))
    assert [index for index, facts in passed if isinstance(facts, FaultError)] == [10]
    assert [facts.num_words for _, facts in passed if isinstance(facts, DocumentFacts)] == [2] * 9


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ImageError("a picture"), "corrupt_image"),
        (DocumentError("a document"), "bad_document"),
        (OSError(5, "Input/output error"), "bad_document"),
    ],
)
def test_whatever_an_archive_raises_for_one_document_is_a_fault(error: Exception, kind: str) -> None:
    class Raising(SomeFaulty):
        def __getitem__(self, index: int) -> Document:
            raise error

    fault = usable(Raising([]), 0)

    assert isinstance(fault, FaultError)
    assert fault.kind == kind


def test_workers_change_nothing() -> None:
    documents, options = mixed(300), MeasureOptions()

    alone = list(measure_all(documents, range(300), options=options))
    shared = list(measure_all(documents, range(300), options=options, num_workers=2))

    def told(passed: list[tuple[int, DocumentFacts | FaultError]]) -> list[tuple[int, object]]:
        return [
            (index, (facts.kind, str(facts)) if isinstance(facts, FaultError) else facts.digest)
            for index, facts in passed
        ]

    assert told(shared) == told(alone)


def test_a_pass_that_is_left_early_ends_its_workers() -> None:
    passed = measure_all(mixed(5000), range(5000), options=MeasureOptions(), num_workers=1)

    assert next(passed)[0] == 0
    passed.close()


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match="workers is -1"):
        next(measure_all(mixed(1), range(1), options=MeasureOptions(), num_workers=-1))
