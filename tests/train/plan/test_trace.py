"""What a traced pass says of memory and FLOPs, against real passes and against arithmetic by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.train.plan.tiny_shapes import LLAMA, SHAPES, work
from torch import Tensor

from dreamllm.checkpoint.parts import read_json
from dreamllm.losses.total import DREAMLLM_WEIGHTS, total
from dreamllm.models.dreamllm import DreamLLM
from dreamllm.models.freezing import apply_trainable
from dreamllm.models.trainable import Trainable
from dreamllm.train.plan.memory import num_parameters
from dreamllm.train.plan.shapes import Shapes, build_model
from dreamllm.train.plan.stock_configs import SHIPPED
from dreamllm.train.plan.trace import (
    BATCH,
    GRADIENTS,
    IMAGE_DECODER,
    LANGUAGE_MODEL,
    LOGITS,
    VISION_ENCODER,
    WEIGHT_COPIES,
    Trace,
    blank_batch,
    trace_pass,
)
from dreamllm.train.plan.workload import Workload
from dreamllm.train.run_config import Precision


def model_of(
    *, trained: bool = True, checkpointing: bool = False, device: str = "meta", shapes: Shapes = SHAPES
) -> DreamLLM:
    model = build_model(shapes, device=device)
    apply_trainable(
        model, Trainable(language_model=trained, special_token_rows=not trained), special_token_ids=range(4)
    )
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model.train()


def trace(
    workload: Workload, *, precision: Precision = "float32", noises: int = 1, has_gradients: bool = False,
    **options: Any,
) -> Trace:  # fmt: skip
    return trace_pass(
        model_of(**options),
        workload,
        precision=precision,
        noises_per_image=noises,
        weights=DREAMLLM_WEIGHTS,
        has_gradients=has_gradients,
    )


def saved_bytes(model: DreamLLM, workload: Workload) -> int:
    """What autograd really keeps between the passes, beside weights and batch; each storage once."""
    batch = blank_batch(model, workload)
    known = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    known |= {
        value.untyped_storage().data_ptr()
        for name in batch.__slots__
        if isinstance(value := getattr(batch, name), Tensor)
    }
    saved: dict[int, Tensor] = {}  # holds them, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = model(batch, torch.Generator().manual_seed(0))
        total(terms, counts={name: term.count for name, term in terms.items()}, weights=DREAMLLM_WEIGHTS)
    return sum(each.untyped_storage().nbytes() for key, each in saved.items() if key not in known)


@pytest.mark.parametrize("trained", [True, False])
def test_between_the_passes_as_much_is_kept_as_autograd_really_saves(trained: bool) -> None:
    workload = work()

    kept = trace(workload, trained=trained).for_backward

    measured = saved_bytes(model_of(trained=trained, device="cpu"), workload)
    assert sum(kept.values()) - kept[BATCH] == pytest.approx(measured, rel=0.02)


def test_gradients_of_everything_that_trains_are_there_at_the_end() -> None:
    traced = trace(work(), has_gradients=True)

    trained = num_parameters(model_of(), trained=True)
    assert traced.own_peaks[GRADIENTS] == 4 * trained
    assert traced.at_peak[GRADIENTS] == 4 * trained


def test_gradients_of_a_first_pass_come_as_activations_go() -> None:
    first, second = trace(work()), trace(work(), has_gradients=True)

    assert first.own_peaks[GRADIENTS] == second.own_peaks[GRADIENTS]
    assert first.peak_bytes < second.peak_bytes


def test_a_language_model_computes_two_flops_for_each_weight_and_position_and_pair_of_positions() -> None:
    workload = work(images_read=0, images_drawn=0)

    flops = trace(workload).flops

    tokens, width, inner, layers = 2 * 128, 64, 96, 3
    products = 2 * tokens * layers * (4 * width * width + 3 * width * inner)
    attention = layers * 2 * (2 * 2 * 128 * 128 * width)  # two products of T x T for each row
    assert flops[LANGUAGE_MODEL] == products + attention
    assert flops[LOGITS] == 2 * 40 * width * 508
    assert flops.get(VISION_ENCODER, 0) == 0


def test_a_backward_pass_through_trained_layers_takes_twice_the_forward_pass() -> None:
    flops = trace(work(images_read=0, images_drawn=0)).flops

    forward = flops[LANGUAGE_MODEL] + flops[LOGITS]
    # attention takes five products back for its two, and the first layer's input needs its gradient too
    assert 2.0 * forward <= flops["backward pass"] <= 2.5 * forward


def test_checkpointing_keeps_less_and_computes_more() -> None:
    plain, saving = trace(work()), trace(work(), checkpointing=True)

    tokens, width = 2 * 128, 64
    inputs_of_blocks = 4 * tokens * width * LLAMA["num_hidden_layers"]
    assert inputs_of_blocks <= saving.for_backward[LANGUAGE_MODEL] < 0.4 * plain.for_backward[LANGUAGE_MODEL]
    assert saving.for_backward[IMAGE_DECODER] < 0.6 * plain.for_backward[IMAGE_DECODER]
    assert saving.flops["backward pass"] > 1.2 * plain.flops["backward pass"]


def test_twice_the_noises_keep_twice_the_activations_of_the_image_decoder() -> None:
    one, two = trace(work()), trace(work(), noises=2)

    assert two.for_backward[IMAGE_DECODER] == pytest.approx(2 * one.for_backward[IMAGE_DECODER], rel=0.02)
    assert two.for_backward[LANGUAGE_MODEL] == one.for_backward[LANGUAGE_MODEL]


def test_in_sixteen_bits_every_matrix_that_a_gradient_passes_is_there_once_more() -> None:
    copies = trace(work(images_drawn=0), precision="bfloat16").for_backward[WEIGHT_COPIES]

    layers = 3 * (4 * 64 * 64 + 3 * 64 * 96)
    head = 508 * 64
    condition_projector = 64 * 24  # not the visual projector's: no gradient goes on to the pictures
    assert copies == 2 * (layers + head + condition_projector)


def test_sixteen_bits_save_less_than_half_of_the_image_decoder_because_norms_stay_in_float32() -> None:
    whole, half = trace(work()), trace(work(), precision="bfloat16")

    assert 0.6 < half.for_backward[IMAGE_DECODER] / whole.for_backward[IMAGE_DECODER] < 0.9


def test_a_frozen_vision_encoder_keeps_nothing_for_the_backward_pass() -> None:
    traced = trace(work())

    features = 4 * 3 * 16 * 32
    assert traced.own_peaks[VISION_ENCODER] > features
    assert traced.for_backward.get(VISION_ENCODER, 0) <= 2 * features + 4 * 3 * 32  # with the class token


@pytest.mark.parametrize(
    ("name", "denoiser"),
    [
        ("stabilityai--stable-diffusion-xl-base-1.0", "unet"),
        ("Efficient-Large-Model--Sana_1600M_512px_diffusers", "transformer"),
    ],
)
def test_other_kinds_of_image_decoders_are_traced_at_their_real_size(name: str, denoiser: str) -> None:
    folder = SHIPPED / name
    shapes = replace(
        SHAPES,
        denoiser=read_json(folder / denoiser / "config.json"),
        vae=read_json(folder / "vae" / "config.json"),
        scheduler=read_json(folder / "scheduler" / "scheduler_config.json"),
    )

    traced = trace(work(images_drawn=1), shapes=shapes, checkpointing=True, precision="bfloat16")

    assert traced.own_peaks[IMAGE_DECODER] > 0
    # every weight of a transformer meets 16 x 16 latents, or more
    assert traced.flops[IMAGE_DECODER] > 0.5 * 2 * 256 * num_parameters(
        build_model(shapes).image_decoder.denoiser
    )
