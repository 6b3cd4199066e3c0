"""Kinds of runs of JAM at tiny sizes: parents, fused, from a model; each trained a little, and exported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

from dreamllm.checkpoint.jam import load_jam, load_jam_encoder
from dreamllm.checkpoint.self_test import check_self_test
from dreamllm.data.retrieval import build_retriever
from dreamllm.data.retrieval_config import RetrievalConfig
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.document.document import Document, Text
from dreamllm.errors import ConfigError
from dreamllm.fusion.config import CrossOptions, FusionConfig, WidthOptions
from dreamllm.generate.codes import CodeGenerator
from dreamllm.generate.options import GenerationOptions
from dreamllm.models.jam_cross import JamCrossForCausalLM
from dreamllm.runtime.seeding import make_generator, seed_everything
from dreamllm.sequence.cm3 import Cm3Config
from dreamllm.sequence.retrieving import RetrievingEncoder
from dreamllm.train.objectives import jam
from dreamllm.train.objectives.configs import (
    FuseConfig,
    ImageTokenizerObjectiveConfig,
    JamObjectiveConfig,
    JamParentConfig,
    ScenePhase,
)
from dreamllm.train.objectives.image_tokenizer import ImageTokenizerObjective
from dreamllm.train.objectives.jam import JamObjective
from dreamllm.train.step import StepResult

TakeSteps = Callable[..., list[StepResult]]
PICTURES = (PhaseConfig(sources=(WorldSourceConfig(documents={"draw_pair": 1.0}, num_objects=(1,)),)),)
WORDS = (PhaseConfig(sources=(WorldSourceConfig(documents={"encyclopaedia": 1.0}),)),)
SIZES = JamParentConfig(
    num_codes=8,
    codes_per_picture=16,
    vocab_size=320,
    hidden_size=32,
    num_layers=3,
    num_heads=2,
    intermediate_size=32,
    max_length=640,
)


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jam, "GATE_DOCUMENTS", 3)


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed_everything(1)
    config = ImageTokenizerObjectiveConfig(
        picture_px=16,
        block_out_channels=(8, 8, 8),
        latent_channels=8,
        norm_groups=2,
        num_codes=8,
        code_width=4,
        scenes_per_step=2,
        phases=(ScenePhase(until=1.0, num_objects=(1,)),),
    )
    path = tmp_path_factory.mktemp("vq")
    ImageTokenizerObjective(config, steps=2, seed=0).export(path)
    return path


def config(**changes: object) -> JamObjectiveConfig:
    values: dict[str, object] = {
        "phases": PICTURES,
        "documents_per_step": 3,
        "row_length": 640,
        "rows_per_micro_batch": 1,
    }
    return JamObjectiveConfig(**{**values, **changes})  # type: ignore[arg-type]


def make(chosen: JamObjectiveConfig) -> JamObjective:
    seed_everything(4)
    return JamObjective(chosen, steps=10, seed=1)


@pytest.fixture(scope="module")
def parents(image_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("image")
    make(config(parent=SIZES, phases=WORDS)).export(folders[0])
    make(config(parent=replace(SIZES, image_tokenizer=image_tokenizer))).export(folders[1])
    return folders


def fused(parents: tuple[Path, Path], fusion: FusionConfig, **changes: object) -> JamObjective:
    both = FuseConfig(text_model=parents[0], image_model=parents[1], fusion=fusion)
    return make(config(fuse=both, **changes))


def test_a_text_parent_learns_words_alone_and_is_a_stock_llama(take_steps: TakeSteps, tmp_path: Path) -> None:
    objective = make(config(parent=SIZES, phases=WORDS, gate_text=0.5, gate_num_objects=(1,)))

    first, _ = take_steps(objective)
    objective.sample(tmp_path, 0)
    gate = objective.gate()
    objective.export(tmp_path / "model")

    assert first.counts["codes"] == 0
    assert first.counts["text"] > 0
    assert not gate.passed
    assert set(gate.metrics) == {"text"}
    assert (tmp_path / "documents.html").is_file()
    stock = LlamaForCausalLM.from_pretrained(tmp_path / "model" / "language_model")
    assert stock.config.vocab_size == objective.module.config.first_code + 8


def test_an_image_parent_learns_codes_draws_and_is_judged(
    image_tokenizer: Path, take_steps: TakeSteps, tmp_path: Path
) -> None:
    parent = replace(SIZES, image_tokenizer=image_tokenizer, qk_norm=True)
    objective = make(
        config(
            parent=parent, cm3=Cm3Config(probability=1.0), gate_draw=0.5, gate_prompt="request", z_weight=1e-5
        )
    )

    first, second = take_steps(objective)
    objective.sample(tmp_path, 0)
    gate = objective.gate()

    assert first.counts["codes"] == 3 * 16
    assert first.counts["z"] == first.counts["text"] + first.counts["codes"]
    assert second.terms["codes"] < first.terms["codes"] + 1
    assert set(gate.metrics) == {"draw", "draw_all_correct"}
    assert (tmp_path / "pictures.png").is_file()
    assert isinstance(objective.module.language_model, Qwen3ForCausalLM)


def test_the_counts_said_beforehand_are_those_of_the_losses(image_tokenizer: Path) -> None:
    objective = make(config(parent=replace(SIZES, image_tokenizer=image_tokenizer), z_weight=1e-5))
    [batch, *_] = objective.data[0]

    terms = objective.losses(batch, make_generator(0))

    assert {name: term.count for name, term in terms.items()} == dict(objective.counts(batch))


def test_terms_are_the_cross_entropy_and_the_log_partition_of_the_stock_logits(image_tokenizer: Path) -> None:
    objective = make(config(parent=replace(SIZES, image_tokenizer=image_tokenizer), z_weight=1e-5))
    [batch, *_] = objective.data[0]

    terms = objective.losses(batch, make_generator(0))

    with torch.no_grad():
        logits = objective.module.language_model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask(),
            position_ids=batch.position_ids,
        ).logits.flatten(0, 1)[batch.label_positions]
    losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    is_code = batch.labels >= objective.module.config.first_code
    assert_close(terms["codes"].sum.detach(), losses[is_code].sum(), rtol=1e-4, atol=1e-4)
    assert_close(terms["text"].sum.detach(), losses[~is_code].sum(), rtol=1e-4, atol=1e-4)
    assert_close(terms["z"].sum.detach(), logits.logsumexp(-1).square().sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fusion",
    [
        FusionConfig(method="uniform"),
        FusionConfig(method="width", width=WidthOptions(norm="grouped")),
        FusionConfig(method="cross"),
        FusionConfig(method="cross", cross=CrossOptions(text_skips_images=True)),
    ],
    ids=["uniform", "width", "cross", "jam-x"],
)
def test_a_fused_model_trains_and_goes_on_from_its_folder(
    parents: tuple[Path, Path], fusion: FusionConfig, take_steps: TakeSteps, tmp_path: Path
) -> None:
    objective = fused(parents, fusion)

    take_steps(objective)
    objective.export(tmp_path)
    again = make(config(model=tmp_path))

    [batch, *_] = objective.data[3]
    with torch.no_grad():
        before, after = objective.module.eval().hidden_states(batch), again.module.eval().hidden_states(batch)
    assert torch.equal(before, after)
    model = load_jam(tmp_path)
    assert check_self_test(tmp_path, model, load_jam_encoder(tmp_path, model)) in (None, [], ())
    take_steps(again, num=1)


def test_a_frozen_text_tower_keeps_its_weights_and_the_rest_learns(
    parents: tuple[Path, Path], take_steps: TakeSteps
) -> None:
    objective = fused(
        parents, FusionConfig(method="cross"), text_tower_lr_scale=0.0, image_tower_lr_scale=0.5
    )
    model = objective.module.language_model
    assert isinstance(model, JamCrossForCausalLM)
    before = {name: value.clone() for name, value in model.named_parameters()}

    take_steps(objective)

    moved = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert not {name for name in moved if "text_tower" in name or "embed_tokens.text" in name}
    assert any("image_tower" in name for name in moved)
    assert any("reads" in name for name in moved)
    scales = {group.name: group.lr_scale for group in objective.parameter_groups()}
    assert scales["image_tower_matrices"] == 0.5
    assert scales["cross_matrices"] == 1.0


def test_a_run_needs_one_place_to_start_from() -> None:
    with pytest.raises(ConfigError, match="nothing is given; expected one of"):
        config()
    with pytest.raises(ConfigError, match="model and parent is given"):
        config(parent=SIZES, model=Path("x"))
    with pytest.raises(ConfigError, match=r"scaled by \(-1, 1.0\)"):
        config(parent=SIZES, text_tower_lr_scale=-1)


def test_documents_become_codes_on_the_cpu_wherever_the_model_is(image_tokenizer: Path) -> None:
    objective = make(config(parent=replace(SIZES, image_tokenizer=image_tokenizer)))
    before = objective.data[0]

    objective.to(torch.device("meta"))  # where nothing can be computed

    for one, other in zip(before, objective.data[0], strict=True):
        assert torch.equal(one.input_ids, other.input_ids)


def test_retrieved_documents_stand_before_each_document_in_training_and_in_prompts(
    image_tokenizer: Path, take_steps: TakeSteps
) -> None:
    source = WorldSourceConfig(documents={"draw_pair": 1.0}, num_objects=(1,))
    retrieval = RetrievalConfig(source=source, num_documents=20, num_retrieved=(2,))
    plain = config(parent=replace(SIZES, image_tokenizer=image_tokenizer))
    with_context = replace(plain, retrieval=retrieval)

    short, long = (make(chosen).data[0] for chosen in (plain, with_context))
    take_steps(make(with_context), num=1)

    def lengths(batches: object) -> list[int]:
        return sorted(int((batch.document_index == n).sum()) for batch in batches for n in (1, 2, 3))  # type: ignore[attr-defined]

    assert sum(lengths(long)) > sum(lengths(short)) + 3 * 2 * 16  # two pictures more, for each of three
    objective = make(with_context)
    reader = RetrievingEncoder(
        encoder=objective.encoder,
        retriever=build_retriever(retrieval),
        room=objective.encoder.tokens.picture_length,
    )
    prompt = Document(parts=(Text(text="A red circle."),))
    alone, after = objective.encoder.encode_prompt(prompt), reader.encode_prompt(prompt)
    assert after.input_ids[-len(alone.input_ids) + 1 :].tolist() == alone.input_ids[1:].tolist()
    drawn = CodeGenerator(objective.module, reader).generate([prompt], GenerationOptions(mode="image"))
    assert len(drawn[0].images) == 1
