"""Documents to OpenAI chat messages and back."""

import base64
import io
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from PIL import Image as PILImage
from tests.document.random_documents import content, documents

from dreamllm.document.document import Document, Image, Text
from dreamllm.document.messages import from_messages, to_messages
from dreamllm.errors import DocumentError, ImageError

PICTURE = PILImage.new("RGB", (2, 1), (9, 8, 7))


@settings(max_examples=40, deadline=None)
@given(document=documents(conversation=True, learn_follows_role=True))
def test_a_conversation_survives_messages_and_json(document: Document) -> None:
    messages = json.loads(json.dumps(to_messages(document)))

    assert content(from_messages(messages)) == content(document)
    roles = [message["role"] for message in messages]
    assert all(left != right for left, right in pairwise(roles))


def test_consecutive_parts_of_one_role_are_one_message_with_the_published_keys() -> None:
    document = Document(
        parts=(
            Text(text="What is this?", role="user", learn=False),
            Image(source=PICTURE, role="user", learn=False),
            Text(text="Mud.", role="assistant"),
        )
    )

    messages = to_messages(document)

    url = messages[0]["content"][1]["image_url"]["url"]
    assert messages == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Mud."}]},
    ]
    head, payload = url.split(",")
    assert head == "data:image/png;base64"
    assert PILImage.open(io.BytesIO(base64.b64decode(payload))).getpixel((0, 0)) == (9, 8, 7)


def test_string_content_is_one_text_and_only_the_assistant_is_learned() -> None:
    document = from_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello", "refusal": None},
        ],
        id="greeting",
    )

    assert document.id == "greeting"
    assert document.parts == (
        Text(text="Be brief.", role="system", learn=False),
        Text(text="Hi", role="user", learn=False),
        Text(text="Hello", role="assistant", learn=True),
    )


@settings(max_examples=20, deadline=None)
@given(document=documents(conversation=False))
def test_a_plain_document_is_one_assistant_message(document: Document) -> None:
    messages = to_messages(document)

    assert [message["role"] for message in messages] == ["assistant"] * bool(len(document))
    assert [part[:-2] for part in content(from_messages(messages))] == [
        part[:-2] for part in content(document)
    ]


def test_a_picture_on_a_network_is_never_fetched() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}

    with pytest.raises(
        ImageError,
        match=r"message 0: .*'https://example.org/cat.png'; expected data:image.*nothing is fetched",
    ):
        from_messages([{"role": "user", "content": [part]}])


def test_a_corrupt_picture_is_found_when_it_is_opened() -> None:
    url = "data:image/png;base64," + base64.b64encode(b"not a picture").decode()
    document = from_messages(
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]}]
    )

    with pytest.raises(ImageError, match="picture of 13 bytes is not a picture"):
        document.images[0].load()


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ({"role": "user", "content": "Hi"}, "put a single message into a list"),
        (["Hi"], "message 0: 'Hi' is not a message"),
        ([{"role": "user"}], "expected an object with 'role' and 'content'"),
        ([{"role": "tool", "content": "x"}], "role 'tool' is unknown; expected system, user, assistant"),
        ([{"role": "user", "content": None}], "content is None; expected a string or a list"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "cannot be read; expected"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "cannot be read"),
        ([{"role": "user", "content": "\ud800"}], "half a surrogate pair"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{}]}],
            "message 1: it has tool_calls, which a document cannot hold",
        ),
    ],
)
def test_a_malformed_message_says_where_and_why(messages: Any, error: str) -> None:
    with pytest.raises(DocumentError, match=error):
        from_messages(messages)


def test_an_error_does_not_print_a_whole_picture() -> None:
    part = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}

    with pytest.raises(DocumentError) as caught:
        from_messages([{"role": "user", "content": [part]}])

    assert len(str(caught.value)) < 500
