"""The names a user may rely on. A change here is a change in CHANGELOG.md."""

import subprocess
import sys

import pytest

import dreamllm
from dreamllm.document import document, events

PUBLIC = [
    "Document",
    "DreamLLM",
    "DreamLLMError",
    "Event",
    "Finished",
    "Image",
    "ImagePreview",
    "ImageReady",
    "ImageStarted",
    "JAM",
    "Text",
    "TextDelta",
    "__version__",
    "fold",
    "load",
]


def test_the_public_names_are_these() -> None:
    assert sorted(dreamllm.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert getattr(dreamllm, name) is not None
    assert name in dir(dreamllm)


def test_a_public_name_is_the_object_its_room_defines() -> None:
    assert dreamllm.Document is document.Document
    assert dreamllm.Image is document.Image
    assert dreamllm.fold is events.fold


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dreamllm' has no attribute 'Documents'"):
        dreamllm.Documents  # noqa: B018 - the access is the test


def test_a_public_name_loads_its_room_only_when_it_is_used() -> None:
    program = (
        "import sys, dreamllm; room = 'dreamllm.document.document'; before = room in sys.modules; "
        "dreamllm.Document; print(before, room in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["False", "True"]
