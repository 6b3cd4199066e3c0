"""What the makers of documents share: parts with their roles, and shapes that several kinds have.

A maker takes a random generator, a scene, its split and the options, and gives parts, scenes and metadata.
"""

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as change
from typing import Any

import numpy as np

from dreamllm.document.document import Image, Part, Role, Text
from dreamllm.world.language import CaptionStyle, QuestionKind, sentence
from dreamllm.world.nouns import NounGroup
from dreamllm.world.render import render_image
from dreamllm.world.scene import Scene
from dreamllm.world.splits import Split


@dataclass(frozen=True, slots=True)
class DocumentOptions:
    """What a document may ask and name."""

    num_questions: int
    """How many questions, if there are as many to ask."""
    question_kinds: tuple[QuestionKind, ...]
    """Kinds of questions about a scene to choose from."""
    nouns: NounGroup | None
    """Invented nouns it may use; None: all that its kind and split allow."""
    caption_styles: tuple[CaptionStyle, ...] | None
    """Styles of captions, equally likely; None: all, full ones most often."""


Made = tuple[list[Part], list[Scene], dict[str, Any]]
Maker = Callable[[np.random.Generator, Scene, Split, DocumentOptions], Made]


def picture(scene: Scene, *, learn: bool, role: Role | None = None) -> Image:
    """The picture of a scene."""
    return Image(source=render_image(scene), learn=learn, role=role)


def user(text: str) -> Text:
    """What a user says; never learned."""
    return Text(text=text, role="user", learn=False)


def assistant(text: str) -> Text:
    """What an assistant says."""
    return Text(text=text, role="assistant")


def lower(text: str) -> str:
    """The text with a small first letter."""
    return text[0].lower() + text[1:]


def illustrated(title: str, sentences: list[str], scenes: list[Scene], ending: str) -> list[Part]:
    """A title, a picture after each sentence, an ending."""
    parts: list[Part] = []
    for index, (words, scene) in enumerate(zip(sentences, scenes, strict=True)):
        parts.append(Text(text=f"{title} {sentence(words[:-1])}" if index == 0 else sentence(words[:-1])))
        parts.append(picture(scene, learn=True))
    parts.append(Text(text=ending))
    return parts


def asked(parts: list[Part], request: str) -> list[Part]:
    """A plain document as an assistant's answer."""
    return [user(request), *(change(part, role="assistant") for part in parts)]
