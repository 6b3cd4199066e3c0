from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.checkpoint.pretrained import load_model
from dreamllm.checkpoint.store import latest, load_run, save_run
from dreamllm.config import load_config, to_dict
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.document.document import Document, Text
from dreamllm.errors import ConfigError, LayoutError
from dreamllm.models.lora import lora_parameters
from dreamllm.models.trainable import LoraConfig, Trainable
from dreamllm.runtime.seeding import make_generator, seed_everything
from dreamllm.sequence.batch import Batch
from dreamllm.train.objectives import dreamllm
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.run_config import OptimConfig, RunConfig
from dreamllm.train.run_state import Run
from dreamllm.train.step import StepResult, optimizer_step

STAGE_I = Trainable(special_token_rows=True)
STAGE_II = Trainable(language_model=True)
ADAPTERS = Trainable(
    special_token_rows=True,
    language_model_lora=LoraConfig(rank=2, dropout=0.1),
    image_decoder_lora=LoraConfig(rank=2),
)
BASES = pytest.mark.parametrize("quantize", [None, "int8", "nf4"])
PAIRS = {"read_pair": 1.0, "draw_pair": 1.0}

TakeSteps = Callable[..., list[StepResult]]


def build(*, documents: dict[str, float] | None = None, **changes: object) -> DreamLLMObjective:
    source = WorldSourceConfig(documents=documents or PAIRS, num_objects=(1,))
    settings: dict[str, object] = {
        "phases": (PhaseConfig(sources=(source,)),),
        "documents_per_step": 6,
        "row_length": 320,
        "rows_per_micro_batch": 2,
        **changes,
    }
    seed_everything(8)
    return DreamLLMObjective(DreamLLMObjectiveConfig(**settings), steps=10, seed=8)


