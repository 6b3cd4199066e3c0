"""A run of JAM (arXiv:2309.15564): next-token loss over words and picture codes.

Parents, continued pre-training of a fused model (section 3.2) and interleaved instruction tuning (section
3.3) differ in data, in what is a label, and in where the model comes from; they are recipes, not code.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dreamllm.checkpoint.fused import fuse_parents, load_parents
from dreamllm.checkpoint.jam import load_jam, load_jam_encoder, read_jam_index, save_jam
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.checkpoint.self_test import write_self_test
from dreamllm.data.mixture import Mixture
from dreamllm.data.retrieval import build_retriever
from dreamllm.document.document import Document, Text
from dreamllm.document.export import documents_to_html
from dreamllm.generate.answers import argmax_at_labels, exact_answers
from dreamllm.generate.codes import CodeGenerator
from dreamllm.generate.options import GenerationOptions, Mode
from dreamllm.losses.total import Term
from dreamllm.models.jam import JAM
from dreamllm.models.jam_cross import JamCrossForCausalLM, parameter_roles
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.encode_codes import CodeEncodeOptions, CodeSequenceEncoder
from dreamllm.sequence.retrieving import RetrievingEncoder
from dreamllm.train.objectives.configs import JamObjectiveConfig
from dreamllm.train.objectives.document_steps import DocumentSteps
from dreamllm.train.objectives.feature_cache import open_code_cache
from dreamllm.train.objectives.jam_start import new_parent
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.train.objectives.pictures import save_grid
from dreamllm.train.objectives.reconstruction import attribute_mean, read_back
from dreamllm.world.documents import draw_prompt, make_document
from dreamllm.world.language import caption
from dreamllm.world.render import render
from dreamllm.world.scene import Scene
from dreamllm.world.splits import sample_scene

GATE_DOCUMENTS = 96


class JamObjective:
    """Trains a JAM on documents."""

    def __init__(self, config: JamObjectiveConfig, *, steps: int, seed: int) -> None:
        self.module: JAM
        self._sources: Mapping[str, PartSource] = {}
        self._encoder: CodeSequenceEncoder
        if config.parent is not None:
            self.module, self._encoder = new_parent(config.parent)
        elif config.fuse is not None:
            fuse = config.fuse
            fused = fuse_parents(fuse.fusion, load_parents(fuse.text_model, fuse.image_model))
            self.module, self._encoder, self._sources = fused.model, fused.encoder, fused.sources
        else:
            assert config.model is not None  # the config has one of the three
            self.module, self._sources = load_jam(config.model), read_jam_index(config.model).sources
            self._encoder = load_jam_encoder(config.model, self.module)
        options = CodeEncodeOptions(
            max_length=config.row_length,
            learn=config.learn,
            cm3=config.cm3,
            mask_prompt=config.mask_prompt,
        )
        if config.gradient_checkpointing:
            self.module.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.weights: Mapping[str, float] = {"text": config.text_weight, "codes": config.codes_weight} | (
            {"z": config.z_weight} if config.z_weight else {}
        )
        self._config = config
        self._device = torch.device("cpu")
        tokenizer = self.module.image_tokenizer
        self._reader: CodeSequenceEncoder | RetrievingEncoder = replace(
            self._encoder,
            options=options,
            # Its own tokenizer, which stays on the CPU: workers that read documents cannot use a GPU.
            picture_codes=None if tokenizer is None else copy.deepcopy(tokenizer).encode,
            code_cache=open_code_cache(config, self.module, self._encoder),
            on_cache_miss=config.on_cache_miss,
        )
        if config.retrieval is not None:
            self._reader = RetrievingEncoder(
                encoder=self._reader, retriever=build_retriever(config.retrieval)
            )
        mixture = Mixture(config.phases, steps=steps, documents_per_step=config.documents_per_step, seed=seed)
        self.data = DocumentSteps(
            mixture,
            self._reader,
            steps=steps,
            row_length=config.row_length,
            rows_per_micro_batch=config.rows_per_micro_batch,
            seed=seed,
        )
        _freeze(self.module, config)
        self.module.language_model.train()

    @property
    def encoder(self) -> CodeSequenceEncoder:
        """How documents become sequences of this model, without what is random in training."""
        return self._encoder

    def counts(self, micro_batch: Batch) -> Mapping[str, int]:
        """Supervised words and picture codes."""
        num_codes = int((micro_batch.labels >= self.module.config.first_code).sum())
        counts = {"text": micro_batch.num_labels - num_codes, "codes": num_codes}
        return counts | ({"z": micro_batch.num_labels} if self._config.z_weight else {})

    def losses(self, micro_batch: Batch, generator: torch.Generator) -> Mapping[str, Term]:
        """The model's own terms."""
        return self.module(micro_batch.to(self._device), z_loss=self._config.z_weight > 0)

    def document_ids(self, micro_batch: Batch) -> tuple[str, ...]:
        """Names of the packed documents."""
        return micro_batch.document_ids

    def parameter_groups(self) -> list[ParameterGroup]:
        """By tower where there are two; matrices decay, vectors do not."""
        return _parameter_groups(self.module, self._config)

    def tables(self) -> str:
        """Sizes."""
        sizes = {group.name: sum(p.numel() for p in group.parameters) for group in self.parameter_groups()}
        whole = sum(p.numel() for p in self.module.language_model.parameters())
        learned = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)
        return f"{type(self.module.language_model).__name__}: {whole:,} parameters; trained: {learned}"

    @contextmanager
    def _generator(self) -> Iterator[CodeGenerator]:
        """The engine over the model as it is now."""
        self.module.language_model.eval()
        try:
            yield CodeGenerator(self.module, self._encoder)
        finally:
            self.module.language_model.train()

    def sample(self, path: Path, step: int) -> None:
        """Pictures drawn from captions, and documents continued from requests."""
        rng = np.random.default_rng(43)
        scenes = [sample_scene(rng, "test", num_objects=n) for n in (1, 2, 3) for _ in range(8)]
        asked = [make_document(kind, rng, split="test") for kind in ("ask_guide", "ask_story", "ask_album")]
        prompts = [replace(document, parts=document.parts[:1]) for document in asked]
        has_pictures = self.module.image_tokenizer is not None
        with self._generator() as generator:
            if has_pictures:
                drawn = self._draw(generator, scenes)
                truth = np.stack([render(scene) for scene in scenes])
                save_grid([rows[i : i + 8] for i in (0, 8, 16) for rows in (truth, drawn)], path)
            mode: Mode = "interleaved" if has_pictures else "text"
            documents = generator.generate(
                prompts, GenerationOptions(mode=mode, max_new_tokens=160, max_images=3)
            )
        page = documents_to_html(documents, title=f"step {step}")
        (path / "documents.html").write_text(page, encoding="utf-8")

    def _draw(self, generator: CodeGenerator, scenes: Sequence[Scene]) -> np.ndarray:
        """Pictures (n, 64, 64, 3) uint8 of the likeliest codes after full captions."""
        is_request = self._config.gate_prompt == "request"
        texts = [caption(scene, "full") for scene in scenes]
        prompts = [
            Document(
                parts=(Text(text=draw_prompt(text), role="user") if is_request else Text(text=text),),
                id=str(index),
            )
            for index, text in enumerate(texts)
        ]
        options = GenerationOptions(
            mode="image", guidance_scale=1.0, image_temperature=0.0, max_batch_size=32
        )
        documents = generator.generate(prompts, options)
        size = render(scenes[0]).shape[:2]
        return np.stack([np.asarray(d.images[-1].load().resize(size)) for d in documents])

    def gate(self) -> GateResult:
        """Answers to questions about captions, and what the judge reads off drawn pictures."""
        config, metrics = self._config, {}
        if config.gate_text:
            metrics["text"] = self._answers()
        if config.gate_draw:
            rng = np.random.default_rng(47)
            counts = config.gate_num_objects
            scenes = [
                sample_scene(rng, "test", num_objects=counts[i % len(counts)]) for i in range(GATE_DOCUMENTS)
            ]
            with self._generator() as generator:
                found = read_back(scenes, self._draw(generator, scenes))
            metrics["draw"] = attribute_mean(found)
            metrics["draw_all_correct"] = found["scene"]
        bars = {"text": config.gate_text, "draw": config.gate_draw}
        said = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        asked = ", ".join(f"{name} {bar}" for name, bar in bars.items() if bar)
        return GateResult(
            passed=all(metrics[name] >= bar for name, bar in bars.items() if bar),
            metrics=metrics,
            message=f"measured {said or 'nothing'}; the bars are {asked or 'none'}",
        )

    def _answers(self) -> float:
        """Exact answers to questions about test captions, mean over kinds."""
        rng = np.random.default_rng(29)
        counts = self._config.gate_num_objects
        documents = [
            make_document("text_vqa", rng, split="test", num_objects=counts) for _ in range(GATE_DOCUMENTS)
        ]
        options = replace(self._encoder.options, learn="marked")

        def predict(batch: Batch) -> Tensor:
            moved = batch.to(self._device)
            return argmax_at_labels(self.module.hidden_states(moved), moved, self.module.logits)

        self.module.language_model.eval()
        right = exact_answers(documents, replace(self._encoder, options=options), predict)
        self.module.language_model.train()
        return sum(sum(answers) / len(answers) for answers in right.values()) / len(right)

    def export(self, path: Path) -> None:
        """Write the model folder with its self-test."""
        save_jam(
            self.module,
            path,
            tokenizer=self._encoder.tokenizer,
            target_transform=self._encoder.target_transform,
            sources=self._sources,
        )
        write_self_test(path, self.module, self._encoder)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self._device = device
        self.module.to(device)

    def take_part(self, rank: int, *, num_ranks: int) -> None:
        """Read every `num_ranks`-th document of a step."""
        self.data = self.data.part(rank, num_ranks=num_ranks)

    def nothing(self) -> Batch:
        """A batch without labels and pictures."""
        return self.data.nothing()

    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """What reads and draws pictures."""
        tokenizer = self.module.image_tokenizer
        return () if tokenizer is None else (tokenizer,)


