import numpy as np
import pytest
import torch
from tests.models import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from dreamllm.models.freezing import apply_trainable
from dreamllm.models.trainable import Trainable
from dreamllm.train.flops import (
    DreamLLMFlops,
    LanguageModelFlops,
    document_lengths,
    flops_of,
    linear_flops,
    num_pairs,
)

# tiny.llama: two layers of width 32; q, k, v and o have 32 x 32 weights, the three of the MLP 32 x 48.
LAYER_WEIGHTS = 4 * 32 * 32 + 3 * 32 * 48


def test_a_model_that_learns_costs_six_times_its_weights_and_a_frozen_one_four() -> None:
    model = tiny.llama()

    assert LanguageModelFlops.of(model, has_gradient=True) == LanguageModelFlops(
        position=6 * 2 * LAYER_WEIGHTS,
        pair=3 * 4 * 32,
        label=6 * 32 * tiny.VOCAB,
        num_layers=2,
        num_window_layers=0,
        window=None,
    )
    model.requires_grad_(False)
    frozen = LanguageModelFlops.of(model, has_gradient=True)
    reading = LanguageModelFlops.of(model, has_gradient=False)
    assert frozen is not None
    assert reading is not None
    assert (frozen.position, frozen.pair) == (4 * 2 * LAYER_WEIGHTS, 3 * 4 * 32)
    assert (reading.position, reading.pair) == (2 * 2 * LAYER_WEIGHTS, 4 * 32)


def test_documents_of_a_batch_are_counted_without_padding() -> None:
    batch = tiny.batch_of([[[1, 5, 6, 2], [1, 7, 2]], [[1, 8, 2]]], 8)

    lengths = document_lengths(batch)
    found = LanguageModelFlops.of(tiny.llama(), has_gradient=True)

    assert lengths.tolist() == [4, 3, 3]
    assert num_pairs(lengths) == 10 + 6 + 6
    assert found is not None
    expected = 6 * 2 * LAYER_WEIGHTS * 10 + 2 * 3 * 4 * 32 * 22 + 6 * 32 * tiny.VOCAB * batch.num_labels
    assert found.of_batch(batch) == expected


def test_a_window_hides_pairs() -> None:
    # of 5 positions with a window of 2, the first sees 1 and the others 2
    assert num_pairs(np.asarray([5]), window=2) == 1 + 4 * 2
    assert num_pairs(np.asarray([5]), window=5) == num_pairs(np.asarray([5])) == 15


def test_a_shared_head_counts_as_head_and_not_as_table() -> None:
    model = tiny.llama(tie=True)

    found = LanguageModelFlops.of(model, has_gradient=True)

    assert found is not None
    assert (found.position, found.label) == (6 * 2 * LAYER_WEIGHTS, 6 * 32 * tiny.VOCAB)


def test_matrices_of_other_classes_than_linear_are_counted() -> None:
    config = GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=2, n_positions=16)

    # qkv 32 x 96, out 32 x 32, MLP 32 x 128 and back; no table
    assert linear_flops(GPT2LMHeadModel(config).transformer, has_gradient=False) == 4 * (
        32 * 96 + 32 * 32 + 2 * 32 * 128
    )


def test_experts_and_what_is_no_language_model_are_not_guessed() -> None:
    config = MixtralConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )

    assert flops_of(MixtralForCausalLM(config)) is None
    assert flops_of(torch.nn.Linear(2, 2)) is None


def test_a_forward_pass_is_what_the_counter_of_torch_finds() -> None:
    model = tiny.llama().requires_grad_(False)
    batch = tiny.batch_of([[list(range(1, 9))]], 8)
    found = LanguageModelFlops.of(model, has_gradient=False)
    assert found is not None

    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.to("meta").get_decoder()(input_ids=batch.input_ids.to("meta"))

    # On the meta device attention is products of all 64 pairs, of which 36 are causal.
    assert counter.get_total_flops() == found.position * 8 + 2 * found.pair * 64


@pytest.mark.parametrize("noises", [1, 3])
def test_pictures_cost_what_their_parts_cost(noises: int) -> None:
    model = tiny.dreamllm()
    apply_trainable(model, Trainable(language_model=True))

    found = DreamLLMFlops.of(model, noises_per_image=noises)

    assert found is not None
    denoiser = _unet_flops(model.image_decoder.denoiser, model.image_decoder.condition_width)
    projector = 3 * 2 * tiny.NUM_QUERIES * 32 * model.image_decoder.condition_width
    assert found.image_drawn == projector + noises * denoiser
    # The projector's input is frozen features, so it has a weight gradient and no other.
    assert found.image_told == 2 * 2 * tiny.NUM_PATCHES * 16 * 32
    # CLIP: 3 layers on 5 tokens of width 16, and 4 patches of 3 x 8 x 8 by a convolution; forward alone.
    layer = 2 * 5 * (4 * 16 * 16 + 2 * 16 * 24) + 2 * 2 * 5 * 5 * 16
    assert found.image_read == 3 * layer + 2 * 4 * 3 * 8 * 8 * 16
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def _unet_flops(unet: torch.nn.Module, width: int) -> int:
    """Of one picture forward, and backward to the condition alone, as it is executed on the CPU."""
    tokens = torch.zeros(1, tiny.NUM_QUERIES, width, requires_grad=True)
    size = unet.config.sample_size
    latents = torch.zeros(1, unet.config.in_channels, size, size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        unet(latents, torch.zeros(1), tokens).sample.sum().backward()
    return counter.get_total_flops()


def test_a_batch_is_the_sum_of_its_documents_and_pictures() -> None:
    model = tiny.dreamllm()
    apply_trainable(model, Trainable(language_model=True))
    batch = tiny.batch_of([[[1, *tiny.IMAGE, 5, *tiny.DREAM, 2]]], 24)
    found = DreamLLMFlops.of(model)

    assert found is not None
    pictures = found.image_read + found.image_told + found.image_encoded + found.image_drawn
    assert found(batch) == found.language_model.of_batch(batch) + pictures
