"""The handle a user holds: one model, its encoder and its generator.

    model = DreamLLM.from_pretrained("tiny")
    document = model.generate("Tell me a story with pictures.")
    document.save("story.html")

Inside the package `DreamLLM` is also the name of the `nn.Module`; here it is imported as `DreamLLMModule`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeGuard, Unpack, overload

import torch
from PIL import Image as PILImage

from dreamllm.checkpoint.encoder import load_encoder
from dreamllm.checkpoint.pretrained import load_model
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.events import Event
from dreamllm.errors import CheckpointError, DocumentError
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.options import DrawOptions, GenerationOptions, OptionFields, WriteOptions
from dreamllm.models.dreamllm import DreamLLM as DreamLLMModule
from dreamllm.sequence.encode import SequenceEncoder

WEIGHTS: Final = Path(__file__).parents[1] / "weights"
"""Holds the models that ship with the package, a folder each."""

UserTurn = str | PILImage.Image | Sequence[str | PILImage.Image]
"""What a user says: words, a picture, or both in order."""


class DreamLLM:
    """A model that reads and writes illustrated documents, ready to use."""

    def __init__(self, model: DreamLLMModule, encoder: SequenceEncoder) -> None:
        """The model is put into evaluation mode; its weights must not change while this handle is used."""
        self.model = model.eval()
        self.encoder = encoder
        self.generator = InterleavedGenerator(model, encoder)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "auto", dtype: torch.dtype = torch.float32
    ) -> "DreamLLM":
        """Load a model folder, or a model that ships with the package by its name.

        Where a folder has the name of a shipped model, write `./name` for the folder. Device `auto` takes a
        GPU if there is one.

        Raises:
            CheckpointError: there is neither, or the folder is damaged.
        """
        folder = _find(path)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(folder, device=device, dtype=dtype)
        return cls(model, load_encoder(folder, model))

    @overload
    def generate(self, prompt: UserTurn | Document, **options: Unpack[OptionFields]) -> Document: ...

    @overload
    def generate(self, prompt: Sequence[Document], **options: Unpack[OptionFields]) -> list[Document]: ...

    def generate(
        self, prompt: UserTurn | Document | Sequence[Document], **options: Unpack[OptionFields]
    ) -> Document | list[Document]:
        """Continue a prompt and return it with what follows; a list of documents is continued as one batch.

        Words and pictures alone are what a user says; a `Document` is taken as it is. The options are the
        fields of `GenerationOptions`.

        Raises:
            ConfigError: an option cannot be meant.
            DocumentError: the prompt is neither words, pictures nor documents.
            LayoutError: a prompt leaves no room in the model's context.
        """
        chosen = GenerationOptions(**options)
        if _are_documents(prompt):
            return self.generator.generate(prompt, chosen)
        return self.generator.generate([_as_document(prompt)], chosen)[0]

    def stream(self, prompt: UserTurn | Document, **options: Unpack[OptionFields]) -> Iterator[Event]:
        """Events of one continued prompt as they happen. Closing the iterator stops the work.

        `generator.stream` does the same for many documents.
        """
        for _, event in self.generator.stream([_as_document(prompt)], GenerationOptions(**options)):
            yield event

    def draw(self, texts: Sequence[str], **options: Unpack[DrawOptions]) -> list[PILImage.Image]:
        """Draw one picture for each text, as the caption of a plain document and not as a user's request."""
        documents = [Document(parts=(Text(text=text),)) for text in texts]
        drawn = self.generator.generate(documents, GenerationOptions(mode="image", **options))
        return [document.images[-1].load() for document in drawn]

    def ask(self, image: PILImage.Image, question: str, **options: Unpack[WriteOptions]) -> str:
        """The answer to a question about a picture."""
        prompt = _as_document((image, question))
        answered = self.generator.generate([prompt], GenerationOptions(mode="text", **options))[0]
        return "".join(part.text for part in answered.parts[len(prompt) :] if isinstance(part, Text))


def _find(path: str | Path) -> Path:
    shipped = sorted(index.parent.name for index in WEIGHTS.glob("*/model_index.json"))
    if isinstance(path, str) and path in shipped:
        return WEIGHTS / path
    if not Path(path).is_dir():
        raise CheckpointError(
            f"{str(path)!r} is neither a model folder nor a model that ships with the package "
            f"({', '.join(shipped) or 'none'}); check the path, or use one of these names"
        )
    return Path(path)


def _are_documents(prompt: UserTurn | Document | Sequence[Document]) -> TypeGuard[Sequence[Document]]:
    if isinstance(prompt, str | PILImage.Image | Document):
        return False
    return all(isinstance(item, Document) for item in prompt)


def _as_document(prompt: UserTurn | Document | Sequence[Document]) -> Document:
    """A document as it is; anything else as one turn of a user."""
    if isinstance(prompt, Document):
        return prompt
    items: Sequence[object] = [prompt] if isinstance(prompt, str | PILImage.Image) else prompt
    return Document(parts=tuple(_as_part(item) for item in items))


def _as_part(item: object) -> Part:
    if isinstance(item, str):
        return Text(text=item, role="user")
    if isinstance(item, PILImage.Image):
        return Image(source=item, role="user", learn=False)
    raise DocumentError(
        f"a prompt holds a {type(item).__name__}; expected words and PIL pictures, one Document, "
        "or a list of Documents alone; open pictures with PIL.Image.open, or build a Document"
    )
