"""From documents to rows, positions, pictures and passes, against arithmetic by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from dreamllm.data.sources import JsonlSourceConfig, PhaseConfig, WorldSourceConfig
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import write_documents
from dreamllm.errors import ConfigError
from dreamllm.sequence.layout import SlotSizes
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.plan.documents import (
    ASSUMED,
    MMC4_CORE,
    DocumentShape,
    count_document,
    mean_document,
    source_shapes,
)
from dreamllm.train.plan.workload import positions_of, workload

SIZES = SlotSizes(num_visual_tokens=256, num_dream_queries=64)
PAIRS = DocumentShape(text_tokens=20, images_read=0.5, images_drawn=0.5)
PICTURE = PILImage.new("RGB", (4, 4))


def objective(**changes: Any) -> DreamLLMObjectiveConfig:
    given: dict[str, Any] = {
        "model": Path("model"),
        "documents_per_step": 1024,
        "row_length": 2048,
        **changes,
    }
    return DreamLLMObjectiveConfig(**given)


def jsonl(path: str | Path, weight: float = 1.0) -> JsonlSourceConfig:
    return JsonlSourceConfig(path=Path(path), weight=weight)


def test_a_document_with_six_pictures_fills_the_context_of_the_paper() -> None:
    # 324 positions a picture: 64 queries, 256 visual tokens and four brackets (paper, section 3.2)
    six = DocumentShape(text_tokens=100, images_read=6, images_drawn=6)

    assert positions_of(six, SIZES, condition_dropout=0.0) == 2 + 100 + 6 * 324 == 2046


def test_a_step_of_pairs_is_packed_into_full_rows() -> None:
    made = workload(objective(rows_per_micro_batch=4), PAIRS, SIZES, gpus=1)

    # 2 + 20 + (258 + 66) / 2 = 184 positions; 1024 * 184 / 2048 = 92 rows, 44.5 documents in four of them
    assert (made.rows, made.positions, made.passes) == (4, 2048, 23.0)
    assert (made.labels, made.images_read, made.images_drawn) == (891, 23, 23)
    assert (made.positions_per_step, made.images_drawn_per_step) == (1024 * 184, 512)


def test_without_packing_a_row_is_a_document() -> None:
    made = workload(objective(rows_per_micro_batch=8, packing=False), PAIRS, SIZES, gpus=1)

    assert (made.rows, made.positions, made.passes, made.images_read) == (8, 184, 128.0, 4)


def test_gpus_share_the_documents_of_a_step() -> None:
    made = workload(objective(rows_per_micro_batch=4), PAIRS, SIZES, gpus=64)

    # 92 rows over 64 GPUs are one and a half each
    assert (made.rows, made.passes) == (2, 92 / 64 / 2)
    assert made.images_read_per_step == 8


def test_moved_conditions_are_sequences_of_their_own() -> None:
    whole = positions_of(PAIRS, SIZES, condition_dropout=0.0)

    assert positions_of(PAIRS, SIZES, condition_dropout=0.1) == pytest.approx(whole + 0.1 * 0.5 * 67)


def test_a_document_longer_than_a_row_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"has 184 positions on the average but a row only 128"):
        workload(objective(row_length=128), PAIRS, SIZES, gpus=1)


def test_more_gpus_than_documents_is_an_error() -> None:
    with pytest.raises(ConfigError, match="8 GPUs for 4 documents a step"):
        workload(objective(documents_per_step=4), PAIRS, SIZES, gpus=8)


def test_an_empty_document_is_an_error() -> None:
    with pytest.raises(ConfigError, match="not 0 of all"):
        DocumentShape(text_tokens=0, images_read=0, images_drawn=0)


@pytest.mark.parametrize(
    ("mode", "read", "drawn"), [("joint", 3, 2), ("comprehension", 3, 0), ("creation", 1, 2)]
)
def test_pictures_of_a_document_are_counted_as_they_are_encoded(mode: str, read: int, drawn: int) -> None:
    parts = (
        Text(text="ab" * 20),
        Image(source=PICTURE, learn=False),
        Image(source=PICTURE),
        Image(source=PICTURE),
    )

    shape = count_document(Document(parts=parts), objective(mode=mode))

    assert shape == DocumentShape(text_tokens=10, images_read=read, images_drawn=drawn)


def test_the_picture_of_a_creation_pair_is_not_fed_back_and_one_of_a_user_is_not_drawn() -> None:
    pair = Document(parts=(Text(text="a" * 8, learn=False), Image(source=PICTURE)))
    question = Document(
        parts=(Image(source=PICTURE, role="user"), Text(text="a" * 8, role="assistant", learn=False))
    )

    assert count_document(pair, objective()) == DocumentShape(text_tokens=2, images_read=0, images_drawn=1)
    assert count_document(question, objective()) == DocumentShape(
        text_tokens=2, images_read=1, images_drawn=0
    )


def test_files_that_are_there_are_counted(tmp_path: Path) -> None:
    documents = [
        Document(parts=(Image(source=PICTURE, learn=False), Text(text="a" * 4 * n)), id=f"{n}")
        for n in (4, 8)
    ]
    write_documents(documents, tmp_path / "own.jsonl")

    (source,) = source_shapes(
        objective(phases=(PhaseConfig(sources=(jsonl(tmp_path / "own.jsonl"),)),)), seed=0
    )

    assert source.origin == "counted"
    assert source.document == DocumentShape(text_tokens=6, images_read=1, images_drawn=0)
    assert json.loads((tmp_path / "own.jsonl").read_text().splitlines()[0])["id"] == "4"


def test_files_that_are_not_there_yet_are_known_by_their_corpus_or_assumed_to_be_pairs() -> None:
    phase = PhaseConfig(sources=(jsonl("data/mmc4_core/documents.jsonl", 3.0), jsonl("data/mine.jsonl", 1.0)))

    known, assumed = source_shapes(objective(phases=(phase,)), seed=0)

    assert (known.document, known.origin, known.share) == (MMC4_CORE, "corpus", 0.75)
    assert (assumed.document, assumed.origin, assumed.share) == (ASSUMED, "assumed", 0.25)


@pytest.mark.parametrize(
    ("mode", "read", "drawn"), [("joint", 4.1, 4.1), ("comprehension", 4.1, 0), ("creation", 0, 4.1)]
)
def test_a_known_corpus_is_read_or_drawn_as_the_mode_has_it(mode: str, read: float, drawn: float) -> None:
    phase = PhaseConfig(sources=(jsonl("data/mmc4_core/documents.jsonl"),))

    (source,) = source_shapes(objective(phases=(phase,), mode=mode), seed=0)

    assert (source.document.images_read, source.document.images_drawn) == (read, drawn)


def test_phases_weigh_by_their_length() -> None:
    read, draw = jsonl("data/x/read.jsonl"), jsonl("data/x/draw.jsonl")
    phases = (PhaseConfig(until=0.25, sources=(read,)), PhaseConfig(until=1.0, sources=(read, draw)))

    mean = mean_document(source_shapes(objective(phases=phases), seed=0))

    assert (mean.images_read, mean.images_drawn) == (0.625, 0.375)


def test_documents_of_the_world_are_made_and_counted() -> None:
    world = WorldSourceConfig(documents={"draw_pair": 1.0})

    (source,) = source_shapes(objective(phases=(PhaseConfig(sources=(world,)),)), seed=0)

    assert source.origin == "counted"
    assert source.document.images_drawn == 1
    assert np.isclose(source.document.images_read, 0)


def test_a_run_without_sources_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no source of documents"):
        source_shapes(objective(), seed=0)
