"""What a document holds together."""

import pytest
from PIL import Image as PILImage

from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import DocumentError


def test_roles_stand_on_every_part_or_on_none() -> None:
    with pytest.raises(DocumentError, match="document 'x' has roles on 1 of 2 parts"):
        Document(parts=(Text(text="a", role="user"), Text(text="b")), id="x")


def test_text_has_a_blank_line_where_a_picture_stood() -> None:
    picture = Image(source=PILImage.new("RGB", (1, 1)))
    document = Document(parts=(Text(text="a"), picture, Text(text="b"), picture))

    assert document.text == "a\n\nb"
    assert document.images == (picture, picture)
    assert not document.is_conversation
    assert Document(parts=(Text(text="a", role="user"),)).is_conversation
