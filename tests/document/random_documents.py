"""Random small documents for round-trip properties."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image as PILImage

from dreamllm.document.document import Document, Image, Part, Text

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
ROLES = st.sampled_from(["system", "user", "assistant"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def pictures(draw: st.DrawFn) -> PILImage.Image:
    width, height, seed = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(0, 2**16))
    return PILImage.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@st.composite
def documents(
    draw: st.DrawFn, conversation: bool | None = None, learn_follows_role: bool = False
) -> Document:
    if conversation is None:
        conversation = draw(st.booleans())
    parts: list[Part] = []
    for _ in range(draw(st.integers(0, 4))):
        role = draw(ROLES) if conversation else None
        learn = role == "assistant" if learn_follows_role else draw(st.booleans())
        if draw(st.booleans()):
            parts.append(Text(text=draw(TEXTS), role=role, learn=learn))
        else:
            parts.append(Image(source=draw(pictures()), role=role, learn=learn))
    return Document(
        parts=tuple(parts), id=draw(TEXTS), metadata=draw(st.dictionaries(TEXTS, JSON_VALUES, max_size=2))
    )


def content(document: Document) -> list[tuple[Any, ...]]:
    """What a document says, as values that compare equal when it says the same."""
    return [
        ("text", part.text, part.role, part.learn)
        if isinstance(part, Text)
        else ("image", part.load().size, part.load().tobytes(), part.role, part.learn)
        for part in document
    ]
