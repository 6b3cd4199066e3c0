from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.models.tiny import (
    CAPTION,
    CREATION,
    DREAM_START,
    IM_START,
    NUM_PATCHES,
    NUM_QUERIES,
    STORY,
    batch_of,
    dreamllm,
    llama,
    qwen3,
)
from torch.testing import assert_close

from dreamllm.errors import ConfigError
from dreamllm.losses.total import DREAMLLM_WEIGHTS, total
from dreamllm.models.dreamllm import DreamLLMConfig
from dreamllm.sequence.pixels import Pixels

LANGUAGE_MODELS = pytest.mark.parametrize("language_model", [llama, qwen3])


def plain_loss(model, batch, seed):
    """Sections 3.1 and 3.2 of the paper for unpacked rows, one row and one picture at a time."""
    language_model, decoder = model.language_model, model.image_decoder
    images, drawn = iter(batch.vision_pixels.scaled()), 0
    token_losses, conditions = [], []
    labels = dict(zip(batch.label_positions.tolist(), batch.labels.tolist(), strict=True))
    length = batch.input_ids.shape[1]
    for row, ids in enumerate(batch.input_ids):
        real = int((batch.document_index[row] > 0).sum())
        rows = list(language_model.get_input_embeddings()(ids[:real]))
        starts = []
        for position, token in enumerate(ids[:real].tolist()):
            if token == IM_START:
                vision = model.vision_encoder.model(next(images)[None], output_hidden_states=True)
                features = model.visual_projector(vision.hidden_states[-2][0, 1:].detach())
                rows[position + 1 : position + 1 + NUM_PATCHES] = list(features)
            if token == DREAM_START:
                rows[position + 1 : position + 1 + NUM_QUERIES] = list(model.dream_queries.queries[0])
                starts.append(position)
        output = language_model(
            inputs_embeds=torch.stack(rows)[None], output_hidden_states=True, use_cache=False
        )
        for position in range(real):
            if (label := labels.get(row * length + position)) is not None:
                token_losses.append(-F.log_softmax(output.logits[0, position], -1)[label])
        for start in starts:
            states = output.hidden_states[-1][0, start + 1 : start + 1 + NUM_QUERIES]
            conditions.append(states @ model.condition_projector.weight.T)
            drawn += 1
    draw = torch.Generator().manual_seed(seed)
    posterior = decoder.vae.encode(batch.target_pixels.scaled()).latent_dist
    latents = (
        0.18215
        * (posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draw)).detach()
    )
    noise, steps = (
        torch.randn(latents.shape, generator=draw),
        torch.randint(0, 1000, (drawn,), generator=draw),
    )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = torch.cumprod(1 - betas, 0)[steps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    squared = [
        (decoder.unet(noisy[i : i + 1], steps[i : i + 1], conditions[i][None]).sample - noise[i])
        .square()
        .mean()
        for i in range(drawn)
    ]
    return torch.stack(token_losses).mean() + 10 * torch.stack(squared).mean()


def loss_of(model, batch, seed=0):
    terms = model(batch, torch.Generator().manual_seed(seed))
    counts = {name: term.count for name, term in terms.items()}
    return total(terms, counts=counts, weights=DREAMLLM_WEIGHTS)


@LANGUAGE_MODELS
def test_loss_and_gradients_equal_a_plain_restatement_of_the_paper(language_model):
    model, batch = dreamllm(language_model()), batch_of([[STORY], [CAPTION], [CREATION]], 32)
    learned = [p for p in model.parameters() if p.requires_grad]
    expected = plain_loss(model, batch, seed=3)
    expected_gradients = torch.autograd.grad(expected, learned)

    loss = loss_of(model, batch, seed=3)

    assert_close(loss, expected, atol=1e-5, rtol=0)
    assert_close(torch.autograd.grad(loss, learned), expected_gradients, atol=2e-5, rtol=1e-4)


@LANGUAGE_MODELS
def test_packed_rows_give_the_losses_of_rows_of_their_own(language_model):
    model = dreamllm(language_model())
    apart, packed = batch_of([[STORY], [CAPTION], [CREATION]], 32), batch_of([[STORY, CAPTION, CREATION]], 56)

    first, second = (model(batch, torch.Generator().manual_seed(0)) for batch in (apart, packed))

    for name in ("next_token", "denoising"):
        assert first[name].count == second[name].count > 0
        assert_close(first[name].sum, second[name].sum, atol=2e-5, rtol=0)


def test_a_document_does_not_see_its_neighbour_nor_its_future():
    model = dreamllm()
    before = model.hidden_states(batch_of([[STORY, CAPTION]], 40))[0]

    changed = model.hidden_states(batch_of([[[1, 30, *STORY[2:]], [*CAPTION[:-1], 33]]], 40))[0]

    last = len(STORY) + len(CAPTION) - 1
    same = slice(len(STORY), last)
    assert_close(before[same], changed[same])
    assert (before[last] - changed[last]).abs().max() > 1e-3
    assert (before[len(STORY) - 1] - changed[len(STORY) - 1]).abs().max() > 1e-4


def test_only_language_model_queries_and_projectors_get_a_gradient():
    model = dreamllm().train()

    loss_of(model, batch_of([[STORY]], 30)).backward()

    for name, parameter in model.named_parameters():
        frozen = name.startswith(("vision_encoder.", "image_decoder."))
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.abs().max() > 0, name


def test_the_picture_loss_alone_teaches_everything_before_the_image_decoder():
    model = dreamllm()

    model(batch_of([[STORY]], 30), torch.Generator().manual_seed(0))["denoising"].sum.backward()

    for module in (model.language_model.model, model.dream_queries, model.condition_projector):
        assert all(p.grad.abs().max() > 0 for p in module.parameters())
    assert (
        model.visual_projector.weight.grad.abs().max() > 0
    )  # the second picture is drawn after seeing the first


@pytest.mark.parametrize(
    ("document", "num_labels", "num_targets"),
    [(CAPTION, 4, 0), (CREATION, 4, 1), ([1, 5, 6, 2], 3, 0), ([1, 46, 47], 0, 0)],
)
def test_a_batch_without_pictures_targets_or_labels_is_no_special_case(document, num_labels, num_targets):
    model = dreamllm()

    terms = model(batch_of([[document]], 24), torch.Generator().manual_seed(0))
    sum(term.sum for term in terms.values()).backward()

    assert (terms["next_token"].count, terms["denoising"].count) == (num_labels, num_targets)
    assert (terms["next_token"].sum > 0) == (num_labels > 0)
    assert (terms["denoising"].sum > 0) == (num_targets > 0)
    for module in (model.visual_projector, model.dream_queries, model.condition_projector):
        assert all(p.grad is not None for p in module.parameters())


def test_a_dream_slot_without_a_target_conditions_nothing():
    model, whole = dreamllm(), batch_of([[STORY]], 30)
    batch = replace(
        whole,
        target_dreams=torch.tensor([1]),
        target_documents=whole.target_documents[1:],
        target_pixels=Pixels(whole.target_pixels.levels[1:]),
    )
    draw = torch.Generator().manual_seed(0)
    latents = model.image_decoder.encode(batch.target_pixels.scaled(), draw)
    second = model.conditions(model.hidden_states(whole), whole.dream_slots)[1:]
    expected = model.image_decoder.denoising_loss(latents, second, draw, noises_per_image=2)

    terms = model(batch, torch.Generator().manual_seed(0), noises_per_image=2)

    assert terms["denoising"].count == 1
    assert_close(terms["denoising"].sum, expected.sum())


def test_conditions_are_the_projected_states_at_the_queries():
    model, batch = dreamllm(), batch_of([[CREATION], [STORY]], 30)
    hidden = model.hidden_states(batch)
    first = CREATION.index(DREAM_START) + 1

    conditions = model.conditions(hidden, batch.dream_slots)

    assert conditions.tokens.shape == (3, NUM_QUERIES, 24)
    assert conditions.pooled.shape == (3, 0)
    assert_close(
        conditions.tokens[0], hidden[0, first : first + NUM_QUERIES] @ model.condition_projector.weight.T
    )


def test_the_parts_for_generation_are_those_of_training():
    model, batch = dreamllm(), batch_of([[CAPTION]], len(CAPTION))
    embeds = model.embed(batch)[0]

    image = model.image_embeds(batch.vision_pixels.scaled())
    ids = model.embed_ids(batch.input_ids)[0]

    assert_close(embeds, torch.cat([ids[:2], image[0], ids[2 + NUM_PATCHES :]]))
    assert_close(model.query_embeds(), model.dream_queries.queries[0])
    states = model.hidden_states(batch)
    stock = model.language_model(inputs_embeds=embeds[None], use_cache=False).logits
    assert_close(model.logits(states), stock)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_runs_in_either_precision(dtype):
    model = dreamllm(visual_projector="mlp", condition_projector="mlp").to(dtype)

    loss = loss_of(model, batch_of([[STORY], [CAPTION]], 30))
    loss.backward()

    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert model.dream_queries.queries.grad.dtype == dtype


def test_mixed_precision_of_the_parts_fits_together():
    model = dreamllm()
    model.vision_encoder.bfloat16()
    model.image_decoder.bfloat16()
    exact = loss_of(dreamllm(), batch_of([[STORY]], 30))

    loss = loss_of(model, batch_of([[STORY]], 30))

    assert_close(loss, exact, rtol=0.02, atol=0)


def test_slot_sizes_come_from_the_parts():
    sizes = dreamllm().slot_sizes

    assert (sizes.num_visual_tokens, sizes.num_dream_queries) == (NUM_PATCHES, NUM_QUERIES)


def test_settings_and_language_models_that_do_not_fit_are_refused():
    capped = llama()
    capped.config.final_logit_softcapping = 30.0

    with pytest.raises(ConfigError, match="final_logit_softcapping=30"):
        dreamllm(capped)
    with pytest.raises(ConfigError, match="num_dream_queries is 0"):
        DreamLLMConfig(num_dream_queries=0)
    with pytest.raises(ConfigError, match="choose one of linear, mlp"):
        DreamLLMConfig(visual_projector="conv")
    with pytest.raises(ConfigError, match="no chat template"):
        DreamLLMConfig(chat_template="vicuna")
