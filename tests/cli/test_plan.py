"""`dreamllm plan` prints what a stage needs and says by its exit status whether that fits."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.train.plan.tiny_shapes import write_parts

from dreamllm.cli import VERBS, main


@pytest.fixture(autouse=True)
def _is_a_verb_in_a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "plan", VERBS.get("plan", "what a recipe needs"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A stage of a tiny model, beside its parts."""
    write_parts(tmp_path)
    tree: dict[str, Any] = {
        "name": "tiny-stage1",
        "objective": {
            "kind": "dreamllm",
            "parts": {
                "language_model": "./llama",
                "vision_encoder": "./clip",
                "image_decoder": "./sd",
                "num_dream_queries": 8,
            },
            "train": {"special_token_rows": True},
            "documents_per_step": 64,
            "row_length": 256,
            "rows_per_micro_batch": 4,
            "phases": [{"sources": [{"kind": "jsonl", "path": "data/some/read.jsonl"}]}],
        },
        "steps": 100,
        "optim": {"lr": 1e-3},
    }
    path = tmp_path / "stage1.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def plan(recipe: Path, *arguments: str) -> int:
    return main(["plan", str(recipe), *arguments, "--out", str(recipe.parent)])


def test_parts_documents_steps_memory_and_time_are_printed(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = plan(recipe)

    shown = capsys.readouterr().out
    assert status == 0
    # 32 x 64 and a bias; a language model of 508 rows and three layers
    for expected in ("2,112", f"{2 * 508 * 64 + 3 * (4 * 64 * 64 + 3 * 64 * 96 + 128) + 64:,}"):
        assert expected in shown
    assert "data/some/read.jsonl" in shown
    # 2 + 20 + 18 positions a document, 64 documents a step
    assert "2,560" in shown
    assert "frozen weights" in shown
    assert "of 80: fits" in shown
    assert "for 100 steps on 1 GPU, if 35% of 312 TFLOPS are reached" in shown
    assert "objective.gradient_checkpointing=true" in shown
    assert "trainer uses one GPU" not in shown


def test_what_does_not_fit_ends_with_advice_and_status_1(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = plan(recipe, "--gpu-memory", "0.5")

    shown = capsys.readouterr().out
    assert status == 1
    assert "of 0.5: does NOT fit" in shown
    assert "a GPU has 0.5 GiB. What helps:" in shown
    assert "no override brings it to 0.5 GiB" in shown


def test_several_gpus_are_said_to_be_an_assumption(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = plan(recipe, "--gpus", "4", "--sharding", "full")

    shown = " ".join(capsys.readouterr().out.split())
    assert status == 0
    assert "assumed: 4 GPUs share the documents" in shown
    assert "the trainer uses one GPU today" in shown


def test_documents_can_be_described_on_the_command_line(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = plan(recipe, "--text-tokens", "100", "--images-read", "0", "--images-drawn", "2")

    shown = capsys.readouterr().out
    assert status == 0
    assert "given" in shown
    assert f"{64 * (2 + 100 + 2 * 10):,}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["objective.rows_per_micro_batches=2"], "did you mean 'rows_per_micro_batch'"),
        (
            ["--text-tokens", "100"],
            "expected all of --text-tokens, --images-read and --images-drawn, or none",
        ),
        (["objective.parts.language_model=./none"], "the part ./none is not there"),
        (["objective.row_length=16"], "a row only 16"),
    ],
)
def test_a_mistake_is_one_line(
    recipe: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = plan(recipe, *arguments)

    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1
    assert message in lines[0]


def test_a_family_and_other_objectives_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny"]) == 2
    assert "`dreamllm plan tiny/stage1`" in capsys.readouterr().err
    assert main(["plan", "tiny/vae"]) == 2
    assert "a plan is made for a stage of DreamLLM" in capsys.readouterr().err


def test_the_recipe_of_the_paper_is_planned_without_network(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["plan", "dreamllm-7b/stage2"])

    shown = capsys.readouterr().out
    assert status == 1  # 7 billion weights with gradients and moments are 101 GiB
    for number in ("6,738,481,152", "303,179,776", "865,910,724", "83,653,863", "3,906"):
        assert number in shown
    assert "objective.train.language_model_lora={}" in shown
