"""Perplexity of JAM: how surprised it is by words, by picture codes and by words about a picture.

    words                        words and EOS of documents without pictures
    codes, given the caption     codes of a picture after its caption
    caption, given the picture   words and EOS of a caption after its picture

exp(mean negative log-likelihood) over the tokens of each kind, never of all kinds together, where the many
codes of a picture would drown its words. Causal order, no CM3 transform, and the softmax over the whole
vocabulary. What JAM (arXiv:2309.15564) reports as perplexity it does not define: the definition is ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dreamllm.document.document import Document
from dreamllm.errors import ConfigError
from dreamllm.eval.intervals import bootstrap
from dreamllm.eval.scores import Row, Score, Table, TaskResult
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.generate.codes import CodeGenerator
from dreamllm.sequence.packing import collate
from dreamllm.sequence.retrieving import RetrievingEncoder
from dreamllm.world.documents import DocumentKind, make_document

BATCH_SIZE = 16
NOTE = (
    "exp(mean negative log-likelihood) in causal order, over the whole vocabulary; n counts tokens, "
    "intervals are over documents. Words and captions with EOS, codes without <break>."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One line of the table."""

    label: str
    kind: DocumentKind
    of_codes: bool
    """Whether codes are scored, or words."""


ASKED = (
    Asked("words", "facts", False),
    Asked("codes, given the caption", "draw_pair", True),
    Asked("caption, given the picture", "read_pair", False),
)


def run(subject: Subject, options: EvalOptions) -> TaskResult:
    """Read `options.num` documents of every kind in every cell."""
    generator = subject.generator
    if not isinstance(generator, CodeGenerator):
        raise ConfigError(
            "perplexity of picture codes is asked of a DreamLLM, which has none; expected a JAM; leave it out"
        )
    rng = np.random.default_rng([options.seed, 6])
    asked = [each for each in ASKED if each.kind == "facts" or generator.model.image_tokenizer is not None]
    rows = []
    for each in asked:
        found = {
            cell: token_losses(
                generator,
                [
                    make_document(each.kind, rng, split=split, num_objects=counts, id=f"{cell} {index}")
                    for index in range(options.num)
                ],
                of_codes=each.of_codes,
            )
            for cell, split, counts in options.cells
        }
        scores = tuple(perplexity(losses) for losses in found.values())
        rows.append(Row(label=each.label, scores=scores))
    table = Table(
        title="Perplexity",
        columns=tuple(cell for cell, _, _ in options.cells),
        rows=tuple(rows),
        note=NOTE,
        unit="number",
    )
    return TaskResult(tables=(table,))


def perplexity(losses: Sequence[Float[np.ndarray, " L"]]) -> Score:
    """Of the tokens of documents, with an interval over documents."""
    counts = np.array([(each.sum(), len(each)) for each in losses], dtype=float).reshape(-1, 2)
    num = int(counts[:, 1].sum())
    if num == 0:
        return Score(value=None, low=0.0, high=float("inf"), n=0)
    low, high = bootstrap(counts, _exp_mean)
    return Score(value=float(_exp_mean(counts.sum(axis=0, keepdims=True))[0]), low=low, high=high, n=num)


def _exp_mean(sums: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, " R"]:
    """Columns are the sum of negative log-likelihoods and the number of tokens."""
    mean = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
    return np.exp(mean)


def token_losses(
    generator: CodeGenerator, documents: Sequence[Document], *, of_codes: bool
) -> list[Float[np.ndarray, " L"]]:
    """The negative log-likelihood of every code, or of every word and EOS, document by document, in nats."""
    return [
        losses
        for start in range(0, len(documents), BATCH_SIZE)
        for losses in _losses_of_batch(generator, documents[start : start + BATCH_SIZE], of_codes=of_codes)
    ]


@torch.no_grad()
def _losses_of_batch(
    generator: CodeGenerator, documents: Sequence[Document], *, of_codes: bool
) -> Iterator[Float[np.ndarray, " L"]]:
    model, encoder, tokens = generator.model, generator.encoder, generator.tokens
    if isinstance(encoder, RetrievingEncoder):
        encoder = encoder.encoder  # documents are scored by themselves
    plain = replace(encoder.options, learn="all", cm3=None, mask_prompt=0.0)
    encoder = replace(encoder, options=plain)
    rows = [[encoder.encode(document)[0]] for document in documents]
    batch = collate(rows, encoder.tokenizer.pad_id).to(model.device)
    is_code = torch.from_numpy(tokens.is_code(batch.labels.cpu().numpy())).to(model.device)
    chosen = is_code if of_codes else ~is_code & (batch.labels != tokens.break_)
    states = model.hidden_states(batch).flatten(0, 1)[batch.label_positions[chosen]]  # (L, D)
    losses: Tensor = F.cross_entropy(model.logits(states).float(), batch.labels[chosen], reduction="none")
    row_of = batch.label_positions[chosen] // batch.input_ids.shape[1]  # one document a row
    for row in range(len(documents)):
        yield losses[row_of == row].double().cpu().numpy()
