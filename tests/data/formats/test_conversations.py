"""LLaVA, ShareGPT and VQA files; the records have the fields of the data sets' public descriptions."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.data.formats.pictures import write_jpeg

from dreamllm.data.archive import open_documents
from dreamllm.document.document import Document, Text
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError


def said(document: Document) -> list[tuple[str | None, str, bool]]:
    return [
        (
            part.role,
            part.text if isinstance(part, Text) else f"<{getattr(part.source, 'name', '')}>",
            part.learn,
        )
        for part in document
    ]


LLAVA = {
    "id": "000000033471",
    "image": "coco/a.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
        {"from": "gpt", "value": "The bus is white and red."},
        {"from": "human", "value": "What feature can be seen?"},
        {"from": "gpt", "value": "An advertisement."},
    ],
}


def write(folder: Path, *records: Any) -> Path:
    write_jpeg(folder / "images" / "coco" / "a.jpg")
    write_jpeg(folder / "images" / "coco" / "b.jpg", 1)
    (folder / "llava.json").write_text(json.dumps(records))
    return folder / "llava.json"


def opened(folder: Path, *records: Any, **options: Any) -> Any:
    file = write(folder, *records)
    return open_documents(file, options={"images": str(folder / "images"), **options})


def test_answers_are_learned_and_the_rest_is_read(tmp_path: Path) -> None:
    document = opened(tmp_path, LLAVA)[0]

    assert document.id == "000000033471"
    assert said(document) == [
        ("user", "<a.jpg>", False),
        ("user", "What are the colors of the bus?", False),
        ("assistant", "The bus is white and red.", True),
        ("user", "What feature can be seen?", False),
        ("assistant", "An advertisement.", True),
    ]


def test_messages_with_a_system_text_and_a_drawn_picture(tmp_path: Path) -> None:
    record = {
        "system": "Be brief.",
        "images": ["coco/a.jpg", {"path": "coco/b.jpg"}],
        "messages": [
            {"role": "user", "content": "Draw <image> again."},
            {"role": "assistant", "content": "Here:<image>"},
        ],
    }

    assert said(opened(tmp_path, record)[0]) == [
        ("system", "Be brief.", False),
        ("user", "Draw", False),
        ("user", "<a.jpg>", False),
        ("user", "again.", False),
        ("assistant", "Here:", True),
        ("assistant", "<b.jpg>", True),
    ]


def test_a_conversation_without_pictures_is_text(tmp_path: Path) -> None:
    record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}

    assert [text for _, text, _ in said(opened(tmp_path, record)[0])] == ["Hi", "Hello"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"image": ["coco/a.jpg", "coco/b.jpg"]}, "wrong_image_count"),
        ({"image": None}, "wrong_image_count"),
        ({"image": "coco/none.jpg"}, "missing_image"),
        ({"image": "../llava.json"}, "path_outside_folder"),
        ({"image": 7}, "missing_image"),
        ({"video": "a.mp4"}, "bad_document"),
        ({"conversations": "x"}, "bad_document"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "missing_text"),
        ({"conversations": [{"from": "bot", "value": "<image>"}]}, "bad_part"),
        ({"conversations": [{"from": "human", "value": None}]}, "bad_part"),
    ],
)
def test_a_conversation_that_cannot_be_used_says_why(
    tmp_path: Path, change: dict[str, Any], kind: str
) -> None:
    archive = opened(tmp_path, LLAVA | change, LLAVA)

    with pytest.raises(FaultError) as fault:
        archive[0]
    assert fault.value.kind == kind
    assert archive[1].id == LLAVA["id"]


QUESTIONS = {
    "info": {"questions": "not these"},
    "questions": [
        {"image_id": 9, "question": "What is it?", "question_id": 9002},
        {"image_id": 9, "question": "What colour?", "question_id": 9001},
        {"image_id": 9, "question": "Who?", "question_id": 9000},
        {"image_id": 8, "question": "What is it?", "question_id": 8001},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 9001, "answers": [{"answer": a} for a in ("blue", "red", "red", "blue", "green")]},
        {"question_id": 9002, "multiple_choice_answer": "a bus", "answers": [{"answer": "bus"}]},
        {"question_id": 8001, "multiple_choice_answer": "a cat"},
    ]
}


def vqa(folder: Path, **options: Any) -> Any:
    write_jpeg(folder / "images" / "COCO_train2014_000000000009.jpg")
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    (folder / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    standard = {
        "images": str(folder / "images"),
        "annotations": str(folder / "annotations.json"),
        "image_name": "COCO_train2014_{image_id:012d}.jpg",
    }
    return open_documents(folder / "questions.json", "vqa", standard | options)


def test_questions_find_their_answers_by_id(tmp_path: Path) -> None:
    archive = pickle.loads(pickle.dumps(vqa(tmp_path)))

    assert said(archive[0]) == [
        ("user", "<COCO_train2014_000000000009.jpg>", False),
        ("user", "What is it?\nAnswer the question using a single word or phrase.", False),
        ("assistant", "a bus", True),
    ]
    assert said(archive[1])[2] == ("assistant", "blue", True)  # as frequent as red, and given first
    assert archive[1].id == "9001"
    with pytest.raises(FaultError, match="no answer to question 9000") as no_answer:
        archive[2]
    with pytest.raises(FaultError) as no_picture:
        archive[3]
    assert (no_answer.value.kind, no_picture.value.kind) == ("missing_text", "missing_image")


def test_the_prompt_for_short_answers_is_a_choice(tmp_path: Path) -> None:
    assert said(vqa(tmp_path, prompt="")[0])[1][1] == "What is it?"


def test_textvqa_and_gqa_hold_their_answers(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "images" / "n1.jpg")
    answers = ["nokia", "nokia", "phone"]
    text_vqa = {"data": [{"question": "What brand?", "image_id": "n1", "question_id": 0, "answers": answers}]}
    gqa = {
        "07333408": {"imageId": "n1", "question": "Is it?", "answer": "no", "fullAnswer": "No, it is not."}
    }
    (tmp_path / "textvqa.json").write_text(json.dumps(text_vqa))
    (tmp_path / "gqa.json").write_text(json.dumps(gqa))
    options = {"images": str(tmp_path / "images")}

    first = open_documents(tmp_path / "textvqa.json", "vqa", options | {"layout": "data"})[0]
    second = open_documents(
        tmp_path / "gqa.json", "vqa", options | {"layout": "by_id", "image_name": "{imageId}.jpg"}
    )[0]

    assert [said(document)[2] for document in (first, second)] == [
        ("assistant", "nokia", True),
        ("assistant", "no", True),
    ]


def test_annotations_belong_to_their_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="annotations None"):
        vqa(tmp_path, annotations=None)
    with pytest.raises(ConfigError, match="layout is 'data'"):
        vqa(tmp_path, layout="data")
