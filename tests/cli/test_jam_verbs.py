"""`dreamllm generate`, `doctor` and `eval` of a JAM."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny_jam import PICTURE_PX, save_tiny_jam
from tests.cli.small_model import save_small_model

from dreamllm.checkpoint.jam import load_jam, load_jam_encoder
from dreamllm.checkpoint.self_test import write_self_test
from dreamllm.cli import main
from dreamllm.cli.doctor import JAM_PARTS, JAM_PICTURE_PARTS, check_model, check_model_folder
from dreamllm.data.retrieval import DocumentIndex
from dreamllm.data.retrieval_vectors import HashedWords
from dreamllm.document.document import Document, Text
from dreamllm.document.export import load_json
from dreamllm.document.jsonl import write_documents


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_jam(tmp_path_factory.mktemp("jam") / "model")
    model = load_jam(folder)
    write_self_test(folder, model, load_jam_encoder(folder, model))
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


# ---- generate -----------------------------------------------------------------------------------------


def test_a_picture_is_drawn_and_its_seed_and_temperature_are_heard(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw(name: str, *arguments: str) -> bytes:
        out = tmp_path / f"{name}.json"
        status = main(
            ["generate", "red", "--model", str(saved), "--mode", "image", "--out", str(out), *arguments]
        )
        assert status == 0
        return load_json(out).images[-1].load().tobytes()

    sampled = {draw(f"seed{seed}", "--seed", str(seed)) for seed in range(4)}
    greedy = {draw(f"greedy{seed}", "--seed", str(seed), "--image-temperature", "0") for seed in range(2)}

    assert len(sampled) > 1
    assert len(greedy) == 1
    assert f"[picture 1: drawing, done, {PICTURE_PX}x{PICTURE_PX}]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--num-inference-steps", "3"],
            "num_inference_steps is 3, which a model that draws by codes cannot",
        ),
        (["--negative-prompt", "blue"], "negative_prompt is 'blue'"),
        (["--image-top-p", "2"], "image_top_p is 2.0"),
    ],
)
def test_an_option_of_the_other_family_is_one_line_and_nothing_is_written(
    saved: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.html"

    status = main(["generate", "red", "--model", str(saved), "--out", str(out), *arguments])

    shown = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert said in shown[-1]
    assert len([line for line in shown if line.startswith("error: ")]) == 1
    assert not out.exists()


def test_documents_are_retrieved_from_a_file_or_an_index(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    documents = [Document(parts=(Text(text=text),), id=text) for text in ("a red square", "a blue star")]
    file = write_documents(documents, tmp_path / "facts.jsonl")
    index = DocumentIndex.build(documents, HashedWords()).save(tmp_path / "index")

    def answer(*arguments: str) -> str:
        out = tmp_path / "answer.json"
        common = ["generate", "red", "--mode", "text", "--max-new-tokens", "8", "--out", str(out)]
        assert main([*common, "--model", str(saved), *arguments]) == 0
        return load_json(out).text

    plain, read, indexed = answer(), answer("--retrieve", str(file)), answer("--retrieve", str(index))

    assert read == indexed != plain
    out = tmp_path / "none.html"
    refused = ["generate", "red", "--model", "tiny", "--retrieve", str(file), "--out", str(out)]
    assert main(refused) == 2
    assert "the model is a DreamLLM; expected a JAM" in capsys.readouterr().err
    assert not out.exists()


def test_an_option_of_a_jam_is_refused_by_a_dreamllm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_small_model(tmp_path / "dream")

    status = main(["generate", "red", "--model", str(model), "--num-candidates", "3"])

    assert status == 2
    assert "num_candidates is 3, which" in capsys.readouterr().err


# ---- doctor -------------------------------------------------------------------------------------------


def test_a_whole_model_is_ok_and_passes_its_own_test(saved: Path, tmp_path: Path) -> None:
    (whole,) = check_model_folder(saved)
    (passed,) = check_model(saved)
    (words,) = check_model_folder(save_tiny_jam(tmp_path / "words", has_pictures=False))

    assert (whole.state, words.state) == ("ok", "ok")
    assert "2 weight files" in whole.seen
    assert "1 weight files" in words.seen
    assert (passed.state, passed.seen) == ("ok", "every number is what it was")


@pytest.mark.parametrize("part", [*JAM_PARTS, *JAM_PICTURE_PARTS])
def test_a_missing_part_is_named(part: str, copied: Path) -> None:
    shutil.rmtree(copied / part)

    (finding,) = check_model_folder(copied)

    assert finding.state == "broken"
    assert finding.seen == f"{copied / part} is missing"


@pytest.mark.parametrize("content", ["[1]", "{", '"JAM"'])
def test_an_index_that_is_none_is_broken(content: str, copied: Path) -> None:
    (copied / "model_index.json").write_text(content)

    findings = [*check_model_folder(copied), *check_model(copied)]

    assert "broken" in {finding.state for finding in findings}


def test_a_damaged_codebook_makes_the_verb_exit_with_1(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / "image_tokenizer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["quantize.embedding.weight"][0] = float("inf")
    save_file(tensors, file, metadata={"format": "pt"})

    status = main(["doctor", str(copied)])

    assert status == 1
    assert "the codebook of the image tokenizer" in capsys.readouterr().out


# ---- eval ---------------------------------------------------------------------------------------------


def test_a_jam_is_evaluated_and_its_report_speaks_of_codes(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"

    status = main(["eval", str(saved), "--quick", "--num", "2", "--tasks", "perplexity", "--out", str(out)])

    results = json.loads((out / "results.json").read_text())
    assert status == 0
    assert "Baseline: none" in capsys.readouterr().out
    assert (results["kind"], results["baseline"]) == ("JAM", None)
    (table,) = results["tasks"]["perplexity"]["tables"]
    assert list(table["rows"]) == ["words", "codes, given the caption", "caption, given the picture"]
    page = (out / "report.md").read_text()
    assert "picture codes at temperature 1" in page
    assert "denoising" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-inference-steps", "3"], "num_inference_steps is 3, which a JAM cannot obey"),
        (["--tasks", "poetry"], "tasks poetry cannot be run; expected world, vqa"),
        (["--baseline", "somewhere", "--tasks", "vqa"], "which has none; leave it out"),
    ],
)
def test_what_cannot_be_asked_of_a_jam_is_one_line(
    saved: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["eval", str(saved), "--quick", "--out", str(tmp_path / "out"), *arguments])

    assert status == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_asked_of_the_others_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = save_tiny_jam(tmp_path / "words", has_pictures=False)
    dream = save_small_model(tmp_path / "dream")

    asked = [
        (words, ["--tasks", "vqa"], "expected world, perplexity for a JAM of words alone"),
        (dream, ["--tasks", "perplexity"], "tasks perplexity cannot be run"),
        (dream, ["--image-temperature", "1"], "image_temperature is 1.0, which a DreamLLM cannot obey"),
    ]
    for model, arguments, said in asked:
        assert main(["eval", str(model), *arguments]) == 2
        assert said in capsys.readouterr().err.strip().splitlines()[-1]
