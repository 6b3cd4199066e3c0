"""The handle a user holds: one model, its encoder and its generator.

    model = DreamLLM.from_pretrained("tiny")
    document = model.generate("Tell me a story with pictures.")
    document.save("story.html")

Inside the package `DreamLLM` is also the name of the `nn.Module`; here it is imported as `DreamLLMModule`.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeGuard, Unpack, overload

import torch
from PIL import Image as PILImage

from dreamllm.checkpoint.card import Report, Stage, facts_of, write_card
from dreamllm.checkpoint.encoder import load_encoder, transforms_of
from dreamllm.checkpoint.hub import push_folder, resolve_source, split_hub_id
from dreamllm.checkpoint.pretrained import PartSource, load_model, read_index, save_model
from dreamllm.document.document import Document, Image, Part, Text
from dreamllm.document.events import Event
from dreamllm.errors import CheckpointError, DocumentError
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.memory import Offload, check_fit, fit
from dreamllm.generate.options import DrawOptions, GenerationOptions, OptionFields, WriteOptions
from dreamllm.models.dreamllm import DreamLLM as DreamLLMModule
from dreamllm.models.quantization import Quantization
from dreamllm.sequence.encode import SequenceEncoder

WEIGHTS: Final = Path(__file__).parents[1] / "weights"
"""Holds the models that ship with the package, a folder each."""

UserTurn = str | PILImage.Image | Sequence[str | PILImage.Image]
"""What a user says: words, a picture, or both in order."""


class DreamLLM:
    """A model that reads and writes illustrated documents, ready to use."""

    def __init__(
        self,
        model: DreamLLMModule,
        encoder: SequenceEncoder,
        *,
        sources: Mapping[str, PartSource] | None = None,
    ) -> None:
        """The model is put into evaluation mode; its weights must not change while this handle is used.

        `sources` tells where the parts came from, by the name of their folder; it is saved with the model.
        """
        self.model = model.eval()
        self.encoder = encoder
        self.sources = dict(sources or {})
        self.generator = InterleavedGenerator(model, encoder)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        local_files_only: bool = False,
        quantize: Quantization | None = None,
        offload: Offload | None = None,
    ) -> "DreamLLM":
        """Load a model that ships with the package by its name, a model folder, or a model of the Hugging
        Face Hub by its id `owner/name`.

        Where a folder has the name of a shipped model, write `./name` for the folder. Device `auto` takes a
        GPU if there is one. `revision` is a branch, a tag or a commit of the hub, which `owner/name@revision`
        says as well; `local_files_only` takes what its cache holds and asks no hub. `quantize` (int8, float8,
        nf4) and `offload` (model, layer) save memory; see `memory.py`.

        Raises:
            CheckpointError: there is none of these, the hub cannot be reached, or the folder is damaged.
            ConfigError: offload to a CPU, or an unknown choice.
            MissingExtraError: the package that quantises is not installed.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_fit(device, quantize=quantize, offload=offload)
        folder = _find(path, revision=revision, local_files_only=local_files_only)
        model = fit(load_model(folder, dtype=dtype), device, quantize=quantize, offload=offload)
        return cls(model, load_encoder(folder, model), sources=read_index(folder).sources)

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
        save_model(
            self.model,
            path,
            tokenizer=self.encoder.tokenizer,
            transforms=transforms_of(self.encoder),
            sources=self.sources,
        )
        write_card(facts_of(path, location=location, stages=stages, reports=reports), path)
        return path


def _find(path: str | Path, *, revision: str | None, local_files_only: bool) -> Path:
    shipped = sorted(index.parent.name for index in WEIGHTS.glob("*/model_index.json"))
    if isinstance(path, str) and path in shipped:
        if revision is not None:
            raise CheckpointError(
                f"{path!r} ships with the package and has no revision {revision!r}; leave the revision out, "
                "or give a hub id"
            )
        return WEIGHTS / path
    if not (Path(path).expanduser().is_dir() or (isinstance(path, str) and split_hub_id(path))):
        raise CheckpointError(
            f"{str(path)!r} is neither a model folder nor a model that ships with the package "
            f"({', '.join(shipped) or 'none'}) nor a hub id (owner/name); check the path, or use one of these"
            " names"
        )
    return resolve_source(path, revision=revision, local_files_only=local_files_only)


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
