"""Training throughput of this code against a step computed as the published DreamLLM code computes it.

    python benchmarks/official_step.py
    python benchmarks/official_step.py --width 256 --documents 24

Both sides train one model on the same documents of stage II and must compute the same loss. The published
step, stated again here: a row for each document, padded to the longest; pictures and queries spliced in and
conditions read out by loops of `torch.cat`; logits of all positions in float32; CLIP and the VAE in every
step, on a blank picture where there is none. In between stand steps with one measure of this code each.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from gemm_share import make_model, start_run
from rounds import parse_arguments, positive, print_table, report, spread, take_turns, use_one_thread
from torch import Tensor

from dreamllm.generate.pipeline import WEIGHTS
from dreamllm.losses.next_token import next_token_sum
from dreamllm.losses.total import Term, total
from dreamllm.models.decoders.draws import generators_of
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.packed_attention import attention_of
from dreamllm.models.splice import read_slots, write_slots
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.cached_pictures import CachedPictures
from dreamllm.sequence.special_tokens import SpecialTokens
from dreamllm.sequence.tokenizer import Tokenizer
from dreamllm.train.run_state import Run
from dreamllm.train.step import optimizer_step

PUBLISHED, OURS, CACHED = "published step", "this code", "this code, cached pictures"
PACKING, SPLICING, LABELS, CACHE = "packed rows", "spliced by index", "head at labels", "cached pictures"
MEASURES = (PACKING, SPLICING, LABELS, CACHE)
WEIGHTS_OF_TERMS: Mapping[str, float] = {"next_token": 1.0, "denoising": 10.0}
"""Those of the published stage II."""
FIRST_STEP = 1000
"""Of the recipe's 2000: in the phase that mixes all kinds of documents."""
MAX_LOSS_GAP = 1e-4
"""Of the loss, for rounding."""
IGNORED = -100


class PublishedStep:
    """An objective whose losses are computed as published, but for some measures."""

    weights = WEIGHTS_OF_TERMS

    def __init__(self, model: DreamLLM, special: SpecialTokens, measures: Sequence[str] = ()) -> None:
        self.module, self._special, self._measures = model, special, measures

    def counts(self, micro_batch: Batch) -> dict[str, int]:
        """Supervised tokens and pictures."""
        return {"next_token": micro_batch.num_labels, "denoising": micro_batch.num_targets}

    def document_ids(self, micro_batch: Batch) -> tuple[str, ...]:
        """Names, for messages."""
        return micro_batch.document_ids

    def losses(self, micro_batch: Batch, generator: torch.Generator) -> dict[str, Term]:
        """Means times counts: with one micro-batch a step, the step divides by the same counts again."""
        model, batch = self.module, micro_batch
        embeds = self._embed(batch)
        states = self._states(embeds, batch)
        tokens = self._next_token(states, batch)
        if SPLICING in self._measures:
            read = read_slots(states, batch.dream_slots)
        else:
            read = torch.stack(
                [
                    states[row, start + 1 : start + 1 + model.config.num_dream_queries]
                    for row in range(len(states))
                    for start in torch.where(batch.input_ids[row] == self._special.dream_start)[0].tolist()
                ]
            )
        own = generators_of(batch.noise_seeds)
        moments = model.image_decoder.moments(batch.target_pixels)
        if batch.cached_targets is not None:
            moments = batch.cached_targets.fill(moments)
        latents = model.image_decoder.latents(moments, own)
        errors = model.image_decoder.denoising_loss(latents, model.project_conditions(read), own)
        terms = {"next_token": tokens, "denoising": errors.mean()}
        for term in terms.values():
            term.item()  # both are read off in every step
        counts = self.counts(batch)
        return {name: Term(term * counts[name], counts[name]) for name, term in terms.items()}

    def _embed(self, batch: Batch) -> Tensor:
        """Embeddings of all rows with pictures and queries in them."""
        model = self.module
        embeds, features = model.embed_ids(batch.input_ids), model.image_features(batch)
        if len(features) == 0:  # a blank picture keeps every parameter in use
            blank = batch.vision_pixels.new_zeros(1, 3, *[model.vision_encoder.image_px] * 2)
            embeds = embeds + 0.0 * model.image_embeds(blank).sum()
        images = model.project_images(features)
        if SPLICING in self._measures:
            embeds = write_slots(embeds, images, batch.image_slots)
            return write_slots(embeds, model.dream_queries(len(batch.dream_slots)), batch.dream_slots)
        rows, used = [], 0
        for row, ids in zip(embeds, batch.input_ids, strict=True):
            for start in torch.where(ids == self._special.dream_start)[0].tolist():
                row = _spliced(row, model.query_embeds(), start + 1)
            for start in torch.where(ids == self._special.im_start)[0].tolist():
                row = _spliced(row, images[used], start + 1)
                used += 1
            rows.append(row)
        return torch.stack(rows)

    def _states(self, embeds: Tensor, batch: Batch) -> Tensor:
        """What the language model says; with padding on the right, causal attention needs no mask."""
        model = self.module
        if PACKING in self._measures:
            attention = attention_of(model.language_model, batch)
            return model.language_states(embeds, attention, batch.position_ids)
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        return (
            model.language_model.get_decoder()(
                inputs_embeds=embeds, attention_mask=None, position_ids=positions, use_cache=False
            )
        ).last_hidden_state

    def _next_token(self, states: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        model = self.module
        if LABELS in self._measures:
            chosen = states.flatten(0, 1).index_select(0, batch.label_positions)
            return next_token_sum(chosen, model.logits, batch.labels) / batch.num_labels
        logits = model.logits(states).float()
        labels = torch.full(batch.input_ids.shape, IGNORED).flatten()
        labels[batch.label_positions] = batch.labels
        return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED)


