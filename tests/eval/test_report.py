"""Reports: the numbers survive, and every form shows them."""

import json
from pathlib import Path

import pytest
from PIL import Image as PILImage
from rich.console import Console
from tests.eval.conftest import CONTEXT
from tests.generate.conftest import tiny_model
from transformers import CLIPTextModel

from dreamllm.checkpoint.encoder import transforms_of
from dreamllm.checkpoint.pretrained import save_model
from dreamllm.cli import main
from dreamllm.document.document import Document, Text
from dreamllm.eval.report import to_markdown, to_rich, write_report
from dreamllm.eval.runner import Evaluation
from dreamllm.eval.scores import Row, Table, TaskResult, proportion
from dreamllm.eval.subject import EvalOptions, Subject
from dreamllm.world.sheet import SheetRow

TABLE = Table(
    title="Questions",
    columns=("1 object", "2 objects"),
    rows=(
        Row(label="color", scores=(proportion([True] * 3 + [False]), None), chance=0.125),
        Row(label="shape", scores=(proportion([]), proportion([True, False]))),
    ),
    note="A note.",
)


@pytest.fixture
def evaluation() -> Evaluation:
    picture = PILImage.new("RGB", (64, 64))
    result = TaskResult(
        tables=(TABLE,),
        details={"share of long captions cut": 0.5},
        sheet=(SheetRow("truth", [picture]), SheetRow("model", [picture], [True])),
        documents=(Document(parts=(Text(text="A story."),)),),
    )
    return Evaluation(
        model="models/tiny",
        baseline=None,
        options=EvalOptions(num=4),
        judge=0.999,
        num_judge_scenes=1000,
        results={"vqa": result},
        seconds={"vqa": 1.25},
    )


def test_a_report_is_numbers_a_page_a_sheet_and_documents(evaluation: Evaluation, tmp_path: Path) -> None:
    paths = write_report(evaluation, tmp_path / "out")

    assert [path.name for path in paths] == ["results.json", "report.md", "sheet.png", "documents.html"]
    value = json.loads(paths[0].read_text())
    assert value["judge"] == {"accuracy": 0.999, "n": 1000}
    assert value["options"]["num"] == 4
    assert set(value["versions"]) == {"dreamllm", "python", "torch", "transformers", "diffusers"}
    assert value["tasks"]["vqa"]["tables"][0]["rows"]["color"]["1 object"]["value"] == 0.75
    assert "A story." in paths[3].read_text()


def test_the_page_shows_the_judge_first_and_every_score_with_interval_and_n(evaluation: Evaluation) -> None:
    page = to_markdown(evaluation, files=["sheet.png"])

    assert page.index("The judge reads 99.9 % of 1000 true renders") < page.index("## vqa")
    assert "| | chance | 1 object | 2 objects |" in page
    assert "| color | 12.5 | 75.0 [30, 95] n=4 |  |" in page
    assert "| shape |  | nothing to score | 50.0 [9, 91] n=2 |" in page
    assert "(sheet.png)" in page
    assert "documents.html" not in page
    assert "share of long captions cut: 50.0 %" in page


def test_the_terminal_shows_the_same_numbers() -> None:
    console = Console(width=110)
    with console.capture() as captured:
        console.print(to_rich(TABLE))

    shown = captured.get()
    assert "75.0 [30, 95] n=4" in shown
    assert "A note." in shown


def test_a_run_without_pictures_or_documents_writes_no_empty_files(tmp_path: Path) -> None:
    plain = Evaluation(
        model="m",
        baseline=None,
        options=EvalOptions(),
        judge=1.0,
        num_judge_scenes=10,
        results={"vqa": TaskResult(tables=(TABLE,))},
        seconds={"vqa": 0.0},
    )

    assert [path.name for path in write_report(plain, tmp_path)] == ["results.json", "report.md"]


def test_the_verb_evaluates_a_model_folder_beside_its_baseline(
    subject: Subject, text_encoder: CLIPTextModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = subject.generator.encoder
    model = tiny_model(encoder.tokenizer, CONTEXT)
    head = model.language_model.get_output_embeddings()
    head.bias = None  # a stock folder holds none
    save_model(model, tmp_path / "model", tokenizer=encoder.tokenizer, transforms=transforms_of(encoder))
    text_encoder.save_pretrained(tmp_path / "model" / "baseline" / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "model" / "baseline" / "tokenizer")
    arguments = ["--tasks", "drawing", "deciding", "--num", "3", "--quick", "--num-inference-steps", "1"]

    status = main(["eval", str(tmp_path / "model"), *arguments, "--out", str(tmp_path / "out")])

    shown = capsys.readouterr().out
    assert status == 0
    assert shown.index("The judge reads 100.0 % of 200 true renders") < shown.index("all correct")
    assert "When to draw, given the true document so far" in shown
    value = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(value["tasks"]) == ["drawing", "deciding"]
    assert value["baseline"] == str(tmp_path / "model" / "baseline")
    assert value["options"]["num_inference_steps"] == 1
    with PILImage.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size[1] > 9 * 128  # three rows for each number of objects


def test_the_verb_names_an_unknown_task_before_it_loads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model_index.json").write_text('{"model_class": "DreamLLM", "format_version": 1}')

    assert main(["eval", str(tmp_path), "--tasks", "poetry"]) == 2
    assert "tasks poetry cannot be run" in capsys.readouterr().err
