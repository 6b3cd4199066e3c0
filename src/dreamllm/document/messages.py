"""Documents as OpenAI chat messages, and back.

    {"role": "user", "content": [{"type": "text", "text": "..."},
                                 {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]}

Pictures travel inside the message as data URLs; nothing is ever fetched. Consecutive parts of one role are
one message. A plain document, where nobody speaks, goes out as one assistant message.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from dreamllm.document.document import Document, Image, Part, Role, Text
from dreamllm.document.images import data_url_bytes, png_data_url
from dreamllm.errors import DocumentError

ROLES: tuple[Role, ...] = get_args(Role)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


def to_messages(document: Document) -> list[dict[str, Any]]:
    """The document as chat messages; `id`, `metadata` and `learn` have no place there and stay behind.

    Raises:
        ImageError: a picture cannot be opened.
    """
    messages: list[dict[str, Any]] = []
    for part in document:
        role = part.role or "assistant"
        if not messages or messages[-1]["role"] != role:
            messages.append({"role": role, "content": []})
        messages[-1]["content"].append(content_part(part))
    return messages


def from_messages(messages: Sequence[Mapping[str, Any]], *, id: str = "") -> Document:
    """The conversation that the messages hold; the assistant's parts are those to learn.

    A message's content is a string or a list of parts; pictures are kept as bytes and opened when needed.

    Raises:
        DocumentError: a message is malformed, or says something that a document cannot hold.
        ImageError: a picture is not given as a base64 data URL.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise DocumentError(
            f"messages are {shown(messages)}; expected a list of {{'role', 'content'}} objects; "
            "put a single message into a list"
        )
    parts: list[Part] = []
    for number, message in enumerate(messages):
        try:
            parts += _message_parts(message)
        except DocumentError as error:
            raise type(error)(f"message {number}: {error}") from error
    return Document(parts=tuple(parts), id=id)


def content_part(part: Part) -> dict[str, Any]:
    """One part as an OpenAI content part, without its role."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": png_data_url(part.load())}}


def read_content_part(value: Any, *, role: Role | None, learn: bool) -> Part:
    """The part that an OpenAI content part holds; an image's `detail` is accepted and has no effect here.

    Raises:
        DocumentError: it is malformed or of an unknown type.
        ImageError: its picture is not a base64 data URL.
    """
    match value:
        case {"type": "text", "text": str(text)}:
            return Text(text=checked_text(text), role=role, learn=learn)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return Image(source=data_url_bytes(url), role=role, learn=learn)
    raise DocumentError(
        f"content part {shown(value)} cannot be read; expected {{'type': 'text', 'text': ...}} or "
        "{'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,...'}}; rewrite or remove the part"
    )


def role_and_learn(part: Part) -> dict[str, Any]:
    """The `role` and `learn` keys of a part on disk, left out where they are the defaults."""
    keys: dict[str, Any] = {}
    if part.role is not None:
        keys["role"] = part.role
    if not part.learn:
        keys["learn"] = False
    return keys


def read_role_and_learn(value: Mapping[str, Any]) -> tuple[Role | None, bool]:
    """The inverse of `role_and_learn`.

    Raises:
        DocumentError: the role is unknown, or `learn` is not true or false.
    """
    learn = value.get("learn", True)
    if not isinstance(learn, bool):
        raise DocumentError(f"'learn' is {shown(learn)}; expected true or false; correct it or leave it out")
    role = value.get("role")
    return (None if role is None else _read_role(role)), learn


def checked_text(text: str) -> str:
    """The text, known to be writable as UTF-8.

    Raises:
        DocumentError: it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"text has half a surrogate pair, {text[error.start]!r}, at character {error.start}; "
            "expected whole Unicode characters; repair or remove it"
        ) from error
    return text


def shown(value: object) -> str:
    """The value in a message: shortened, so that a picture does not fill the screen."""
    return _repr.repr(value)


def _message_parts(message: Any) -> list[Part]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise DocumentError(
            f"{shown(message)} is not a message; expected an object with 'role' and 'content'; "
            "add what is missing"
        )
    extra = sorted(str(key) for key, value in message.items() if key not in ("role", "content") and value)
    if extra:
        raise DocumentError(
            f"it has {', '.join(extra)}, which a document cannot hold; expected only 'role' and 'content'; "
            "remove the rest"
        )
    role = _read_role(message["role"])
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise DocumentError(
            f"its content is {shown(content)}; expected a string or a list of parts; "
            "put a single part into a list"
        )
    return [read_content_part(part, role=role, learn=role == "assistant") for part in content]


def _read_role(value: Any) -> Role:
    for role in ROLES:
        if value == role:
            return role
    raise DocumentError(
        f"role {shown(value)} is unknown; expected {', '.join(ROLES)}; use one of them or remove the message"
    )
