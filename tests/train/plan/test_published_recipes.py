"""The recipes of DreamLLM-7B say what the paper and its released configuration say."""

from typing import Any

import pytest

from dreamllm.config import load_config
from dreamllm.recipes import find_recipe
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.plan.documents import mean_document, source_shapes
from dreamllm.train.plan.shapes import shapes_of_parts
from dreamllm.train.run_config import RunConfig

# Peak rate, global batch, documents of an epoch, epochs, weights of the two losses.
PAPER = {
    "stage1": (2e-3, 8 * 128, 558_128 + 8_000_000 + 11_000_000 + 11_000_000, 1, (1, 10)),
    "stage2": (2e-5, 8 * 128, 4_000_000, 1, (1, 10)),
    "stage3": (4e-5, 8 * 128, 120_000, 3, (1, 10)),
}
RELEASED = {
    "stage1-creation-released": (2e-3, 16 * 128, 60_000_000, 1, (0, 1)),
    "stage1-comprehension-released": (2e-3, 16 * 128, 74_088_128, 1, (1, 0)),
    "stage2-released": (2e-5, 16 * 128, 17_000_000, 1, (1, 10)),
    "stage3-released": (4e-5, 16 * 128, 665_298 + 600_000 + 20_231, 1, (1, 10)),
}
ALL = PAPER | RELEASED


def load(name: str) -> tuple[RunConfig, DreamLLMObjectiveConfig]:
    config = load_config(RunConfig, find_recipe(f"dreamllm-7b/{name}"))
    assert isinstance(config.objective, DreamLLMObjectiveConfig)
    return config, config.objective


@pytest.mark.parametrize("name", ALL)
def test_hyperparameters_are_the_published_ones(name: str) -> None:
    lr, batch, documents, epochs, weights = ALL[name]

    config, objective = load(name)

    optim = config.optim
    assert (optim.lr, optim.weight_decay, optim.warmup_ratio, optim.schedule) == (lr, 0.0, 0.003, "cosine")
    assert (optim.betas, optim.clip_norm) == ((0.9, 0.999), 1.0)
    assert (objective.documents_per_step, objective.row_length) == (batch, 2048)
    assert config.steps == pytest.approx(epochs * documents / batch, abs=1)
    assert (objective.next_token_weight, objective.denoising_weight) == weights
    assert objective.condition_dropout == 0.0


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("stage1", {"special_token_rows", "visual_projector", "dream_queries", "condition_projector"}),
        ("stage2", {"language_model", "visual_projector", "dream_queries", "condition_projector"}),
        ("stage3", {"language_model", "visual_projector", "dream_queries", "condition_projector"}),
        ("stage1-creation-released", {"special_token_rows", "dream_queries", "condition_projector"}),
        ("stage1-comprehension-released", {"special_token_rows", "visual_projector"}),
    ],
)
def test_what_trains_is_what_the_paper_trains(name: str, trained: set[str]) -> None:
    _, objective = load(name)

    train = objective.train
    assert {field for field in train.__slots__ if getattr(train, field)} == trained


def test_the_parts_are_those_of_the_paper(tmp_path: Any) -> None:
    _, objective = load("stage1")
    assert objective.parts is not None

    shapes = shapes_of_parts(objective.parts, tmp_path)

    config = shapes.config
    assert (config.num_dream_queries, config.select_layer, config.post_layernorm) == (64, -2, False)
    assert (config.visual_projector, config.condition_projector) == ("linear", "linear")
    assert shapes.language_model["max_position_embeddings"] == objective.row_length
    assert load("stage1-creation-released")[1].parts == objective.parts


def test_pairs_of_stage_one_are_read_and_drawn_equally_often() -> None:
    _, objective = load("stage1")

    mean = mean_document(source_shapes(objective, seed=0))

    assert mean.images_read == pytest.approx(0.5)
    assert mean.images_drawn == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "corpora"),
    [
        ("stage1", {"llava_pretrain": 558_128, "blip_laion": 8e6, "laion400m": 11e6, "laion_coco": 11e6}),
        ("stage2", {"mmc4_core": 2e6, "blip_laion": 2e6}),
        ("stage3", {"llava_instruct": 80e3, "instruct_mmc4": 20e3, "instruct_blip_laion": 20e3}),
    ],
)
def test_corpora_weigh_as_many_documents_as_the_paper_took(name: str, corpora: dict[str, float]) -> None:
    _, objective = load(name)

    shares: dict[str, float] = {}
    for source in source_shapes(objective, seed=0):
        corpus = source.source.split("/")[1]
        shares[corpus] = shares.get(corpus, 0.0) + source.share
        assert source.origin == "corpus"
    expected = {corpus: size / sum(corpora.values()) for corpus, size in corpora.items()}
    assert shares == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_newer_parts_go_through_the_same_three_stages(stage: str) -> None:
    config = load_config(RunConfig, find_recipe(f"qwen3-siglip2-sana/{stage}"))

    objective = config.objective
    assert isinstance(objective, DreamLLMObjectiveConfig)
    assert objective.train.language_model == (stage != "stage1")
    assert objective.condition_dropout == 0.1