def learned(module: nn.Module) -> set[str]:
    """Names of the parts in which a gradient is anywhere above zero."""
    return {
        name.split(".")[0]
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {
        name.split(".")[0]
        for name, value in module.state_dict().items()
        if not torch.equal(before[name], value)
    }


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_rows_may_be_longer_than_the_context_and_documents_may_not(parts: PartsConfig) -> None:
    objective = build(parts=parts, documents={"story": 1.0}, documents_per_step=16, row_length=8000)

    [batch] = objective.data[0]

    assert batch.input_ids.shape[0] == 1
    assert batch.input_ids.shape[1] > 640  # the context of the fixture's language model
    with pytest.raises(LayoutError, match="at most 640 are expected"):
        objective.encoder.encode(Document(parts=(Text(text="a b c d e f g h " * 100),), id="long"))


def test_stage_one_moves_connectors_and_bracket_rows_and_nothing_frozen(
    parts: PartsConfig, take_steps: TakeSteps
) -> None:
    stage = build(parts=parts, train=STAGE_I)
    before = state(stage.module)

    results = take_steps(stage)

    trained = {"visual_projector", "dream_queries", "condition_projector", "special_token_rows"}
    assert learned(stage.module) == trained
    assert moved(before, stage.module) == trained
    assert all(sum(result.counts[term] for result in results) > 0 for term in ("next_token", "denoising"))
    frozen = (stage.module.language_model, stage.module.vision_encoder, stage.module.image_decoder)
    assert all(parameter.grad is None for part in frozen for parameter in part.parameters())


def test_stage_two_moves_the_language_model_too_and_neither_eye_nor_brush(
    parts: PartsConfig, take_steps: TakeSteps
) -> None:
    stage = build(parts=parts, train=STAGE_II)
    before = state(stage.module)

    take_steps(stage)

    trained = {"visual_projector", "dream_queries", "condition_projector", "language_model"}
    assert learned(stage.module) == trained
    assert moved(before, stage.module) == trained


def test_bracket_rows_of_stage_one_are_rows_of_the_table_in_stage_two(
    parts: PartsConfig, take_steps: TakeSteps, tmp_path: Path
) -> None:
    """What connectors have aligned to must still be there when the language model begins to train."""
    first = build(parts=parts, train=STAGE_I, documents={"read_pair": 1.0, "story": 1.0}, row_length=640)
    old = first.module.language_model.get_input_embeddings().weight.detach().clone()
    take_steps(first)
    rows = first.module.special_token_rows
    assert rows is not None
    [batch, *_] = first.data[4]
    first.export(tmp_path / "model")

    second = build(model=tmp_path / "model", train=STAGE_II)

    table = second.module.language_model.get_input_embeddings().weight.detach()
    assert second.module.special_token_rows is None
    assert torch.equal(table[rows.ids], rows.embedding_rows)
    assert rows.head_rows is not None
    assert torch.equal(second.module.language_model.lm_head.weight[rows.ids], rows.head_rows)
    changed = (table != old).any(1).nonzero().flatten()
    assert set(changed.tolist()) == set(rows.ids.tolist())
    assert len(changed) == 4
    with torch.no_grad():
        assert_close(
            second.module.logits(second.module.hidden_states(batch)),
            first.module.logits(first.module.hidden_states(batch)),
        )


def test_an_exported_stage_is_the_model_that_was_trained(
    parts: PartsConfig, take_steps: TakeSteps, tmp_path: Path
) -> None:
    stage = build(parts=parts, train=STAGE_II)
    take_steps(stage, num=1)
    [batch, *_] = stage.data[4]

    stage.export(tmp_path / "model")

    loaded = load_model(tmp_path / "model")
    with torch.no_grad():
        ours, theirs = (
            {name: term.sum.item() for name, term in model(batch, make_generator(0)).items()}
            for model in (stage.module, loaded)
        )
    assert theirs == pytest.approx(ours, rel=1e-5)


def test_terms_count_supervised_tokens_and_learned_pictures(parts: PartsConfig) -> None:
    """A read pair learns words about a picture, a draw pair one picture and no words."""
    reading = build(parts=parts, documents={"read_pair": 1.0}).data[0]
    drawing = build(parts=parts, documents={"draw_pair": 1.0})

    assert sum(batch.num_targets for batch in reading) == 0
    assert sum(len(batch.vision_pixels) for batch in reading) == 6
    counts = [drawing.counts(batch) for batch in drawing.data[0]]
    assert sum(count["denoising"] for count in counts) == 6
    assert sum(count["next_token"] for count in counts) == 0
    ids = [name for batch in drawing.data[0] for name in drawing.document_ids(batch)]
    assert sorted(ids) == [f"draw_pair-{index}" for index in range(6)]


def unconditional_targets(stage: DreamLLMObjective, batch: Batch) -> list[bool]:
    """Whether each picture is learned right after BOS and `<dream_start>`, with no word before."""
    ids = batch.input_ids.flatten()
    tokenizer = stage._encoder.tokenizer
    firsts = batch.dream_slots[batch.target_dreams, 0]
    assert (ids[firsts - 1] == tokenizer.special.dream_start).all()
    return (ids[firsts - 2] == tokenizer.bos_id).tolist()


@pytest.mark.parametrize(("dropout", "num_slots"), [(0.0, 6), (1.0, 12)])
def test_pictures_whose_condition_is_dropped_arrive_in_a_sequence_of_their_own(
    parts: PartsConfig, dropout: float, num_slots: int
) -> None:
    """Their document keeps the dream slot, so that its words are read as ever; only the target moves."""
    stage = build(parts=parts, documents={"draw_pair": 1.0}, condition_dropout=dropout)

    batches = stage.data[0]

    are_unconditional = [each for batch in batches for each in unconditional_targets(stage, batch)]
    assert are_unconditional == [dropout == 1.0] * 6
    assert sum(len(batch.dream_slots) for batch in batches) == num_slots


def test_a_share_of_the_conditions_is_dropped_and_always_the_same_ones(parts: PartsConfig) -> None:
    stage, same = (
        build(parts=parts, documents={"draw_pair": 1.0}, condition_dropout=0.5, documents_per_step=30)
        for _ in range(2)
    )

    dropped = [each for batch in stage.data[3] for each in unconditional_targets(stage, batch)]

    assert dropped == [each for batch in same.data[3] for each in unconditional_targets(same, batch)]
    assert len(dropped) == 30
    assert 5 < sum(dropped) < 25


def test_without_packing_every_document_has_its_own_row(parts: PartsConfig) -> None:
    packed, unpacked = build(parts=parts), build(parts=parts, packing=False)

    assert sum(batch.input_ids.shape[0] for batch in unpacked.data[0]) == 6
    assert sum(batch.input_ids.shape[0] for batch in packed.data[0]) < 6
    assert {int(batch.document_index.max()) for batch in unpacked.data[0]} == {1}


def test_the_same_run_starts_from_the_same_whitened_connectors(
    parts: PartsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dreamllm, "WHITENING_PICTURES", 8)
    documents = {"vqa": 1.0, "draw": 1.0}

    first, second, plain = (
        build(parts=parts, whiten=whiten, documents=documents, row_length=640)
        for whiten in (True, True, False)
    )

    assert torch.equal(first.module.visual_projector.weight, second.module.visual_projector.weight)
    assert not torch.equal(first.module.visual_projector.weight, plain.module.visual_projector.weight)


def test_the_gate_measures_answers_and_drawings_and_leaves_training_as_it_was(
    parts: PartsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dreamllm, "GATE_DOCUMENTS", 2)
    stage = build(parts=parts, condition_dropout=0.5, row_length=640, gate_draw=1.0)

    with torch.no_grad():
        result = stage.gate()

    assert {"vqa", "draw_attributes", "draw_all_correct"} <= result.metrics.keys()
    assert all(0 <= value <= 1 for value in result.metrics.values())
    assert not result.passed
    assert stage.module.training
    assert not stage.module.vision_encoder.model.training


def test_connectors_learn_at_their_own_rate_and_matrices_alone_decay(parts: PartsConfig) -> None:
    stage = build(parts=parts, train=replace(STAGE_II, image_decoder=True), connector_lr_scale=3.0)

    groups = {group.name: group for group in stage.parameter_groups()}

    assert {name for name, group in groups.items() if group.lr_scale == 3.0} == {
        "visual_projector",
        "dream_queries",
        "condition_projector",
    }
    assert {name for name, group in groups.items() if group.weight_decay} == {
        "language_model_matrices",
        "image_decoder_matrices",
    }
    grouped = [id(p) for group in groups.values() for p in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in stage.module.parameters() if p.requires_grad}
    assert {id(p) for p in stage.module.image_decoder.unet.parameters()} <= set(grouped)


def test_a_stage_begins_from_a_model_or_from_parts_and_never_from_both(parts: PartsConfig) -> None:
    for start in ({}, {"model": Path("x"), "parts": parts}):
        with pytest.raises(ConfigError, match="either `model`"):
            DreamLLMObjectiveConfig(**start)


def test_adapters_are_chosen_in_a_recipe() -> None:
    recipe = {"model": "x", "quantize": "nf4", "train": {"language_model_lora": {}}}

    config = load_config(DreamLLMObjectiveConfig, recipe, ["train.image_decoder_lora.rank=4"])

    assert config.train == Trainable(language_model_lora=LoraConfig(), image_decoder_lora=LoraConfig(rank=4))
    assert load_config(DreamLLMObjectiveConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="quantised weights cannot learn"):
        load_config(
            DreamLLMObjectiveConfig, {"model": "x", "quantize": "int8", "train": {"language_model": True}}
        )


@BASES
def test_adapters_learn_and_their_base_does_not(
    parts: PartsConfig, take_steps: TakeSteps, quantize: str | None
) -> None:
    need_packages(quantize)
    stage = build(parts=parts, train=ADAPTERS, quantize=quantize)

    take_steps(stage)

    assert learned(stage.module) == {
        "visual_projector",
        "dream_queries",
        "condition_projector",
        "special_token_rows",
        "language_model",
        "image_decoder",
    }
    adapters = {id(parameter) for parameter in lora_parameters(stage.module)}
    for part in (stage.module.language_model, stage.module.image_decoder):
        assert {id(p) for p in part.parameters() if p.grad is not None} <= adapters
    assert all(parameter.grad.abs().sum() > 0 for parameter in lora_parameters(stage.module))
    assert "language_model_lora" in stage.tables()


@BASES
def test_an_export_is_stock_and_computes_what_its_adapters_did(
    parts: PartsConfig, take_steps: TakeSteps, tmp_path: Path, quantize: str | None
) -> None:
    need_packages(quantize)
    stage = build(parts=parts, train=ADAPTERS, quantize=quantize)
    take_steps(stage)
    [batch, *_] = stage.data[4]

    stage.export(tmp_path / "model")

    stage.module.eval()
    loaded = load_model(tmp_path / "model")
    with torch.no_grad():
        states, terms = loaded.hidden_states(batch), loaded(batch, make_generator(0))
        assert_close(states, stage.module.hidden_states(batch), atol=1e-5, rtol=1e-5)
        for name, term in stage.module(batch, make_generator(0)).items():
            assert_close(terms[name].sum, term.sum, atol=1e-5, rtol=1e-5)
    stock = build(parts=parts).module.state_dict()
    assert loaded.state_dict().keys() == stock.keys()
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert not torch.equal(loaded.language_model.model.layers[0].mlp.up_proj.weight, stock[UP_PROJ])


@BASES
def test_a_run_that_was_exported_and_one_that_was_resumed_equal_an_undisturbed_one_to_the_bit(
    parts: PartsConfig, tmp_path: Path, quantize: str | None
) -> None:
    need_packages(quantize)
    objective = DreamLLMObjectiveConfig(
        parts=parts,
        train=ADAPTERS,
        quantize=quantize,
        phases=(PhaseConfig(sources=(WorldSourceConfig(documents=PAIRS, num_objects=(1,)),)),),
        documents_per_step=6,
        row_length=320,
        rows_per_micro_batch=2,
    )
    config = RunConfig(
        name="adapters", objective=objective, steps=10, optim=OptimConfig(lr=1e-2), ema_decay=0.9
    )

    def start() -> Run:
        seed_everything(8)
        return Run.start(config, DreamLLMObjective(objective, steps=10, seed=8), torch.device("cpu"))

    undisturbed, exported, resumed = start(), start(), start()
    advance(undisturbed, 0, 4)
    advance(exported, 0, 2)
    with torch.no_grad(), exported.average.lent():
        exported.objective.export(tmp_path / "model")
    save_run(tmp_path, exported.capture(2))
    advance(exported, 2, 4)
    resumed.restore(load_run(latest(tmp_path)))
    advance(resumed, 2, 4)

    expected = undisturbed.capture(4).tensors
    for run in (exported, resumed):
        found = run.capture(4).tensors
        assert found.keys() == expected.keys()
        for name, tensors in expected.items():
            assert found[name].keys() == tensors.keys()
            assert all(torch.equal(found[name][key], tensors[key]) for key in tensors), name
    saved = {name for name in expected["model"] if name.startswith(("language_model.", "image_decoder."))}
    assert saved
    assert all(".lora_" in name for name in saved)


UP_PROJ = "language_model.model.layers.0.mlp.up_proj.weight"


def advance(run: Run, start: int, end: int) -> None:
    """Steps of a run, without the loop around them."""
    for step in range(start, end):
        optimizer_step(
            run.objective,
            run.optimizer,
            run.objective.data[step],
            step=step,
            seed=0,
            device=run.device,
            clip_norm=1.0,
        )
        run.average.update()


def need_packages(quantize: str | None) -> None:
    """Skip where an optional package is not installed."""
    pytest.importorskip("peft")
    if quantize is not None:
        pytest.importorskip("bitsandbytes" if quantize == "nf4" else "torchao")
