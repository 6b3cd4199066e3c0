"""A training step of DreamLLM computed as the published code computes it, stated again on the model here.

A row for each document is laid out before; here pictures and queries are spliced in and conditions read out
by loops of `torch.cat`, the logits of all positions are made in float32, CLIP and the VAE run in every step,
on a blank picture where there is none, and both losses are read off. Each measure of this code can stand in
for its part of that.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamllm.losses.next_token import next_token_losses
from dreamllm.losses.total import Term
from dreamllm.models.decoders.draws import generators_of
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.packed_attention import attention_of
from dreamllm.models.splice import read_slots, write_slots
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.special_tokens import SpecialTokens

ROWS, ONE_ROW, SPLICING, LABELS, CACHE = (
    "packed rows of the context",
    "packed into one row",
    "spliced by index",
    "head at labels",
    "cached pictures",
)
MEASURES = (ROWS, ONE_ROW, SPLICING, LABELS, CACHE)
PACKED = {ROWS, ONE_ROW}
WEIGHTS_OF_TERMS: Mapping[str, float] = {"next_token": 1.0, "denoising": 10.0}
"""Those of the published stage II."""
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
        moments = model.image_decoder.moments(batch.target_pixels.scaled())
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
            blank = batch.vision_pixels.scaled().new_zeros(1, 3, *[model.vision_encoder.image_px] * 2)
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
        if PACKED & set(self._measures):
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
            return next_token_losses(chosen, model.logits, batch.labels).sum() / batch.num_labels
        logits = model.logits(states).float()
        labels = torch.full(batch.input_ids.shape, IGNORED).flatten()
        labels[batch.label_positions] = batch.labels
        return F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED)


def _spliced(row: Tensor, vectors: Tensor, start: int) -> Tensor:
    return torch.cat([row[:start], vectors, row[start + len(vectors) :]])
