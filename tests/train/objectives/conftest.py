"""Untrained ingredients at tiny sizes, made and written by the real objectives, and steps to take on them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.runtime.seeding import seed_everything
from dreamllm.train.objectives import language_model
from dreamllm.train.objectives.clip import ClipObjective
from dreamllm.train.objectives.configs import (
    ClipObjectiveConfig,
    LanguageModelObjectiveConfig,
    ScenePhase,
    StableDiffusionObjectiveConfig,
    VaeObjectiveConfig,
)
from dreamllm.train.objectives.language_model import LanguageModelObjective
from dreamllm.train.objectives.objective import Objective
from dreamllm.train.objectives.stable_diffusion import StableDiffusionObjective
from dreamllm.train.objectives.vae import VaeObjective
from dreamllm.train.optim import build_optimizer
from dreamllm.train.run_config import OptimConfig
from dreamllm.train.step import StepResult, optimizer_step

STEPS = 10
SCENES = (ScenePhase(until=1.0, num_objects=(1, 2)),)

TakeSteps = Callable[..., list[StepResult]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def take_steps() -> TakeSteps:
    """Take the first steps of a run; returns what they did."""

    def take(objective: Objective, num: int = 2, lr: float = 1e-2) -> list[StepResult]:
        optimizer = build_optimizer(objective.module, objective.parameter_groups(), OptimConfig(lr=lr))
        return [
            optimizer_step(
                objective,
                optimizer,
                objective.data[step],
                step=step,
                seed=0,
                device=torch.device("cpu"),
                clip_norm=1.0,
            )
            for step in range(num)
        ]

    return take


@pytest.fixture(scope="session")
def language_model_config() -> LanguageModelObjectiveConfig:
    return LanguageModelObjectiveConfig(
        vocab_size=320,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_length=640,
        row_length=640,
        documents_per_step=4,
        rows_per_micro_batch=2,
        phases=(PhaseConfig(sources=(WorldSourceConfig(documents={"text_vqa": 1.0}, num_objects=(1,)),)),),
        gate_num_objects=(1,),
    )


@pytest.fixture(scope="session")
def make_language_model(
    language_model_config: LanguageModelObjectiveConfig,
) -> Callable[[], LanguageModelObjective]:
    """With a tokenizer that has learned from few documents, which takes no time."""

    def make() -> LanguageModelObjective:
        seed_everything(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(language_model, "TOKENIZER_DOCUMENTS", 28)
            return LanguageModelObjective(language_model_config, steps=STEPS, seed=1)

    return make


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., VaeObjective]:
    def make(cls: type[VaeObjective] = VaeObjective, **changes: object) -> VaeObjective:
        seed_everything(2)
        config = VaeObjectiveConfig(
            **{
                "block_out_channels": (8, 8, 8, 8),
                "norm_groups": 4,
                "scenes_per_step": 2,
                "phases": SCENES,
                **changes,
            }
        )
        return cls(config, steps=STEPS, seed=2)

    return make


@pytest.fixture(scope="session")
def words_folder(
    tmp_path_factory: pytest.TempPathFactory, make_language_model: Callable[[], LanguageModelObjective]
) -> Path:
    """`language_model` and `tokenizer`; its layers speak up, as those of a trained model do."""
    folder = tmp_path_factory.mktemp("words")
    objective = make_language_model()
    with torch.no_grad():
        for layer in objective.module.model.layers:
            layer.self_attn.o_proj.weight.normal_(0.0, 0.3)
            layer.mlp.down_proj.weight.normal_(0.0, 0.3)
    objective.export(folder)
    return folder


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., ClipObjective]:
    def make(**changes: object) -> ClipObjective:
        seed_everything(3)
        config = ClipObjectiveConfig(
            **{
                "hidden_size": 16,
                "num_layers": 2,
                "num_text_layers": 1,
                "num_heads": 2,
                "scenes_per_step": 3,
                "phases": SCENES,
                **changes,
            }
        )
        return ClipObjective(config, steps=STEPS, seed=3)

    return make


@pytest.fixture(scope="session")
def pictures_folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_vae: Callable[..., VaeObjective],
    make_clip: Callable[..., ClipObjective],
) -> Path:
    """`vae` and `clip`, as their objectives export them."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, objective in (("vae", make_vae()), ("clip", make_clip())):
        (folder / name).mkdir()
        objective.export(folder / name)
    return folder


@pytest.fixture(scope="session")
def make_stable_diffusion(pictures_folder: Path) -> Callable[..., StableDiffusionObjective]:
    def make(**changes: object) -> StableDiffusionObjective:
        seed_everything(4)
        config = StableDiffusionObjectiveConfig(
            **{
                "vae": pictures_folder / "vae",
                "clip": pictures_folder / "clip" / "clip",
                "tokenizer": pictures_folder / "clip" / "tokenizer",
                "block_out_channels": (8, 16),
                "attention_head_dim": 2,
                "norm_groups": 4,
                "scenes_per_step": 2,
                "noises_per_image": 2,
                "phases": SCENES,
                **changes,
            }
        )
        return StableDiffusionObjective(config, steps=STEPS, seed=4)

    return make


@pytest.fixture(scope="session")
def parts(
    tmp_path_factory: pytest.TempPathFactory,
    words_folder: Path,
    pictures_folder: Path,
    make_stable_diffusion: Callable[..., StableDiffusionObjective],
) -> PartsConfig:
    """Stock parts, as the neighbour runs of a family leave them."""
    folder = tmp_path_factory.mktemp("stable_diffusion")
    make_stable_diffusion().export(folder)
    return PartsConfig(
        language_model=str(words_folder / "language_model"),
        tokenizer=str(words_folder / "tokenizer"),
        vision_encoder=str(pictures_folder / "clip" / "clip"),
        image_decoder=str(folder),
        num_dream_queries=2,
        select_layer=-1,
        chat_template="plain_chat",
    )
