"""A plan adds up, divides what is sharded, and gives advice that holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.train.plan.tiny_shapes import SHAPES

from dreamllm.config import load_config, to_dict
from dreamllm.errors import ConfigError
from dreamllm.models.trainable import LoraConfig, Trainable
from dreamllm.recipes import find_recipe
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.plan.documents import DocumentShape
from dreamllm.train.plan.memory import (
    AVERAGE,
    CONTEXT_BYTES,
    GATHERED,
    GIB,
    MOMENTS,
    RESERVE,
    WEIGHTS_FROZEN,
    WEIGHTS_TRAINED,
    Hardware,
)
from dreamllm.train.plan.plan import Plan, plan
from dreamllm.train.plan.trace import GRADIENTS, WEIGHT_COPIES
from dreamllm.train.run_config import OptimConfig, RunConfig

DOCUMENT = DocumentShape(text_tokens=20, images_read=1, images_drawn=1)
# By hand: tables of 508 rows, three layers, norms; a linear layer in, eight queries, a linear layer out.
LANGUAGE_MODEL = 2 * 508 * 64 + 3 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64
CONNECTORS = (32 * 64 + 64) + 8 * 64 + 64 * 24


def config(**changes: Any) -> RunConfig:
    given: dict[str, Any] = {
        "model": Path("model"),
        "train": Trainable(language_model=True),
        "documents_per_step": 16,
        "row_length": 128,
        "rows_per_micro_batch": 4,
        **changes,
    }
    objective = DreamLLMObjectiveConfig(**given)
    return RunConfig(name="tiny", objective=objective, steps=100, optim=OptimConfig(lr=1e-3))


def make(run: RunConfig, **hardware: Any) -> Plan:
    return plan(run, SHAPES, hardware=Hardware(**hardware), document=DOCUMENT)


def test_weights_gradients_and_moments_are_those_of_the_parameters() -> None:
    made = make(replace(config(), ema_decay=0.999))

    trained = LANGUAGE_MODEL + CONNECTORS
    frozen = sum(part.num_parameters for part in made.parts) - trained
    assert sum(part.num_trained for part in made.parts) == trained
    assert made.memory[WEIGHTS_TRAINED] == made.memory[GRADIENTS] == made.memory[AVERAGE] == 4 * trained
    assert made.memory[MOMENTS] == 8 * trained
    assert made.memory[WEIGHTS_FROZEN] == 4 * frozen
    assert made.total_bytes == sum(made.memory.values())


def test_in_stage_one_connectors_and_bracket_rows_alone_have_moments() -> None:
    made = make(config(train=Trainable(special_token_rows=True)))

    assert made.memory[MOMENTS] == 8 * (CONNECTORS + 2 * 4 * 64)


def test_sharding_divides_the_language_model_its_gradients_and_moments() -> None:
    run = config(documents_per_step=64)
    whole, divided = make(run, gpus=4), make(run, gpus=4, sharding="full")

    for name in (WEIGHTS_TRAINED, MOMENTS, GRADIENTS):
        assert divided.memory[name] == whole.memory[name] // 4
    assert divided.memory[WEIGHTS_FROZEN] == whole.memory[WEIGHTS_FROZEN]  # picture models stay whole
    assert divided.memory[GATHERED] == 2 * 4 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64)


def test_a_frozen_language_model_is_divided_too() -> None:
    stage1 = config(train=Trainable(special_token_rows=True))

    whole, divided = make(stage1, gpus=4), make(stage1, gpus=4, sharding="full")

    spared = whole.memory[WEIGHTS_FROZEN] - divided.memory[WEIGHTS_FROZEN]
    assert spared == 4 * LANGUAGE_MODEL - LANGUAGE_MODEL


def test_the_device_keeps_its_share() -> None:
    made = make(config())

    of_a_pass = sum(
        size
        for name, size in made.memory.items()
        if name not in (WEIGHTS_TRAINED, WEIGHTS_FROZEN, MOMENTS, RESERVE)
    )
    assert made.memory[RESERVE] == CONTEXT_BYTES + round(0.05 * of_a_pass)


def test_time_is_flops_over_the_rate_that_is_reached() -> None:
    made = make(config(), peak_tflops=2.0, utilisation=0.5)

    # 16 documents of 2 + 20 + 18 + 10 positions, in passes of 4 x 128
    assert made.flops_per_step == pytest.approx(sum(made.flops.values()) * 16 * 50 / 512)
    assert made.hours == pytest.approx(100 * made.flops_per_step / 1e12 / 3600)


def test_more_gpus_compute_the_same_in_less_time() -> None:
    one, four = make(config(documents_per_step=64)), make(config(documents_per_step=64), gpus=4)

    assert four.flops_per_step == pytest.approx(one.flops_per_step)
    assert four.hours == pytest.approx(one.hours / 4)


def test_a_plan_that_fits_gives_no_advice_but_says_what_checkpointing_would_change() -> None:
    made = make(config())

    other = make(config(gradient_checkpointing=True))
    assert (made.fits, made.advice, made.gpus_if_sharded) == (True, (), None)
    assert made.checkpointing.overrides == ("objective.gradient_checkpointing=true",)
    assert made.checkpointing.total_bytes == other.total_bytes < made.total_bytes
    assert other.checkpointing.total_bytes == made.total_bytes


def test_advice_lowers_memory_step_by_step_until_it_fits_and_holds_when_it_is_followed() -> None:
    run = config(documents_per_step=64, rows_per_micro_batch=16, noises_per_image=2)
    least = make(
        config(documents_per_step=64, rows_per_micro_batch=4, gradient_checkpointing=True)
    ).total_bytes

    made = make(run, gpu_memory_gib=least / GIB)

    sizes = [made.total_bytes, *(change.total_bytes for change in made.advice)]
    assert not made.fits
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= least < sizes[-2]
    names = [each.split("=")[0] for each in made.advice[-1].overrides]
    assert len(names) == len(set(names))
    followed = load_config(RunConfig, to_dict(run), made.advice[-1].overrides)
    assert make(followed).total_bytes == sizes[-1]


def test_where_weights_alone_are_too_large_adapters_are_offered_and_sharding_is_counted() -> None:
    size = {"hidden_size": 4096, "intermediate_size": 8192, "num_attention_heads": 32}
    wide = replace(SHAPES, language_model={**SHAPES.language_model, **size})
    weights = 3 * (4 * 4096 * 4096 + 3 * 4096 * 8192)  # 7.5 GiB with gradients and moments

    made = plan(config(), wide, hardware=Hardware(gpu_memory_gib=7), document=DOCUMENT)

    first = made.advice[0]
    assert first.overrides == (
        "objective.train.language_model=false",
        "objective.train.language_model_lora={}",
    )
    assert first.total_bytes < made.total_bytes - 0.9 * 12 * weights  # gradients and moments are gone
    assert first.total_bytes < 7 * GIB
    assert made.gpus_if_sharded == 2


def test_a_device_that_is_full_by_itself_is_helped_by_nothing() -> None:
    made = make(config(gradient_checkpointing=True), gpu_memory_gib=0.5)

    assert not made.fits
    assert made.gpus_if_sharded is None


def test_adapters_are_the_parameters_that_train() -> None:
    pytest.importorskip("peft")
    adapted = Trainable(language_model_lora=LoraConfig(rank=2))

    made = make(config(train=adapted))

    # rank times the widths of both sides: four square projections, three between 64 and 96
    adapters = 3 * 2 * (4 * (64 + 64) + 3 * (64 + 96))
    assert made.memory[MOMENTS] == 8 * (CONNECTORS + adapters)
    assert made.memory[GRADIENTS] == 4 * (CONNECTORS + adapters)


@pytest.mark.parametrize(("kind", "scales"), [("int8", "row"), ("nf4", "64 weights")])
def test_quantised_weights_are_counted_packed_with_their_scales(kind: str, scales: str) -> None:
    stage1 = config(train=Trainable())

    whole, packed = make(stage1), make(replace(stage1, objective=replace(stage1.objective, quantize=kind)))

    weights = 3 * (4 * 64 * 64 + 3 * 64 * 96)
    rows = 3 * (4 * 64 + 2 * 96 + 64)
    packed_bytes = weights + 4 * rows if scales == "row" else weights / 2 + 4 * weights / 64
    assert whole.memory[WEIGHTS_FROZEN] - packed.memory[WEIGHTS_FROZEN] == 4 * weights - packed_bytes


def test_quantised_weights_are_not_copied_for_a_pass_in_sixteen_bits() -> None:
    stage1 = replace(config(train=Trainable()), precision="bfloat16")

    whole, packed = make(stage1), make(replace(stage1, objective=replace(stage1.objective, quantize="nf4")))

    weights = 3 * (4 * 64 * 64 + 3 * 64 * 96)
    assert whole.own_peaks[WEIGHT_COPIES] - packed.own_peaks[WEIGHT_COPIES] >= 0.9 * 2 * weights


def test_a_run_that_is_no_stage_of_dreamllm_is_an_error() -> None:
    run = load_config(RunConfig, find_recipe("tiny/vae"))

    with pytest.raises(ConfigError, match=r"trains a vae.*such as dreamllm-7b/stage1"):
        make(run)


@pytest.mark.parametrize("wrong", [{"gpus": 0}, {"gpu_memory_gib": 0.0}, {"utilisation": 1.5}])
def test_hardware_that_cannot_be_meant_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be meant"):
        Hardware(**wrong)
