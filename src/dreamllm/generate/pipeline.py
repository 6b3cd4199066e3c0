"""The handles a user holds: one model, its encoder and its generator.

    model = DreamLLM.from_pretrained("tiny")
    document = model.generate("Tell me a story with pictures.")
    document.save("story.html")

`JAM` is the same for models of the other family, and `load` gives whichever a folder holds. Inside the
package `DreamLLM` and `JAM` are also names of `nn.Module`s; here these are `DreamLLMModule` and `jam.JAM`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from dreamllm.checkpoint.encoder import load_encoder, transforms_of
from dreamllm.checkpoint.hub import resolve_source, split_hub_id
from dreamllm.checkpoint.jam import load_jam, load_jam_encoder, read_jam_index, save_jam
from dreamllm.checkpoint.model_folder import PartSource, family_of
from dreamllm.checkpoint.pretrained import load_model, read_index, save_model
from dreamllm.data.retrieval import build_retriever
from dreamllm.data.retrieval_config import RetrievalConfig
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.generate.codes import CodeGenerator
from dreamllm.generate.handle import Handle
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.memory import Offload, check_fit, fit
from dreamllm.models import jam
from dreamllm.models.dreamllm import DreamLLM as DreamLLMModule
from dreamllm.models.quantization import Quantization, quantize_linears
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.encode_codes import CodeSequenceEncoder
from dreamllm.sequence.retrieving import RetrievingEncoder

WEIGHTS: Final = Path(__file__).parents[1] / "weights"
"""Holds the models that ship with the package, a folder each."""


class DreamLLM(Handle):
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
        self.generator: InterleavedGenerator
        super().__init__(InterleavedGenerator(model, encoder), sources)

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
        device = _device(device)
        check_fit(device, quantize=quantize, offload=offload)
        folder = _find(path, revision=revision, local_files_only=local_files_only)
        model = fit(load_model(folder, dtype=dtype), device, quantize=quantize, offload=offload)
        return cls(model, load_encoder(folder, model), sources=read_index(folder).sources)

    def _save_parts(self, path: Path) -> None:
        save_model(
            self.model,
            path,
            tokenizer=self.encoder.tokenizer,
            transforms=transforms_of(self.encoder),
            sources=self.sources,
        )


class JAM(Handle):
    """A model that reads and writes documents of words and picture codes, ready to use."""

    def __init__(
        self,
        model: jam.JAM,
        encoder: CodeSequenceEncoder,
        *,
        sources: Mapping[str, PartSource] | None = None,
    ) -> None:
        """The model is put into evaluation mode; its weights must not change while this handle is used.

        `sources` tells where the parts came from, by the name of their folder; it is saved with the model.
        """
        self.model = model.eval()
        self.encoder = encoder
        self.generator: CodeGenerator
        super().__init__(CodeGenerator(model, encoder), sources)

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
    ) -> "JAM":
        """Load a model by its name, its folder or its hub id, with the arguments of
        `DreamLLM.from_pretrained`; `quantize` takes the blocks of the language model.

        Raises:
            CheckpointError: there is none of these, the hub cannot be reached, or the folder is damaged.
            ConfigError: an unknown choice.
            MissingExtraError: the package that quantises is not installed.
        """
        device = _device(device)
        check_fit(device, quantize=quantize)
        folder = _find(path, revision=revision, local_files_only=local_files_only)
        model = load_jam(folder, dtype=dtype)
        if quantize is not None:
            quantize_linears(model.language_model.get_decoder(), quantize)
        model.to(device)
        return cls(model, load_jam_encoder(folder, model), sources=read_jam_index(folder).sources)

    def with_retrieval(self, retrieval: RetrievalConfig, *, room: int | None = None) -> "JAM":
        """The same model, which reads documents like a prompt before it goes on (CM3Leon, arXiv:2309.02591).

        Retrieved documents leave `room` positions free for what will be written, half of the model's context
        if none is said. What is saved is the model without them.

        Raises:
            ConfigError: the index was made with another encoder.
            DocumentError: documents or the index cannot be read, or cannot be laid before others.
            MissingExtraError: faiss is not installed.
        """
        room = self.encoder.options.max_length // 2 if room is None else room
        other = JAM(self.model, self.encoder, sources=self.sources)
        reader = RetrievingEncoder(encoder=self.encoder, retriever=build_retriever(retrieval), room=room)
        other.generator = CodeGenerator(self.model, reader)
        return other

    def _save_parts(self, path: Path) -> None:
        save_jam(
            self.model,
            path,
            tokenizer=self.encoder.tokenizer,
            target_transform=self.encoder.target_transform,
            sources=self.sources,
        )


def load(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    local_files_only: bool = False,
    quantize: Quantization | None = None,
    offload: Offload | None = None,
) -> DreamLLM | JAM:
    """Load a model of whichever family it is, by the arguments of `DreamLLM.from_pretrained`.

    Raises:
        CheckpointError: there is no such model, the hub cannot be reached, or the folder is damaged.
        ConfigError: offload of a JAM or to a CPU, or an unknown choice.
        MissingExtraError: the package that quantises is not installed.
    """
    check_fit(_device(device), quantize=quantize, offload=offload)
    folder = _find(path, revision=revision, local_files_only=local_files_only)
    if family_of(folder) == "DreamLLM":
        return DreamLLM.from_pretrained(
            folder, device=device, dtype=dtype, quantize=quantize, offload=offload
        )
    if offload is not None:
        raise ConfigError(
            f"offload={offload!r} lets the parts of a DreamLLM take turns on a GPU, but {path} is a JAM, "
            "which is one language model; leave it out, and use quantize='int8' to save memory"
        )
    return JAM.from_pretrained(folder, device=device, dtype=dtype, quantize=quantize)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


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
