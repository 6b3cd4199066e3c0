"""Every kind of run that may be spread over ranks takes the same steps on two of them as on one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.objectives import test_jam
from tests.train.objectives.test_jam import SIZES, image_tokenizer, parents
from tests.train.two_ranks import on_ranks

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.errors import ConfigError
from dreamllm.fusion.config import CrossOptions, FusionConfig
from dreamllm.models.trainable import LoraConfig, Trainable
from dreamllm.runtime.distributed import Ranks, joined, ranks_of
from dreamllm.runtime.seeding import seed_everything
from dreamllm.train.objectives import language_model
from dreamllm.train.objectives.configs import (
    ClipObjectiveConfig,
    DreamLLMObjectiveConfig,
    FuseConfig,
    JamObjectiveConfig,
    LanguageModelObjectiveConfig,
    ScenePhase,
)
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.objectives.jam import JamObjective
from dreamllm.train.objectives.language_model import LanguageModelObjective
from dreamllm.train.run_config import OptimConfig, ParallelConfig, RunConfig
from dreamllm.train.run_state import Run
from dreamllm.train.sharding import decoder_layers, shardable
from dreamllm.train.step import optimizer_step

__all__ = ["image_tokenizer", "parents"]  # fixtures

KINDS = {"draw_pair": 1.0, "read_pair": 0.5, "text_vqa": 2.0}
PICTURES = WorldSourceConfig(documents=KINDS, num_objects=(1,))
TWO = Ranks(rank=0, size=2, local_rank=0)


def a_run(objective: Any, **changes: Any) -> RunConfig:
    optim = OptimConfig(lr=1e-3, warmup_ratio=0.0, clip_norm=0.5)
    return RunConfig(name="any", objective=objective, steps=3, optim=optim, device="cpu", **changes)


def dreamllm(parts: PartsConfig, train: Trainable, **changes: Any) -> DreamLLMObjectiveConfig:
    sizes: dict[str, Any] = {"documents_per_step": 3, "row_length": 320, "rows_per_micro_batch": 1}
    phases = (PhaseConfig(sources=(PICTURES,)),)
    return DreamLLMObjectiveConfig(parts=parts, train=train, phases=phases, **{**sizes, **changes})


def built(chosen: Any) -> Any:
    seed_everything(8)
    match chosen:
        case DreamLLMObjectiveConfig():
            return DreamLLMObjective(chosen, steps=3, seed=8)
        case JamObjectiveConfig():
            return JamObjective(chosen, steps=3, seed=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "TOKENIZER_DOCUMENTS", 28)
        return LanguageModelObjective(chosen, steps=3, seed=8)


def steps(config: RunConfig) -> list[list[float]]:
    """Loss and gradient norm of three steps."""
    ranks = ranks_of()
    with joined(ranks):
        run = Run.start(config, built(config.objective), torch.device("cpu"), ranks)
        results = [
            optimizer_step(
                run.objective,
                run.optimizer,
                run.objective.data[step],
                step=step,
                seed=1,
                device=run.device,
                clip_norm=0.5,
                precision=config.precision,
                ranks=ranks,
                losses=run.losses,
                nothing=run.nothing,
            )
            for step in range(3)
        ]
    return [[result.loss, result.grad_norm] for result in results]


def assert_alike(config: RunConfig, tolerance: float = 1e-5) -> None:
    alone = steps(replace(config, parallel=ParallelConfig()))
    both = on_ranks(2, steps, config)

    assert both[0] == both[1]
    for found, expected in zip(both[0], alone, strict=True):
        assert found == pytest.approx(expected, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["full", "none"])
def test_stage_one(parts: PartsConfig, shard: Any) -> None:
    chosen = dreamllm(parts, Trainable(special_token_rows=True), gradient_checkpointing=True)

    assert_alike(a_run(chosen, parallel=ParallelConfig(shard=shard, reshard_after_forward=shard == "full")))


@pytest.mark.slow
def test_adapters_and_a_whole_denoiser(parts: PartsConfig) -> None:
    adapters = Trainable(
        language_model_lora=LoraConfig(rank=2), image_decoder_lora=LoraConfig(rank=2), special_token_rows=True
    )
    assert_alike(a_run(dreamllm(parts, adapters)))
    assert_alike(a_run(dreamllm(parts, Trainable(language_model=True, image_decoder=True))))


@pytest.mark.slow
def test_bfloat16_parameters_take_nearly_the_same_steps(parts: PartsConfig) -> None:
    chosen = dreamllm(parts, Trainable(language_model=True))
    parallel = ParallelConfig(param_dtype="bfloat16", cast_frozen=True)

    exact = steps(a_run(chosen))
    both = on_ranks(2, steps, a_run(chosen, parallel=parallel, precision="bfloat16"))

    for found, expected in zip(both[0], exact, strict=True):
        assert found == pytest.approx(expected, rel=0.03)
        assert found != expected


@pytest.mark.slow
def test_jam_of_one_tower_and_of_two(image_tokenizer: Path, parents: tuple[Path, Path]) -> None:
    parent = replace(SIZES, image_tokenizer=image_tokenizer)
    mixed = PhaseConfig(sources=(PICTURES,))
    assert_alike(a_run(test_jam.config(parent=parent, phases=(mixed,), z_weight=1e-3)))
    for skips in (False, True):
        fusion = FusionConfig(method="cross", cross=CrossOptions(text_skips_images=skips))
        both = FuseConfig(text_model=parents[0], image_model=parents[1], fusion=fusion)
        assert_alike(a_run(test_jam.config(fuse=both, phases=(mixed,), image_tower_lr_scale=0.0)))


@pytest.mark.slow
def test_the_language_model(language_model_config: LanguageModelObjectiveConfig) -> None:
    assert_alike(a_run(replace(language_model_config, documents_per_step=3, rows_per_micro_batch=1)))


def test_what_cannot_train_on_many_ranks_says_so(parts: PartsConfig) -> None:
    clip = ClipObjectiveConfig(phases=(ScenePhase(until=1.0, num_objects=(1,)),))
    stage = a_run(dreamllm(parts, Trainable(language_model=True)))
    objective = built(stage.objective)

    with pytest.raises(ConfigError, match=r"'clip' is started on 2 ranks, expected one: only dreamllm, jam"):
        shardable(object(), a_run(clip), TWO)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision is 'float16' on 2 ranks"):
        shardable(objective, replace(stage, precision="float16"), TWO)
    with pytest.raises(ConfigError, match=r"parallel\.replicas is 3 on 2 ranks, expected a divisor"):
        shardable(objective, replace(stage, parallel=ParallelConfig(shard="hybrid", replicas=3)), TWO)
    assert shardable(objective, stage, TWO) is objective


def test_the_layers_are_those_of_the_language_model_or_of_both_towers(
    parts: PartsConfig, parents: tuple[Path, Path]
) -> None:
    stage = built(dreamllm(parts, Trainable(language_model=True)))
    fusion = FusionConfig(method="cross", cross=CrossOptions())
    towers = built(
        test_jam.config(fuse=FuseConfig(text_model=parents[0], image_model=parents[1], fusion=fusion))
    ).module.language_model.model

    assert decoder_layers(stage.module) == list(stage.module.language_model.model.layers)
    assert decoder_layers(towers) == [*towers.text_tower.layers, *towers.image_tower.layers]
