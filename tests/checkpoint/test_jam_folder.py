"""What stands beside the parts of a JAM: its self-test and its card."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny_jam import save_tiny_jam

from dreamllm.checkpoint.card import Stage, facts_of, model_card, report_of, stage_of
from dreamllm.checkpoint.jam import load_jam, load_jam_encoder
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.checkpoint.self_test import FILE, check_self_test, write_self_test
from dreamllm.errors import CheckpointError
from dreamllm.eval.runner import Evaluation
from dreamllm.eval.scores import Row, Score, Table, TaskResult
from dreamllm.eval.subject import EvalOptions

VQ_FILE = "image_tokenizer/diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its self-test."""
    path = save_tiny_jam(tmp_path / "model")
    model = load_jam(path)
    write_self_test(path, model, load_jam_encoder(path, model))
    return path


def faults(folder: Path) -> list[str] | None:
    model = load_jam(folder)
    return check_self_test(folder, model, load_jam_encoder(folder, model))


def test_a_model_passes_its_own_test(folder: Path) -> None:
    stored = json.loads((folder / FILE).read_text())["numbers"]

    assert faults(folder) == []
    assert set(stored) == {
        "text",
        "codes",
        "logit_spread",
        "guidance",
        "latent_spread",
        "latent_slope",
        "reconstruction",
        "picture_spread",
    }
    assert min(map(abs, stored.values())) > 1e-3


def test_a_parent_of_words_alone_has_numbers_of_its_own(tmp_path: Path) -> None:
    path = save_tiny_jam(tmp_path / "words", has_pictures=False)
    model = load_jam(path)

    write_self_test(path, model, load_jam_encoder(path, model))

    assert set(json.loads((path / FILE).read_text())["numbers"]) == {"text", "logit_spread"}
    assert faults(path) == []


@pytest.mark.parametrize(
    ("file", "tensor", "noticed"),
    [
        ("language_model/model", "model.norm.weight", {"text", "codes", "logit_spread"}),
        (VQ_FILE, "encoder.conv_in.weight", {"latent_slope"}),
        (VQ_FILE, "decoder.conv_in.weight", {"picture_spread"}),
        (VQ_FILE, "quantize.embedding.weight", {"picture_spread", "reconstruction"}),
    ],
)
def test_a_part_that_is_no_longer_what_it_was_is_noticed(
    folder: Path, file: str, tensor: str, noticed: set[str]
) -> None:
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    tensors[tensor] = 2.0 * tensors[tensor] + 0.5
    save_file(tensors, path, metadata={"format": "pt"})

    found = faults(folder)

    assert found is not None
    assert noticed <= {line.split()[0] for line in found}


def test_a_model_that_does_not_look_back_is_noticed(folder: Path) -> None:
    model = load_jam(folder)
    with torch.no_grad():
        for name, parameter in model.language_model.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.zero_()

    found = check_self_test(folder, model, load_jam_encoder(folder, model))

    assert found is not None
    assert "guidance changes nothing: the condition does not reach the picture" in found


def test_a_picture_between_two_codes_moves_no_number_of_the_language_model(folder: Path) -> None:
    """Another machine may choose the other of two codes; the numbers of words and codes must not see it."""
    model = load_jam(folder)
    encoder = load_jam_encoder(folder, model)
    assert model.image_tokenizer is not None
    pixels = torch.zeros(1, 3, 16, 16)
    before = int(model.image_tokenizer.encode(pixels)[0, 0])
    other = (before + 1) % model.config.num_codes
    vq_model = model.image_tokenizer.vq_model
    with torch.no_grad():
        vq_model.quant_conv.weight.zero_()
        vq_model.quant_conv.bias.copy_(vq_model.quantize.embedding.weight[other])
    assert set(model.image_tokenizer.encode(pixels)[0].tolist()) == {other}

    found = check_self_test(folder, model, encoder)

    assert found is not None
    assert {line.split()[0] for line in found} <= {"latent_spread", "latent_slope", "reconstruction"}


# ---- the card -----------------------------------------------------------------------------------------


def test_the_card_of_a_fused_model_names_its_parents(tmp_path: Path) -> None:
    sources = {
        "text_model": PartSource(source="owner/words", license="mit"),
        "image_model": PartSource(source="pictures", license="mit"),
        "image_tokenizer": PartSource(source="pictures", license="mit"),
    }
    folder = save_tiny_jam(tmp_path / "fused", sources=sources)

    facts = facts_of(folder, location="owner/fused")
    card = ModelCard(model_card(facts))

    assert [(part.name, part.class_name) for part in facts.parts] == [
        ("language_model", "LlamaForCausalLM"),
        ("image_tokenizer", "VQModel"),
    ]
    for part in facts.parts:
        (file,) = (folder / part.name).glob("*.safetensors")
        assert part.num_parameters == sum(tensor.numel() for tensor in load_file(file).values()) > 0
    assert card.data.to_dict() == {
        "library_name": "dreamllm",
        "pipeline_tag": "any-to-any",
        "tags": ["any-to-any", "jam", "interleaved-generation"],
        "base_model": ["owner/words"],
        "license": "mit",
    }
    assert 'model = JAM.from_pretrained("owner/fused")' in card.content
    assert "| owner/words and pictures | mit |" in card.content
    assert "drawn at 16 x 16 pixels, as 4 codes out of 12" in card.content
    assert "dream queries" not in card.content


def test_the_card_of_a_text_parent_promises_no_pictures(tmp_path: Path) -> None:
    card = ModelCard(model_card(facts_of(save_tiny_jam(tmp_path / "words", has_pictures=False))))

    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["text-generation", "jam"]
    assert "It neither reads nor draws pictures" in card.content
    assert "with pictures" not in card.content


def test_a_stage_of_a_jam_says_what_trained() -> None:
    phase = {"until": 1.0, "sources": [{"kind": "world", "weight": 1.0, "documents": {"facts": 1.0}}]}
    objective = {"kind": "jam", "phases": [phase], "text_tower_lr_scale": 0.0, "image_tower_lr_scale": 1.0}

    stage = stage_of({"name": "fused", "steps": 7, "objective": objective})

    assert stage == Stage(
        name="fused",
        steps=7,
        trained=("language_model", "text_tower frozen"),
        documents=("until 100%: 100% world (facts 100%)",),
    )
    with pytest.raises(CheckpointError, match="is a run of kind 'vae', which is no stage of DreamLLM or JAM"):
        stage_of({"name": "x", "steps": 1, "objective": {"kind": "vae"}})


def test_a_report_shows_perplexities_as_numbers_and_only_the_options_that_were_used() -> None:
    table = Table(
        title="Perplexity",
        columns=("1 object",),
        rows=(Row(label="words", scores=(Score(value=12.345, low=11.0, high=14.5, n=9),)),),
        unit="number",
    )
    evaluation = Evaluation(
        model="m",
        baseline=None,
        options=EvalOptions(),
        judge=1.0,
        num_judge_scenes=2,
        kind="JAM",
        results={"perplexity": TaskResult(tables=(table,))},
        seconds={"perplexity": 1.0},
    )

    report = report_of(json.loads(json.dumps(evaluation.to_json())))

    assert report.tables[0].rows[0].cells == ("12.35 [11, 14.5] n=9",)
    assert "image_temperature 1.0" in report.flags
    assert "num_inference_steps" not in report.flags
