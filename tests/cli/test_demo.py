"""`dreamllm demo`: one whole page, its numbers are those of its marks, and no weights is one clear line."""

import re
from pathlib import Path

import pytest
from tests.checkpoint.tiny_jam import save_tiny_jam
from tests.cli.small_model import save_small_model

from dreamllm.cli import main
from dreamllm.cli.demo import NUM_CAPTIONS, NUM_VQA_PICTURES, PROGRAMMES, QUESTIONS_PER_PICTURE
from dreamllm.cli.demo_page import Answered, Drawn, Marks, answers_html, sheet_html, summary_html
from dreamllm.document.export import load_json
from dreamllm.world.language import QA
from dreamllm.world.render import render_image
from dreamllm.world.scene import Object, Scene

# numpy 2 warns of a call inside the stock DPM-Solver.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCENE = Scene((Object("top left", "circle", "red", "small"),), "white")
RIGHT = Answered(SCENE, QA("color", "What color is the circle?", "color circle", "red"), "red")
WRONG = Answered(SCENE, QA("size", "What size is the <circle>?", "size circle", "small"), "large & <b>")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo writes of a model that knows nothing."""
    folder = tmp_path_factory.mktemp("demo")
    model = save_small_model(folder / "model")
    assert main(["demo", "--model", str(model), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_every_document_is_on_the_page_and_in_files_of_its_own(out: Path) -> None:
    page = (out / "index.html").read_text(encoding="utf-8")

    documents = PROGRAMMES["dreamllm"].documents
    for _, title in documents:
        assert f"<h2>{title}</h2>" in page
    assert len(list(out.glob("*.json"))) == len(documents)
    for path in out.glob("*.json"):
        assert load_json(path).parts[0].role == "user"
        assert path.with_suffix(".html").is_file()


def test_the_page_shows_every_question_and_caption_and_asks_no_network(out: Path) -> None:
    page = (out / "index.html").read_text(encoding="utf-8")

    questions = re.search(r"Questions answered exactly</td><td>(\d+) of (\d+)<", page)
    wholly = re.search(r"pictures wholly right</td><td>(\d+) of (\d+)<", page)
    assert questions is not None
    assert wholly is not None
    assert int(questions[2]) == NUM_VQA_PICTURES * QUESTIONS_PER_PICTURE
    assert int(wholly[2]) == NUM_CAPTIONS
    assert page.count('aria-label="right"') == int(questions[1]) + int(wholly[1])
    assert set(re.findall(r'src="(\w+:[^,"]{0,40})', page)) == {"data:image/png;base64"}


def test_a_jam_is_asked_what_its_family_learns(tmp_path: Path) -> None:
    model, out = save_tiny_jam(tmp_path / "model"), tmp_path / "out"

    assert main(["demo", "--family", "jam", "--model", str(model), "--out", str(out)]) == 0

    page = (out / "index.html").read_text(encoding="utf-8")
    assert all(f"<h2>{title}</h2>" in page for _, title in PROGRAMMES["jam"].documents)
    assert "Questions" not in page
    assert re.search(rf"pictures wholly right</td><td>\d+ of {NUM_CAPTIONS}<", page)


def test_a_model_of_the_other_family_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_jam(tmp_path / "model")

    status = main(["demo", "--model", str(model), "--out", str(tmp_path / "out")])

    (shown,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert status == 2
    assert "holds a JAM, expected a DreamLLM" in shown
    assert not (tmp_path / "out").exists()


def test_without_weights_there_is_one_line_that_says_how_to_make_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["demo", "--model", "nowhere", "--out", str(tmp_path / "out")])

    shown = capsys.readouterr().err
    assert status == 2
    assert "`dreamllm train tiny`" in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_wrong_answer_is_marked_and_the_truth_stands_beside_it() -> None:
    html = answers_html([RIGHT, WRONG])

    assert html.count("<img") == 1
    assert re.search(r"right.*<strong>red</strong></p>", html)
    assert "<strong>large &amp; &lt;b&gt;</strong> (true: small)" in html
    assert "<circle>" not in html


def test_the_baseline_has_a_column_of_its_own_only_where_there_is_one() -> None:
    drawn = [Drawn("A red circle.", render_image(SCENE), Marks(5, 5))]
    beside = [Drawn("A red circle.", render_image(SCENE), Marks(4, 5))]

    with_baseline, alone = sheet_html(drawn, beside), sheet_html(drawn, [])

    assert (with_baseline.count("<img"), alone.count("<img")) == (2, 1)
    assert with_baseline.count("<th>") == alone.count("<th>") + 1
    assert "4 of 5" in with_baseline
    assert ('aria-label="wrong"' in with_baseline, 'aria-label="wrong"' in alone) == (True, False)


def test_the_summary_adds_up() -> None:
    picture = render_image(SCENE)
    drawn = [Drawn("a", picture, Marks(5, 5)), Drawn("b", picture, Marks(2, 5))]

    html = summary_html([("A story", Marks(7, 9))], [RIGHT, WRONG, WRONG], drawn, [])

    numbers = re.findall(r"<td>([^<]*of \d+)</td>", html)
    assert numbers == ["7 of 9", "1 of 3", "7 of 10", "1 of 2"]
