from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPModel

from dreamllm.checkpoint.compose import compose
from dreamllm.checkpoint.encoder import encoder_of
from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.splice import read_slots
from dreamllm.runtime.seeding import make_generator, seed_everything
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.encode import EncodeOptions, SequenceEncoder
from dreamllm.sequence.packing import collate
from dreamllm.train.objectives.whitened_start import whiten_connectors
from dreamllm.world.documents import make_document

OPTIONS = EncodeOptions(max_length=640)


def composed(parts: PartsConfig) -> tuple[DreamLLM, SequenceEncoder]:
    seed_everything(6)
    new = compose(parts)
    return new.model, encoder_of(new.model, new.tokenizer, new.transforms, OPTIONS)


def batches(encoder: SequenceEncoder) -> list[Batch]:
    """Pictures to read and to draw."""
    rng = np.random.default_rng(0)
    documents = [make_document(kind, rng) for kind in ("vqa", "draw", "draw", "draw") * 12]
    rows = [encoder.encode(document) for document in documents]
    return [collate(rows[start : start + 8], encoder.tokenizer.pad_id) for start in range(0, 48, 8)]


def test_the_vision_tower_of_the_pair_becomes_the_eye(parts: PartsConfig) -> None:
    model, _ = composed(parts)
    pixels = torch.randn(2, 3, 64, 64, generator=make_generator(0))

    seen = model.vision_encoder(pixels)

    pair = CLIPModel.from_pretrained(parts.vision_encoder)
    assert_close(seen, pair.vision_model(pixels).last_hidden_state[:, 1:])


def test_the_encoder_reads_as_clip_did_and_draws_at_the_size_of_the_decoder(parts: PartsConfig) -> None:
    model, encoder = composed(parts)

    assert encoder.vision_transform == VisionTransform(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert encoder.target_transform == TargetTransform(64)
    assert (encoder.sizes.num_visual_tokens, encoder.sizes.num_dream_queries) == (16, 2)
    assert encoder.options == OPTIONS
    assert encoder.chat.name == model.config.chat_template == "plain_chat"


def condition_number(x: torch.Tensor, rank: int) -> float:
    """Of the second moment, over its largest directions."""
    variances = torch.linalg.eigvalsh(x.double().T @ x.double() / len(x)).flip(0)[:rank]
    return (variances[0] / variances[-1]).item()


def test_visual_tokens_start_centred_and_at_the_spread_of_the_token_table(parts: PartsConfig) -> None:
    """All variances v of the features become one, but for the shrinkage: v / (0.999 v + 0.001 mean v)."""
    model, encoder = composed(parts)
    shown = batches(encoder)

    whiten_connectors(model, shown, generator=make_generator(1))

    with torch.no_grad():
        features = torch.cat([model.vision_encoder(b.vision_pixels.scaled()).flatten(0, 1) for b in shown])
        tokens = torch.cat([model.image_embeds(b.vision_pixels.scaled()).flatten(0, 1) for b in shown])
    variances = torch.linalg.eigvalsh(torch.cov(features.double().T, correction=0))
    kept = (variances / (0.999 * variances + 0.001 * variances.mean())).mean().sqrt().item()
    spread = model.language_model.get_input_embeddings().weight.detach().std().item()
    assert tokens.std().item() == pytest.approx(spread * kept, rel=0.01)
    assert kept > 0.7
    assert_close(tokens.mean(0), torch.zeros(32), atol=1e-2 * spread, rtol=0)
    assert model.dream_queries.queries.detach().std().item() == pytest.approx(spread, rel=0.3)


def test_conditions_start_white_in_what_the_unet_hears(parts: PartsConfig) -> None:
    model, encoder = composed(parts)
    shown = batches(encoder)

    whiten_connectors(model, shown, generator=make_generator(1))

    with torch.no_grad():
        states = torch.cat([read_slots(model.hidden_states(b), b.dream_slots).flatten(0, 1) for b in shown])
        conditions = model.condition_projector(states)
    weights = torch.cat(
        [
            layer.weight.detach()
            for name, layer in model.image_decoder.unet.named_modules()
            if name.endswith(("attn2.to_k", "attn2.to_v"))
        ]
    )
    # Shrinkage of 0.001 leaves the smallest direction of each moment a little short of one.
    assert condition_number(states, 16) > 1000
    assert condition_number(weights, 16) > 1000
    assert condition_number(conditions @ weights.T, 16) < 5


def test_the_same_generator_starts_the_same_connectors(parts: PartsConfig) -> None:
    (first, encoder), (second, _) = composed(parts), composed(parts)
    shown = batches(encoder)[:1]

    whiten_connectors(first, shown, generator=make_generator(1))
    whiten_connectors(second, shown, generator=make_generator(1))

    assert torch.equal(first.condition_projector.weight, second.condition_projector.weight)
    assert torch.equal(first.visual_projector.weight, second.visual_projector.weight)


def test_parts_say_how_many_queries_there_are(parts: PartsConfig) -> None:
    model, encoder = composed(replace(parts, num_dream_queries=5))

    assert model.query_embeds().shape == (5, 32)
    assert encoder.sizes.num_dream_queries == 5