def _freeze(model: JAM, config: JamObjectiveConfig) -> None:
    """The parameters of a tower with a learning rate of 0 stop learning."""
    scales = _scales(config)
    for role, parameters in _roles(model.language_model).items():
        if scales.get(role) == 0:
            for parameter in parameters:
                parameter.requires_grad_(False)


def _parameter_groups(model: JAM, config: JamObjectiveConfig) -> list[ParameterGroup]:
    """Every parameter of the language model that learns, in a group."""
    scales = _scales(config)
    groups: list[ParameterGroup] = []
    for role, parameters in _roles(model.language_model).items():
        scale = scales.get(role, 1.0)
        if scale == 0:
            continue
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups.append(
            ParameterGroup(name=f"{role}_matrices", parameters=matrices, lr_scale=scale, weight_decay=True)
        )
        groups.append(ParameterGroup(name=f"{role}_vectors", parameters=vectors, lr_scale=scale))
    return groups


def _scales(config: JamObjectiveConfig) -> dict[str, float]:
    return {"text_tower": config.text_tower_lr_scale, "image_tower": config.image_tower_lr_scale}


def _roles(language_model: nn.Module) -> dict[str, list[nn.Parameter]]:
    if not isinstance(language_model, JamCrossForCausalLM):
        return {"language_model": list(language_model.parameters())}
    parameters = dict(language_model.named_parameters())
    roles = parameter_roles(language_model)
    return {role: [parameters[name] for name in names] for role, names in roles.items()}
