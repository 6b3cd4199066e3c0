"""Train and run models that read and write illustrated documents.

The public names load when they are first used, so that `import dreamllm` costs nothing. A new one is a line
in `_HOMES`, a line in `__all__` and an import for the type checker.
"""

import importlib
from typing import TYPE_CHECKING

from dreamllm.errors import DreamLLMError
from dreamllm.version import __version__

if TYPE_CHECKING:
    from dreamllm.document.document import Document, Image, Text
    from dreamllm.document.events import (
        Event,
        Finished,
        ImagePreview,
        ImageReady,
        ImageStarted,
        TextDelta,
        fold,
    )
    from dreamllm.generate.pipeline import JAM, DreamLLM, load

__all__ = [
    "JAM",
    "Document",
    "DreamLLM",
    "DreamLLMError",
    "Event",
    "Finished",
    "Image",
    "ImagePreview",
    "ImageReady",
    "ImageStarted",
    "Text",
    "TextDelta",
    "__version__",
    "fold",
    "load",
]

_HOMES = {
    "JAM": "dreamllm.generate.pipeline",
    "Document": "dreamllm.document.document",
    "DreamLLM": "dreamllm.generate.pipeline",
    "Event": "dreamllm.document.events",
    "Finished": "dreamllm.document.events",
    "Image": "dreamllm.document.document",
    "ImagePreview": "dreamllm.document.events",
    "ImageReady": "dreamllm.document.events",
    "ImageStarted": "dreamllm.document.events",
    "Text": "dreamllm.document.document",
    "TextDelta": "dreamllm.document.events",
    "fold": "dreamllm.document.events",
    "load": "dreamllm.generate.pipeline",
}
"""The module in which each lazily loaded name is defined."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use finds it without asking
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
