import json
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tests.checkpoint.test_pretrained import WordList
from tests.models.tiny import dreamllm

from dreamllm.checkpoint.card import (
    CardFacts,
    Part,
    Stage,
    facts_of,
    license_of,
    model_card,
    report_of,
    stage_of,
    write_card,
)
from dreamllm.checkpoint.model_folder import PartSource
from dreamllm.checkpoint.pretrained import save_model
from dreamllm.config import load_config, to_dict, to_yaml
from dreamllm.errors import CheckpointError
from dreamllm.eval.runner import Evaluation
from dreamllm.eval.scores import Row, Score, Table, TaskResult
from dreamllm.eval.subject import EvalOptions
from dreamllm.generate.pipeline import DreamLLM
from dreamllm.recipes import find_recipe
from dreamllm.train.run_config import RunConfig

TRANSFORMS = {"vision": {"image_px": 16}, "target": {"image_px": 32}}
SOURCES = {
    "language_model": PartSource(source="owner/words", revision="c0ffee" * 6 + "beef", license="mit"),
    "vision_encoder": PartSource(source="eyes", license="mit"),
    "image_decoder": PartSource(source="owner/paint", license="mit"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small"
    return save_model(dreamllm(), path, tokenizer=WordList(), transforms=TRANSFORMS, sources=SOURCES)


def metadata(text):
    return ModelCard(text).data.to_dict()


def test_the_parts_are_read_off_the_folder(saved):
    facts = facts_of(saved)

    assert [(part.name, part.class_name) for part in facts.parts] == [
        ("language_model", "LlamaForCausalLM"),
        ("vision_encoder", "CLIPVisionModel"),
        ("connectors", "3 dream queries, linear visual projector, linear condition projector"),
        ("image_decoder/unet", "UNet2DConditionModel"),
        ("image_decoder/vae", "AutoencoderKL"),
    ]
    for part in facts.parts:
        (file,) = (saved / part.name).glob("*.safetensors")
        assert part.num_parameters == sum(tensor.numel() for tensor in load_file(file).values()) > 0
    assert facts.parts[2].num_parameters == (16 * 32 + 32) + 3 * 32 + 32 * 24
    assert [part.source for part in facts.parts] == [
        SOURCES["language_model"],
        SOURCES["vision_encoder"],
        None,
        SOURCES["image_decoder"],
        SOURCES["image_decoder"],
    ]
    assert (facts.num_dream_queries, facts.read_px, facts.drawn_px) == (3, 16, 32)
    assert facts.location == "./small"


def test_a_card_is_metadata_that_the_hub_reads_and_a_page(saved):
    write_card(facts_of(saved, location="owner/small@v1"), saved)

    card = ModelCard.load(saved / "README.md")
    assert card.data.to_dict() == {
        "library_name": "dreamllm",
        "pipeline_tag": "any-to-any",
        "tags": ["any-to-any", "dreamllm", "interleaved-generation"],
        "base_model": ["owner/words", "owner/paint"],
        "license": "mit",
    }
    lines = card.text.splitlines()
    assert "# small" in lines
    assert (
        f"| language_model | LlamaForCausalLM | {facts_of(saved).parts[0].num_parameters:,} "
        "| [owner/words](https://huggingface.co/owner/words) at `c0ffeec0ffee` | mit | not stated |"
    ) in lines
    assert any(line.startswith("| vision_encoder |") and "| eyes | mit |" in line for line in lines)
    assert any(line.startswith("| connectors |") and "| this model | not stated |" in line for line in lines)
    assert "Every stock part states `mit`." in lines
    assert "No evaluation is recorded here." in lines
    assert "## Stages" not in lines
    sections = [line for line in lines if line.startswith("#")]
    assert sections == ["# small", "## Use", "## Parts", "## Evaluation", "## Limits", "## Licence"]


def with_licences(*licences):
    parts = [
        Part(
            name=f"part{number}",
            class_name="C",
            num_parameters=1,
            source=PartSource(source="owner/p", license=licence),
        )
        for number, licence in enumerate(licences)
    ]
    parts.append(Part(name="connectors", class_name="D", num_parameters=1))
    return CardFacts(location="a/b", parts=tuple(parts), num_dream_queries=1, read_px=1, drawn_px=1)


def test_a_licence_is_claimed_only_where_all_stock_parts_state_it():
    assert metadata(model_card(with_licences("mit", "mit")))["license"] == "mit"
    for licences in (("mit", None), ("mit", "apache-2.0"), (None, None)):
        card = model_card(with_licences(*licences))
        assert "license" not in metadata(card)
        assert "There is no one licence for the whole" in card
    unknown = replace(with_licences("mit"), parts=(Part(name="p", class_name="C", num_parameters=1),))
    assert unknown.license is None
    assert "base_model" not in metadata(model_card(unknown))


def config_of(name, **changes):
    return to_dict(load_config(RunConfig, find_recipe(name))) | changes


def test_a_stage_is_what_the_config_of_its_run_says():
    written = yaml.safe_load(to_yaml(load_config(RunConfig, find_recipe("tiny/stage3"))))

    stage = stage_of(written)

    assert (stage.name, stage.steps) == ("tiny-stage3-instruction", 4300)
    assert stage.trained == ("language_model", "visual_projector", "dream_queries", "condition_projector")
    assert stage.documents[0].startswith(
        "until 35%: 40% world (read_notes 100%), 60% world (vqa 8%, describe 27%, draw 30%"
    )
    assert [text.partition(":")[0] for text in stage.documents] == ["until 35%", "until 65%", "until 100%"]


def test_a_file_of_documents_is_named_without_its_folder():
    source = {"kind": "jsonl", "path": "/home/someone/docs.jsonl", "on_fault": "raise", "weight": 3.0}
    config = config_of("tiny/stage1")
    config["objective"]["phases"] = [{"until": 1.0, "sources": [source]}]

    assert stage_of(config).documents == ("until 100%: 100% jsonl (docs.jsonl)",)


def test_a_run_that_is_no_stage_is_refused():
    with pytest.raises(CheckpointError, match="is a run of kind 'clip', which is no stage of DreamLLM"):
        stage_of(config_of("tiny/clip"))


def test_stages_say_what_trained_and_what_was_frozen(saved):
    first = Stage(name="I", steps=300, trained=("visual_projector",), documents=("until 100%: x",))
    second = Stage(name="II", steps=20, trained=("language_model", "dream_queries"), documents=("a", "b"))

    facts = facts_of(saved, stages=[first, second])

    assert {part.name: part.training for part in facts.parts} == {
        "language_model": "trained in II",
        "vision_encoder": "frozen",
        "connectors": "trained in I, II",
        "image_decoder/unet": "frozen",
        "image_decoder/vae": "frozen",
    }
    assert "| II | 20 | language_model, dream_queries | a; b |" in model_card(facts).splitlines()


def evaluation():
    table = Table(
        title="Questions",
        columns=("1 object", "2 objects"),
        rows=(
            Row(label="color", scores=(Score(value=0.5, low=0.25, high=0.754, n=8), None), chance=0.2),
            Row(label="count", scores=(None, Score(value=None, low=0.0, high=1.0, n=0))),
        ),
        note="Exact match.",
    )
    return Evaluation(
        model="/home/someone/model",
        baseline=None,
        options=EvalOptions(num=8, seed=3),
        judge=0.995,
        num_judge_scenes=200,
        results={"vqa": TaskResult(tables=(table,))},
        seconds={"vqa": 1.0},
    )


def test_a_report_is_shown_with_its_flags(saved):
    report = report_of(json.loads(json.dumps(evaluation().to_json())))

    lines = model_card(facts_of(saved, reports=[report])).splitlines()

    start = lines.index("### Questions")
    assert lines[start + 1 : start + 8] == [
        "",
        "| | 1 object | chance | 2 objects |",
        "|---|---:|---:|---:|",
        "| color | 50.0 [25, 75] n=8 | 20.0 |  |",
        "| count |  |  | nothing to score |",
        "",
        "Exact match.",
    ]
    (flags,) = [line for line in lines if "guidance_scale 2.0" in line]
    assert "num 8, seed 3" in flags
    assert "judge 99.5% of 200 true renders" in flags
    assert f"torch {torch.__version__}" in flags
    assert "/home/someone" not in "".join(lines)
    assert "No evaluation is recorded here." not in lines


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"README.md": "# no metadata"}, None),
        ({"README.md": "---\nlicense: apache-2.0\n---\n"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: llama3\n---\n"}, "llama3"),
        ({"README.md": "---\nlicense: other\n---\n"}, "other"),
        ({"README.md": "---\nlicense: [mit, apache-2.0]\n---\n"}, "mit, apache-2.0"),
        ({"README.md": "---\ntags: [x]\n---\n", "config.json": '{"license": "mit"}'}, "mit"),
        ({"model_index.json": '{"license": "openrail++"}', "config.json": "{}"}, "openrail++"),
    ],
)
def test_a_licence_is_what_a_stock_folder_states(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert license_of(tmp_path) == expected


def test_a_card_with_damaged_metadata_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")

    with pytest.raises(CheckpointError, match=r"README\.md cannot be read: ParserError"):
        license_of(tmp_path)


def test_the_snippet_of_a_card_runs(tmp_path, monkeypatch):
    DreamLLM.from_pretrained("tiny", device="cpu").save_pretrained(tmp_path / "copy")
    snippet = ModelCard.load(tmp_path / "copy" / "README.md").text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)

    exec(snippet, {})

    assert "<html" in (tmp_path / "story.html").read_text()
