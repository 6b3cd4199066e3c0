"""What the handles of all models share: prompts as a user says them, saving and pushing with a card.

A handle is a model, its encoder and its generator; which ones, and how they are loaded and saved, is the
affair of its family (`pipeline.py`).
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, Unpack, overload

from PIL import Image as PILImage

from dreamllm.checkpoint.card import Report, Stage, facts_of, write_card
from dreamllm.checkpoint.hub import push_folder
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.events import Event
from dreamllm.errors import DocumentError
from dreamllm.generate.engine import Engine
from dreamllm.generate.options import DrawOptions, GenerationOptions, OptionFields, WriteOptions

UserTurn = str | PILImage.Image | Sequence[str | PILImage.Image]
"""What a user says: words, a picture, or both in order."""


class Handle(ABC):
    """A model that reads and writes illustrated documents, ready to use."""

    generator: Engine[Any]

    def __init__(self, generator: Engine[Any], sources: Mapping[str, PartSource] | None) -> None:
        self.generator = generator
        self.sources = dict(sources or {})

    def save_pretrained(
        self, path: str | Path, *, stages: Sequence[Stage] = (), reports: Sequence[Report] = ()
    ) -> Path:
        """Write the model as a folder of stock parts with its card, and return the path.

        A model folder that is already there is replaced, its card too. `stages` and `reports` are what the
        card tells of training and evaluation; see `checkpoint/card.py`.

        Raises:
            CheckpointError: the path holds something that is not a model folder.
        """
        return self._save(Path(path), None, stages, reports)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
        stages: Sequence[Stage] = (),
        reports: Sequence[Report] = (),
    ) -> str:
        """Upload the model with its card to the repository `owner/name` of the Hugging Face Hub, on the
        branch `revision`, and return the address of the commit.

        What is missing is made. The model that is there is replaced. `private` is heard for a new repository
        only; without `token` the one of `hf auth login` is used.

        Raises:
            CheckpointError: the id is no hub id, or the hub refuses or cannot be reached.
        """
        location = repo_id if revision is None else f"{repo_id}@{revision}"
        with tempfile.TemporaryDirectory() as aside:
            return push_folder(
                self._save(Path(aside) / "model", location, stages, reports),
                repo_id,
                private=private,
                revision=revision,
                commit_message=commit_message,
                token=token,
            )

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

    def _save(
        self, path: Path, location: str | None, stages: Sequence[Stage], reports: Sequence[Report]
    ) -> Path:
        self._save_parts(path)
        write_card(facts_of(path, location=location, stages=stages, reports=reports), path)
        return path

    @abstractmethod
    def _save_parts(self, path: Path) -> None:
        """Write the model folder, without its card."""


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
