"""The document: text and pictures in reading order. It is what is read from disk, trained on, generated,
scored and exported; everything else in the package turns documents into something, or something
into documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image as PILImage

from dreamllm.document.images import ImageLimits, open_image
from dreamllm.errors import DocumentError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A run of text."""

    text: str
    role: Role | None = None
    """Who says it; None in a plain document, where nobody speaks."""
    learn: bool = True
    """Whether the language model is trained to write it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """A picture, opened when it is needed."""

    source: PILImage.Image | bytes | Path
    role: Role | None = None
    learn: bool = True
    """Whether the model is trained to draw it (a drawn picture) or only reads it (a given picture)."""

    def load(self, limits: ImageLimits = ImageLimits()) -> PILImage.Image:  # noqa: B008 - frozen value
        """The picture as RGB, the first frame if it is animated.

        Raises:
            ImageError: it is corrupt, truncated, empty, or larger than the limits allow.
        """
        return open_image(self.source, limits)


Part = Text | Image


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Document:
    """Ordered parts. A conversation has a role on every part; a plain document has none."""

    parts: tuple[Part, ...]
    id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON values that travel with the document, never shown to a model."""

    def __post_init__(self) -> None:
        with_role = sum(part.role is not None for part in self.parts)
        if with_role not in (0, len(self.parts)):
            raise DocumentError(
                f"document {self.id!r} has roles on {with_role} of {len(self.parts)} parts; "
                "expected a role on every part (a conversation) or on none (a plain document); "
                "add or remove roles"
            )

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def is_conversation(self) -> bool:
        """Whether the parts carry roles."""
        return bool(self.parts) and self.parts[0].role is not None

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures, in reading order."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def text(self) -> str:
        """The text of all parts, a blank line where a picture stood."""
        return "".join(part.text if isinstance(part, Text) else "\n\n" for part in self.parts).strip()

    def save(self, path: str | Path) -> Path:
        """Write to `.html` (one self-contained file), `.md` (with an image folder beside it) or `.json`."""
        from dreamllm.document.export import save_document  # export imports this module

        return save_document(self, Path(path))
