"""`dreamllm generate`: what is shown, what is written, and mistakes found before a model is loaded."""

from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage
from tests.cli.small_model import PICTURE_PX, save_small_model

from dreamllm.cli import main
from dreamllm.cli.generate import printable, shown
from dreamllm.document.document import Text
from dreamllm.document.events import Finished, ImageReady, ImageStarted, TextDelta
from dreamllm.document.export import load_json
from dreamllm.document.jsonl import read_documents

# numpy 2 warns of a call inside the stock DPM-Solver.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FEW_STEPS = ["--num-inference-steps", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_small_model(tmp_path_factory.mktemp("generate") / "model"))


def test_words_are_shown_and_the_document_holds_prompt_and_answer(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answer.json"

    status = main(
        ["generate", "hi", "--model", model, "--mode", "text", "--max-new-tokens", "5", "--out", str(out)]
    )

    said = capsys.readouterr().out
    document = load_json(out)
    assert status == 0
    assert [part.role for part in document] == ["user", "assistant"]
    answer = document.parts[1]
    assert isinstance(answer, Text)
    assert printable(answer.text) in said
    assert said.endswith(f"written to {out}\n")


def test_a_picture_is_named_and_written(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drawn.html"

    status = main(["generate", "red", "--model", model, "--mode", "image", "--out", str(out), *FEW_STEPS])

    assert status == 0
    assert f"[picture 1: drawing, done, {PICTURE_PX}x{PICTURE_PX}]" in capsys.readouterr().out
    assert out.read_text().count("<img") == 1


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(model: str, tmp_path: Path) -> None:
    def draw(name: str, seed: int) -> bytes:
        out = tmp_path / f"{name}.json"
        arguments = ["--mode", "image", "--seed", str(seed), "--out", str(out), *FEW_STEPS]
        assert main(["generate", "red", "--model", model, *arguments]) == 0
        return load_json(out).images[-1].load().tobytes()

    first, again, other = draw("first", 1), draw("again", 1), draw("other", 2)

    assert first == again
    assert first != other


def test_pictures_of_the_user_come_before_the_words(model: str, tmp_path: Path) -> None:
    PILImage.new("RGB", (20, 30), "red").save(tmp_path / "mine.png")
    out = tmp_path / "answer.json"
    arguments = ["--image", str(tmp_path / "mine.png"), "--mode", "text", "--max-new-tokens", "2"]

    status = main(["generate", "what", "--model", model, *arguments, "--out", str(out)])

    picture, words = load_json(out).parts[:2]
    assert status == 0
    assert picture.role == words.role == "user"
    assert load_json(out).images[0].load().size == (20, 30)


def test_a_model_of_eight_bits_writes_a_document(model: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    out = tmp_path / "small.json"

    status = main(
        [
            "generate",
            "red",
            "--model",
            model,
            "--mode",
            "image",
            "--quantize",
            "int8",
            "--out",
            str(out),
            *FEW_STEPS,
        ]
    )

    assert status == 0
    assert load_json(out).images[0].load().size == (PICTURE_PX, PICTURE_PX)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
@pytest.mark.parametrize("offload", ["model", "layer"])
def test_offload_without_a_gpu_is_one_line(
    model: str, offload: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["generate", "red", "--model", model, "--offload", offload])

    shown_error = capsys.readouterr().err
    assert status == 2
    assert f"offload='{offload}' lets parts wait on the CPU for their turn on a GPU" in shown_error
    assert shown_error.count("\n") == 1


@pytest.mark.parametrize("suffix", [".html", ".jsonl"])
def test_prompts_of_a_file_are_answered_together(model: str, tmp_path: Path, suffix: str) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / f"answers{suffix}"
    prompts.write_text("red\n\nblue\n", encoding="utf-8")
    arguments = ["--prompts-file", str(prompts), "--mode", "image", "--out", str(out), *FEW_STEPS]

    status = main(["generate", "--model", model, *arguments])

    assert status == 0
    if suffix == ".html":
        assert out.read_text().count("<img") == 2
    else:
        assert [document.id for document in read_documents(out)] == ["red", "blue"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no prompt"),
        (["hi", "--prompts-file", "prompts.txt"], "there are both PROMPT 'hi' and --prompts-file"),
        (["--prompts-file", "nowhere.txt", "--out", "a.html"], "the prompts in nowhere.txt cannot be read"),
        (["hi", "--out", "a.pdf"], "its suffix is '.pdf', expected one of .html, .md, .json"),
        (["hi", "--top-p", "2"], "top_p is 2.0"),
        (["hi", "--model", "nowhere"], "'nowhere' is neither a model folder nor"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["generate", *arguments])

    shown_error = capsys.readouterr().err
    assert status == 2
    assert said in shown_error
    assert shown_error.count("\n") == 1


def test_events_read_as_a_terminal_shows_them() -> None:
    picture = PILImage.new("RGB", (64, 32))
    events = [TextDelta("A \x1b[31mred"), ImageStarted(0), ImageReady(0, picture), Finished("length")]

    assert "".join(map(shown, events)) == (
        "A \N{REPLACEMENT CHARACTER}[31mred\n[picture 1: drawing, done, 64x32]\n"
        "\n[cut off: --max-new-tokens or the model's context was reached]"
    )
