"""Fills the caches of a recipe: every picture of its documents, once, as its own model reads and draws it.

The documents are those that the run will see, step by step. What is in a cache is neither decoded nor
computed again, so a stopped command goes on, and several may write the same folder, each with its share of
the steps. `cache_with_ray.py` hands out steps to the workers of a Ray cluster.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image as PILImage
from torch.utils.data import DataLoader, Dataset

from dreamllm.data.feature_cache import CacheDtype, FeatureCache
from dreamllm.data.feature_cache_writer import SHARD_BYTES, FeatureCacheWriter
from dreamllm.data.mixture import Mixture
from dreamllm.data.picture_digest import picture_digest
from dreamllm.document.document import Document, Image
from dreamllm.document.jsonl import FaultError
from dreamllm.errors import ConfigError, DocumentError, DreamLLMError, ImageError, LayoutError
from dreamllm.models.trainable import Trainable
from dreamllm.runtime.seeding import derive_seed
from dreamllm.sequence.encode import SequenceEncoder
from dreamllm.sequence.encode_codes import CodeSequenceEncoder
from dreamllm.train.interrupt import leave_sigint_to_parent
from dreamllm.train.loop import pick_device
from dreamllm.train.objectives import ObjectiveConfig
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig, JamObjectiveConfig
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.objectives.feature_cache import (
    PictureFunction,
    code_function,
    latent_function,
    vision_function,
)
from dreamllm.train.objectives.jam import JamObjective
from dreamllm.train.run_config import RunConfig

VISION, LATENTS, CODES = "vision", "latents", "codes"
"""The caches of a DreamLLM and the one of a JAM, and the names of their folders."""
CACHES_OF: Final[Mapping[str, tuple[str, ...]]] = {"dreamllm": (VISION, LATENTS), "jam": (CODES,)}
"""By the kind of objective."""
_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """How caches are filled."""

    caches: tuple[str, ...] = ()
    """Which ones; none named: all that the recipe's model has."""
    dtype: CacheDtype = "float16"
    """Of features and latents; codes are whole numbers."""
    batch_size: int = 32
    """Pictures computed at once."""
    num_workers: int = 0
    """Processes that read and decode; none of them changes a result."""
    device: str = "auto"
    """As in a recipe."""
    shard_bytes: int = SHARD_BYTES
    """Records of a shard."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0 or self.shard_bytes < 1:
            raise ConfigError(
                f"batch_size={self.batch_size}, num_workers={self.num_workers}, "
                f"shard_bytes={self.shard_bytes} cannot be meant; expected at least 1, 0 and 1; correct them"
            )


@dataclass(slots=True, kw_only=True)
class Filled:
    """What has been done so far."""

    documents: int = 0
    pictures: int = 0
    """Looked at, each time that a document shows them."""
    written: Counter[str] = field(default_factory=Counter)
    """New entries by cache."""
    num_bytes: int = 0
    """Of their records."""
    faults: Counter[str] = field(default_factory=Counter)
    """Documents and pictures that cannot be read, by kind; they are left out."""
    examples: list[str] = field(default_factory=list)
    """The first messages about them."""

    def add_fault(self, error: DreamLLMError) -> None:
        """Count what cannot be read."""
        self.faults[error.kind if isinstance(error, FaultError) else type(error).__name__] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(str(error))

    def add(self, other: "Filled") -> None:
        """Count what another has done."""
        self.documents += other.documents
        self.pictures += other.pictures
        self.written += other.written
        self.num_bytes += other.num_bytes
        self.faults += other.faults
        self.examples = (self.examples + other.examples)[:_EXAMPLES]


class CacheFiller:
    """Fills the caches of one recipe. Holds the model; every call of `fill` does some steps of the run."""

    def __init__(self, config: RunConfig, run_dir: Path, *, out: Path, options: CacheOptions) -> None:
        """`run_dir` is the folder of the run, which paths in the recipe are relative to. Each cache goes to
        the folder of its name in `out`.

        Raises:
            ConfigError: the recipe has no pictures to cache, or a folder holds another cache.
            CheckpointError: the model of the recipe cannot be loaded.
        """
        names = chosen_caches(config, options)
        chosen = config.objective
        objective = build_objective(replace(config, objective=_bare(chosen)), run_dir)
        assert isinstance(chosen, DreamLLMObjectiveConfig | JamObjectiveConfig)
        assert isinstance(objective, DreamLLMObjective | JamObjective)
        self._encoder = objective.encoder
        self._mixture = Mixture(
            chosen.phases,
            steps=config.steps,
            documents_per_step=chosen.documents_per_step,
            seed=derive_seed(config.seed, "data"),
        )
        self._out, self._options = out, options
        self.functions = {name: _function(name, objective, options) for name in names}
        """How the records of each cache are computed."""

    def fill(
        self, steps: Sequence[int], on_step: Callable[[Filled], None] | None = None, *, index: bool = True
    ) -> Filled:
        """Compute and write what the caches lack of some steps of the run, and with `index` their index.

        `on_step` is called after each step with what has been done. After Ctrl-C the entries that were
        computed are written.

        Raises:
            DiskError: a shard cannot be written.
        """
        done = Filled()
        with ExitStack() as stack:
            lanes = {
                name: _Lane(
                    function, stack.enter_context(self._writer(name, index)), self._options.batch_size
                )
                for name, function in self.functions.items()
            }
            views = _Views(
                self._mixture,
                self._encoder,
                steps=steps,
                transforms={name: function.view for name, function in self.functions.items()},
                caches={name: FeatureCache(self._out / name) for name in lanes},
            )
            for seen, pictures in _load(views, self._options.num_workers):
                done.add(seen)
                for name, lane in lanes.items():
                    lane.take(pictures[name])
                self._count(done, lanes)
                if on_step is not None:
                    on_step(done)
            for lane in lanes.values():
                lane.compute(1)
            self._count(done, lanes)
        return done

    def _writer(self, name: str, index: bool) -> FeatureCacheWriter:
        spec = self.functions[name].spec
        return FeatureCacheWriter(self._out / name, spec, shard_bytes=self._options.shard_bytes, index=index)

    def _count(self, done: Filled, lanes: Mapping[str, "_Lane"]) -> None:
        done.written = Counter({name: lane.num_computed for name, lane in lanes.items()})
        done.num_bytes = sum(
            lane.num_computed * self.functions[name].spec.record_bytes for name, lane in lanes.items()
        )


def chosen_caches(config: RunConfig, options: CacheOptions) -> tuple[str, ...]:
    """The caches to fill: of those that the recipe's model has, those asked for.

    Raises:
        ConfigError: it has none of them.
    """
    kind = config.objective.kind
    known = CACHES_OF.get(kind, ())
    if not known:
        raise ConfigError(
            f"the objective of {config.name!r} is {kind!r}, which has nothing to cache; expected "
            f"{' or '.join(CACHES_OF)}, whose encoders are frozen; choose a recipe of that kind"
        )
    names = options.caches or known
    if not set(names) <= set(known):
        raise ConfigError(
            f"caches is {', '.join(names)}; the objective {kind!r} has {', '.join(known)}; choose "
            "among these, or leave it out"
        )
    return names


def _bare(chosen: ObjectiveConfig) -> ObjectiveConfig:
    """The objective without what a run adds to its model, which changes no frozen encoder, and without what
    it reads beside the documents."""
    if isinstance(chosen, DreamLLMObjectiveConfig):
        return replace(
            chosen, train=Trainable(), whiten=False, quantize=None, vision_cache=None, latent_cache=None
        )
    return (
        replace(chosen, code_cache=None, retrieval=None) if isinstance(chosen, JamObjectiveConfig) else chosen
    )


class _Lane:
    """Views on their way into one cache."""

    def __init__(self, function: PictureFunction, writer: FeatureCacheWriter, batch_size: int) -> None:
        self._function, self._writer, self._batch_size = function, writer, batch_size
        self._waiting: dict[bytes, np.ndarray] = {}
        self.num_computed = 0

    def take(self, views: Iterable[tuple[bytes, np.ndarray]]) -> None:
        """Views of pictures; those that another step has brought are left out."""
        self._waiting |= {digest: pixels for digest, pixels in views if digest not in self._writer}
        self.compute(self._batch_size)

    def compute(self, at_least: int) -> None:
        """Compute as long as so many wait."""
        while len(self._waiting) >= at_least:
            digests = list(self._waiting)[: self._batch_size]
            pixels = np.stack([self._waiting.pop(digest) for digest in digests])
            for digest, record in zip(digests, self._function.records(pixels), strict=True):
                self._writer.add(digest, record)
            self.num_computed += len(digests)


_View = tuple[bytes, np.ndarray]
_Step = tuple[Filled, dict[str, list[_View]]]


class _Views(Dataset[_Step]):
    """Item `i`: what a model is to be shown of the i-th step, by cache and by digest. Travels to workers."""

    def __init__(
        self,
        mixture: Mixture,
        encoder: SequenceEncoder | CodeSequenceEncoder,
        *,
        steps: Sequence[int],
        transforms: Mapping[str, Callable[[PILImage.Image], np.ndarray]],
        caches: Mapping[str, FeatureCache],
    ) -> None:
        self._mixture, self._encoder, self._steps = mixture, encoder, steps
        self._transforms, self._caches = dict(transforms), dict(caches)
        self._handed_out: dict[str, set[bytes]] = {name: set() for name in caches}

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> _Step:
        done, views = Filled(), {name: list[_View]() for name in self._caches}
        for position in range(self._mixture.documents_per_step):
            source, place = self._mixture.find(self._steps[index], position)
            try:
                document = source[place]
                wanted = _wanted(self._encoder, document)
            except (DocumentError, LayoutError) as error:
                done.add_fault(error)
                continue
            done.documents += 1
            self._look(wanted, views, done)
        return done, views

    def _look(
        self, wanted: Sequence[tuple[Image, set[str]]], views: Mapping[str, list[_View]], done: Filled
    ) -> None:
        """Decode the pictures that a cache lacks, each once."""
        names: dict[int, tuple[Image, set[str]]] = {}
        for image, lanes in wanted:
            names.setdefault(id(image), (image, set()))[1].update(lanes & views.keys())
        for image, lanes in names.values():
            done.pictures += 1
            try:
                digest = picture_digest(image)
                missing = [
                    name
                    for name in lanes
                    if digest not in self._handed_out[name] and digest not in self._caches[name]
                ]
                picture = image.load() if missing else None
            except ImageError as error:
                done.add_fault(error)
                continue
            if picture is not None:
                for name in missing:
                    views[name].append((digest, self._transforms[name](picture)))
                    self._handed_out[name].add(digest)


def _wanted(
    encoder: SequenceEncoder | CodeSequenceEncoder, document: Document
) -> list[tuple[Image, set[str]]]:
    """The pictures that training on a document asks for, with the caches they belong to."""
    if isinstance(encoder, CodeSequenceEncoder):
        return [(image, {CODES}) for image in encoder.pictures(document)]
    read, drawn = encoder.pictures(document)
    return [(image, {VISION}) for image in read] + [(image, {LATENTS}) for image in drawn]


def _function(
    name: str, objective: DreamLLMObjective | JamObjective, options: CacheOptions
) -> PictureFunction:
    """How the records of a cache are computed; what computes them goes to the device, the rest stays."""
    device, transform = pick_device(options.device), objective.encoder.target_transform
    if isinstance(objective, JamObjective):
        if objective.module.image_tokenizer is None:
            raise ConfigError(
                "the model has no image tokenizer, as a parent that only writes; expected one whose codes "
                "can be cached; this run needs no cache"
            )
        return code_function(objective.module.image_tokenizer.to(device), transform)
    model, encoder = objective.module, objective.encoder
    if name == VISION:
        model.vision_encoder.to(device)
        return vision_function(model.vision_encoder, encoder.vision_transform, dtype=options.dtype)
    model.image_decoder.vae.to(device)
    return latent_function(model.image_decoder, transform, dtype=options.dtype)


def _load(views: _Views, num_workers: int) -> Iterable[_Step]:
    return DataLoader(
        views,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=leave_sigint_to_parent,
    )


def _as_it_is(item: Any) -> Any:
    return item
