"""A stage of DreamLLM (arXiv:2309.11499, section 3.3): next-token and denoising loss on documents.

Stage I trains the connectors, stages II (I-GPT) and III (instruction) the language model too; which is which
is data (`Trainable`, sources), not code. The model comes from the stage before, or is composed of stock
parts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dreamllm.checkpoint.compose import compose
from dreamllm.checkpoint.encoder import encoder_of, load_encoder, transforms_of
from dreamllm.checkpoint.pretrained import load_model, read_index, save_model
from dreamllm.checkpoint.self_test import write_self_test
from dreamllm.data.mixture import Mixture
from dreamllm.document.document import Document, Text
from dreamllm.document.export import documents_to_html
from dreamllm.generate.answers import argmax_at_labels, exact_answers
from dreamllm.generate.interleaved import InterleavedGenerator
from dreamllm.generate.options import GenerationOptions
from dreamllm.losses.total import Term
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.freezing import GroupRow, apply_trainable, render_table
from dreamllm.models.language_model import context_length
from dreamllm.models.lora import merged
from dreamllm.models.quantization import quantize_linears
from dreamllm.runtime.seeding import derive_seed, make_generator
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.objectives.document_steps import DocumentSteps
from dreamllm.train.objectives.feature_cache import open_caches
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.train.objectives.pictures import save_grid
from dreamllm.train.objectives.whitened_start import whiten_connectors
from dreamllm.world.documents import draw_prompt, make_document
from dreamllm.world.judge import Judge
from dreamllm.world.language import caption
from dreamllm.world.render import render
from dreamllm.world.splits import sample_scene

CONNECTORS = ("visual_projector", "dream_queries", "condition_projector", "pooled_projector")
WHITENING_PICTURES = 256
GATE_DOCUMENTS = 64


class DreamLLMObjective:
    """Trains a DreamLLM on documents."""

    def __init__(self, config: DreamLLMObjectiveConfig, *, steps: int, seed: int) -> None:
        if config.parts is not None:
            composed = compose(config.parts, dtype=torch.float32)
            self.module, self._sources = composed.model, composed.sources
            options = _encode_options(config, self.module)
            self._encoder = encoder_of(self.module, composed.tokenizer, composed.transforms, options)
        else:
            assert config.model is not None  # the config has one of the two
            self.module, self._sources = load_model(config.model), read_index(config.model).sources
            self._encoder = load_encoder(config.model, self.module, _encode_options(config, self.module))
        if config.quantize is not None:
            quantize_linears(self.module.language_model.get_decoder(), config.quantize)
        if config.gradient_checkpointing:
            self.module.enable_gradient_checkpointing()
        self.weights: Mapping[str, float] = {
            "next_token": config.next_token_weight,
            "denoising": config.denoising_weight,
        }
        self._config = config
        self._device = torch.device("cpu")
        mixture = Mixture(config.phases, steps=steps, documents_per_step=config.documents_per_step, seed=seed)
        self.data = DocumentSteps(
            mixture,
            replace(self._encoder, caches=open_caches(config, self.module, self._encoder)),
            steps=steps,
            row_length=config.row_length,
            rows_per_micro_batch=config.rows_per_micro_batch,
            seed=seed,
            packing=config.packing,
        )
        if config.whiten:
            generator = make_generator(derive_seed(seed, "whitening"))
            whiten_connectors(self.module, self._whitening_batches(), generator=generator)
        self._rows: tuple[GroupRow, ...] = apply_trainable(
            self.module, config.train, special_token_ids=_bracket_ids(self._encoder)
        )
        self.module.train()

    def _whitening_batches(self) -> Iterator[Batch]:
        """The first batches of the run, until they hold enough pictures."""
        pictures = 0
        for step in count():
            for batch in self.data[step]:
                yield batch
                pictures += min(batch.image_slots.shape[0], batch.dream_slots.shape[0])
            if pictures >= WHITENING_PICTURES:
                return

    @property
    def encoder(self) -> SequenceEncoder:
        """How documents become sequences in this run."""
        return self._encoder

    def counts(self, micro_batch: Batch) -> Mapping[str, int]:
        """Supervised tokens and pictures."""
        return {"next_token": micro_batch.num_labels, "denoising": micro_batch.num_targets}

    def losses(self, micro_batch: Batch, generator: torch.Generator) -> Mapping[str, Term]:
        """Both terms; the model's own."""
        return self.module(
            micro_batch.to(self._device), generator, noises_per_image=self._config.noises_per_image
        )

    def document_ids(self, micro_batch: Batch) -> tuple[str, ...]:
        """Names of the packed documents."""
        return micro_batch.document_ids

    def parameter_groups(self) -> list[ParameterGroup]:
        """Connectors at their own rate; of language model and image decoder, adapters too, matrices decay."""
        groups = [
            ParameterGroup(
                name=name,
                parameters=_trainable(getattr(self.module, name)),
                lr_scale=self._config.connector_lr_scale,
            )
            for name in (*CONNECTORS, "special_token_rows")
            if getattr(self.module, name) is not None
        ]
        for name in ("language_model", "image_decoder"):
            learned = _trainable(getattr(self.module, name))
            matrices, vectors = [p for p in learned if p.ndim > 1], [p for p in learned if p.ndim <= 1]
            groups.append(ParameterGroup(name=f"{name}_matrices", parameters=matrices, weight_decay=True))
            groups.append(ParameterGroup(name=f"{name}_vectors", parameters=vectors))
        return groups

    def tables(self) -> str:
        """The freezing table."""
        return render_table(self._rows)

    @contextmanager
    def _generator(self) -> Iterator[InterleavedGenerator]:
        """The engine over the model as it is now, without dropout."""
        options = replace(self._encoder.options, condition_dropout=0.0)
        self.module.eval()
        try:
            yield InterleavedGenerator(self.module, replace(self._encoder, options=options))
        finally:
            self.module.train()

    def sample(self, path: Path, step: int) -> None:
        """Pictures drawn from captions, and illustrated documents continued from their first words."""
        rng = np.random.default_rng(43)
        scenes = [sample_scene(rng, "test", num_objects=n) for n in (1, 2, 3) for _ in range(8)]
        prompts = [_opening(make_document(kind, rng, split="test")) for kind in ("story", "guide", "album")]
        with self._generator() as generator:
            drawn = self._draw(generator, [caption(scene, "full") for scene in scenes])
            documents = generator.generate(prompts, GenerationOptions(max_new_tokens=120, max_images=3))
        truth = np.stack([render(scene) for scene in scenes])
        save_grid([rows[i : i + 8] for i in (0, 8, 16) for rows in (truth, drawn)], path)
        page = documents_to_html(documents, title=f"step {step}")
        (path / "documents.html").write_text(page, encoding="utf-8")

    def _draw(self, generator: InterleavedGenerator, texts: list[str]) -> np.ndarray:
        """Pictures (n, H, W, 3) uint8 that the model draws when a user asks for a caption."""
        prompts = [
            Document(parts=(Text(text=draw_prompt(text), role="user"),), id=str(index))
            for index, text in enumerate(texts)
        ]
        documents = generator.generate(prompts, GenerationOptions(mode="image"))
        return np.stack([np.asarray(document.images[-1].load()) for document in documents])

    def gate(self) -> GateResult:
        """Answers to questions about test pictures, and what the judge reads off drawn ones."""
        rng = np.random.default_rng(47)
        documents = [make_document("vqa", rng, split="test") for _ in range(GATE_DOCUMENTS)]
        scenes = [sample_scene(rng, "test", num_objects=1 + i % 3) for i in range(GATE_DOCUMENTS)]

        def predict(batch: Batch) -> Tensor:
            moved = batch.to(self._device)
            return argmax_at_labels(self.module.hidden_states(moved), moved, self.module.logits)

        with self._generator() as generator:
            answers = exact_answers(documents, generator.encoder, predict)
            drawn = self._draw(generator, [caption(scene, "full") for scene in scenes])
        metrics = {f"vqa_{kind}": sum(right) / len(right) for kind, right in sorted(answers.items())}
        vqa = metrics["vqa"] = sum(metrics.values()) / len(metrics)
        cells = right = whole = 0
        for scene, reading in zip(scenes, Judge().read_many(list(drawn)), strict=True):
            whole += reading.scene == scene
            found = {cell.place: cell for cell in reading.cells}
            for thing in scene.objects:
                cells += 3
                cell = found[thing.place]
                right += (cell.shape == thing.shape) + (cell.color == thing.color) + (cell.size == thing.size)
        metrics |= {"draw_attributes": right / cells, "draw_all_correct": whole / len(scenes)}
        passed = vqa >= self._config.gate_vqa and metrics["draw_attributes"] >= self._config.gate_draw
        message = (
            f"questions about pictures: {vqa:.3f} exact (bar {self._config.gate_vqa}); drawn pictures: "
            f"{metrics['draw_attributes']:.3f} of attributes (bar {self._config.gate_draw}), "
            f"{metrics['draw_all_correct']:.3f} wholly right"
        )
        return GateResult(passed=passed, metrics=metrics, message=message)

    def export(self, path: Path) -> None:
        """Write the model folder with its self-test, of stock layers: adapters are merged in a copy."""
        model = merged(self.module)
        save_model(
            model,
            path,
            tokenizer=self._encoder.tokenizer,
            transforms=transforms_of(self._encoder),
            sources=self._sources,
        )
        write_self_test(path, model, self._encoder)

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
        decoder = self.module.image_decoder
        return (self.module.vision_encoder, decoder.denoiser, decoder.vae)


def _encode_options(config: DreamLLMObjectiveConfig, model: DreamLLM) -> EncodeOptions:
    """Positions start again in every document, so rows may be longer than the context; documents may not."""
    return EncodeOptions(
        max_length=min(config.row_length, context_length(model.language_model) or config.row_length),
        condition_dropout=config.condition_dropout,
        learn_dream_start_in_conversations=config.learn_dream_start_in_conversations,
        mode=config.mode,
    )


def _trainable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _bracket_ids(encoder: SequenceEncoder) -> list[int]:
    special = encoder.tokenizer.special
    return [special.im_start, special.im_end, special.dream_start, special.dream_end]


def _opening(document: Document) -> Document:
    """The first paragraph of a plain document: a prompt to go on from."""
    return replace(document, parts=document.parts[:1])