def _spliced(row: Tensor, vectors: Tensor, start: int) -> Tensor:
    return torch.cat([row[:start], vectors, row[start + len(vectors) :]])


def main() -> int:
    """Measure; 1 if not all sides compute the same loss."""
    arguments = parse_arguments(__doc__, _add_arguments, rounds=4)
    use_one_thread()
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_pretrained(WEIGHTS / "tiny" / "tokenizer")
    weights = [f"objective.{name}_weight={value}" for name, value in WEIGHTS_OF_TERMS.items()]
    changes = ("noises_per_image=1", "condition_dropout=0", f"rows_per_micro_batch={arguments.documents}")
    new = make_model(tokenizer, arguments)
    run, padded = (
        start_run(
            new,
            tokenizer,
            arguments.documents,
            [*(f"objective.{change}" for change in changes), *weights, f"objective.packing={packing}"],
        )
        for packing in ("true", "false")
    )
    model: Any = run.objective.module
    names = (PUBLISHED, *MEASURES, OURS, CACHED)
    batches = {name: batches_for(name, run, padded, arguments.rounds + 1) for name in names}
    special = tokenizer.special
    objectives = {PUBLISHED: PublishedStep(model, special), OURS: run.objective, CACHED: run.objective}
    objectives |= {name: PublishedStep(model, special, [name]) for name in MEASURES}
    gap = largest_gap(objectives, {name: steps[0] for name, steps in batches.items()})
    seconds = take_turns(
        {
            name: partial(
                lambda number, name: move(run, objectives[name], batches[name][number + 1]), name=name
            )
            for name in names
        },
        rounds=arguments.rounds,
    )
    ratios = {
        name: [one / other for one, other in zip(seconds[PUBLISHED], seconds[name], strict=True)]
        for name in names
    }
    padding = {name: share_of_padding(batches[name]) for name in (PUBLISHED, OURS)}
    print_table(
        f"Documents per second, stage II, width {arguments.width}, {arguments.documents} documents a step",
        ("ratio", "by step"),
        {name: [f"{median(ratios[name]):.2f}", spread(ratios[name])] for name in names},
    )
    is_same = gap <= MAX_LOSS_GAP
    print(f"  Padding: {padding[PUBLISHED]:.1%} of a row for each document, {padding[OURS]:.1%} packed.")
    print(f"  All sides compute {'the same' if is_same else 'NOT THE SAME'} loss: {gap:.1e} apart.\n")
    report("official_step", arguments, {"ratios": ratios, "padding": padding, "loss_gap": gap})
    return 0 if is_same else 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default in (("width", 384), ("layers", 4), ("documents", 16)):
        parser.add_argument(f"--{name}", type=positive, default=default, help="(default: %(default)s)")


def batches_for(name: str, packed: Run, padded: Run, num_steps: int) -> list[Batch]:
    """A micro-batch a step, laid out and with the pictures cached as a side has them."""
    run = packed if name in (OURS, CACHED, PACKING) else padded
    steps = [run.objective.data[FIRST_STEP + number] for number in range(num_steps)]
    batches = [step[0] for step in steps]
    assert all(len(step) == 1 for step in steps)  # so the mean of a micro-batch is that of the step
    return [
        with_cache(packed.objective.module, batch) if name in (CACHE, CACHED) else batch for batch in batches
    ]


def with_cache(model: Any, batch: Batch) -> Batch:
    """The batch with the features and moments of all its pictures in place of their pixels."""
    return replace(
        batch,
        vision_pixels=batch.vision_pixels[:0],
        target_pixels=batch.target_pixels[:0],
        cached_images=_all_cached(model.vision_encoder(batch.vision_pixels)),
        cached_targets=_all_cached(model.image_decoder.moments(batch.target_pixels)),
    )


def _all_cached(records: Tensor) -> CachedPictures:
    return CachedPictures(records, torch.arange(len(records)), torch.zeros(0, dtype=torch.int64))


@torch.no_grad()
def largest_gap(objectives: Mapping[str, Any], batches: Mapping[str, Batch]) -> float:
    """How far apart the losses of all sides are on their first batch, of the loss."""
    losses = []
    for name, objective in objectives.items():
        terms = objective.losses(batches[name], torch.Generator())
        loss = total(terms, counts=objective.counts(batches[name]), weights=WEIGHTS_OF_TERMS)
        losses.append(float(loss))
    return (max(losses) - min(losses)) / max(losses)


def move(run: Run, objective: Any, batch: Batch) -> None:
    """One optimizer step of a side; all move the same model."""
    optimizer_step(
        objective,
        run.optimizer,
        [batch],
        step=0,
        seed=0,
        device=run.device,
        clip_norm=run.config.optim.clip_norm,
    )


def share_of_padding(batches: Sequence[Batch]) -> float:
    """Positions that belong to no document."""
    padding = sum(int((batch.document_index == 0).sum()) for batch in batches)
    return padding / sum(batch.input_ids.numel() for batch in batches)


if __name__ == "__main__":
    raise SystemExit(main())
