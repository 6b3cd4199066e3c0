"""The tiny base language model: a Llama over the world's text, and its own byte-level tokenizer.

It learns next tokens on packed text documents. What later stages need of it is a circuit that looks things up
in its context ("what color is the shape at the top left?" after a caption), so that is what the gate
measures: a frozen language model without it makes stage I useless.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from dreamllm.data.mixture import Mixture
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Text
from dreamllm.generate.answers import argmax_at_labels, exact_answers
from dreamllm.losses.next_token import next_token_losses
from dreamllm.losses.total import Term
from dreamllm.models.language_model import run_decoder
from dreamllm.models.packed_attention import attention_of, use_packed_attention
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.chat import PLAIN_CHAT
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.layout import SlotSizes
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer
from dreamllm.train.objectives.configs import LanguageModelObjectiveConfig
from dreamllm.train.objectives.document_steps import DocumentSteps
from dreamllm.train.objectives.objective import GateResult, ParameterGroup
from dreamllm.world.documents import DOCUMENT_KINDS, make_document

TOKENIZER_DOCUMENTS = 1500
GATE_DOCUMENTS = 120


def world_texts(num_documents: int) -> Iterator[str]:
    """Text of every kind of document about scenes, for a tokenizer to learn from."""
    rng = np.random.default_rng(5)
    for index in range(num_documents):
        document = make_document(DOCUMENT_KINDS[index % len(DOCUMENT_KINDS)], rng)
        for part in document:
            if isinstance(part, Text):
                # as a chat template spells it: after a space, and after its role
                yield f"{'USER' if part.role == 'user' else ' ASSISTANT'}: {part.text}"
                yield part.text


class LanguageModelObjective:
    """Trains a LlamaForCausalLM on text documents of the world."""

    weights: Mapping[str, float] = {"next_token": 1.0}

    def __init__(self, config: LanguageModelObjectiveConfig, *, steps: int, seed: int) -> None:
        self.tokenizer: Tokenizer = train_tokenizer(world_texts(TOKENIZER_DOCUMENTS), config.vocab_size)
        self.module: LlamaForCausalLM = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.tokenizer.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=config.max_length,
                initializer_range=config.initializer_range,
                bos_token_id=self.tokenizer.bos_id,
                eos_token_id=self.tokenizer.eos_id,
                pad_token_id=self.tokenizer.pad_id,
                tie_word_embeddings=False,
                use_cache=False,
            )
        )
        use_packed_attention(self.module)
        self.module.train()
        self._config = config
        self._device = torch.device("cpu")
        self._encoder = SequenceEncoder(
            tokenizer=self.tokenizer,
            sizes=SlotSizes(num_visual_tokens=1, num_dream_queries=1),
            chat=PLAIN_CHAT,
            vision_transform=VisionTransform(image_px=8, mean=(0.5,) * 3, std=(0.5,) * 3),
            target_transform=TargetTransform(image_px=8),
            options=EncodeOptions(max_length=config.row_length),
        )
        mixture = Mixture(config.phases, steps=steps, documents_per_step=config.documents_per_step, seed=seed)
        self.data = DocumentSteps(
            mixture,
            self._encoder,
            steps=steps,
            row_length=config.row_length,
            rows_per_micro_batch=config.rows_per_micro_batch,
            seed=seed,
        )

    def counts(self, micro_batch: Batch) -> Mapping[str, int]:
        """Supervised tokens."""
        return {"next_token": micro_batch.num_labels}

    def losses(self, micro_batch: Batch, generator: torch.Generator) -> Mapping[str, Term]:
        """Cross-entropy at the labels."""
        batch = micro_batch.to(self._device)
        states = self._hidden(batch).flatten(0, 1).index_select(0, batch.label_positions)
        losses = next_token_losses(states, self.module.lm_head, batch.labels)
        documents = batch.label_documents
        return {"next_token": Term.of_items(losses, documents, num_documents=batch.num_documents)}

    def _hidden(self, batch: Batch) -> Tensor:
        embeds = self.module.get_input_embeddings()(batch.input_ids)
        return run_decoder(self.module, embeds, attention_of(self.module, batch), batch.position_ids)

    def document_ids(self, micro_batch: Batch) -> tuple[str, ...]:
        """Names of the packed documents."""
        return micro_batch.document_ids

    def parameter_groups(self) -> list[ParameterGroup]:
        """Matrices decay, vectors do not."""
        parameters = list(self.module.parameters())
        return [
            ParameterGroup(
                name="matrices", parameters=[p for p in parameters if p.ndim > 1], weight_decay=True
            ),
            ParameterGroup(name="vectors", parameters=[p for p in parameters if p.ndim <= 1]),
        ]

    def tables(self) -> str:
        """Sizes."""
        count = sum(p.numel() for p in self.module.parameters())
        return f"language model: {count:,} parameters, all trained; {self.tokenizer.vocab_size} tokens"

    def sample(self, path: Path, step: int) -> None:
        """Three greedy continuations."""
        lines = []
        for prompt in ("A small red circle", "How to draw a green cross and", "The picture has a white"):
            ids = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
            output = self.module.generate(
                torch.tensor([ids], device=self._device), max_new_tokens=40, do_sample=False, use_cache=True
            )
            lines.append(self.tokenizer.decode(output[0].tolist()))
        (path / "text.txt").write_text("\n".join(lines) + "\n")

    def gate(self) -> GateResult:
        """Exact answers to questions about test captions, in the context alone."""
        rng = np.random.default_rng(29)
        documents = [
            make_document("text_vqa", rng, split="test", num_objects=self._config.gate_num_objects)
            for _ in range(GATE_DOCUMENTS)
        ]

        def predict(batch: Batch) -> Tensor:
            moved = batch.to(self._device)
            return argmax_at_labels(self._hidden(moved), moved, self.module.lm_head)

        right = exact_answers(documents, self._encoder, predict)
        metrics = {kind: sum(answers) / len(answers) for kind, answers in sorted(right.items())}
        metrics["mean"] = sum(metrics.values()) / len(metrics)
        message = (
            f"{metrics['mean']:.3f} of questions about a caption are answered exactly (mean over kinds); "
            f"the bar is {self._config.gate_accuracy}"
        )
        return GateResult(
            passed=metrics["mean"] >= self._config.gate_accuracy, metrics=metrics, message=message
        )

    def export(self, path: Path) -> None:
        """Write the model and its tokenizer as stock folders."""
        self.module.save_pretrained(path / "language_model")
        self.tokenizer.save_pretrained(path / "tokenizer")

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
        """There are none."""
        return ()
