"""The doctor finds what is broken, names the cure, and leaves sound things alone."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file
from tests.cli.small_model import save_small_model
from tests.models.tiny import dreamllm

from dreamllm.checkpoint.encoder import load_encoder
from dreamllm.checkpoint.pretrained import load_model, save_model
from dreamllm.checkpoint.self_test import write_self_test
from dreamllm.cli import main
from dreamllm.cli.doctor import (
    MODEL_PARTS,
    check_model,
    check_model_folder,
    check_requirement,
    check_shipped_weights,
    check_torch,
    check_torchvision,
)
from dreamllm.sequence.tokenizer import train_tokenizer

UNET = Path("image_decoder", "unet")
WEIGHTS = UNET / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the real format, which tests copy before they damage it."""
    path = tmp_path_factory.mktemp("saved") / "model"
    words = train_tokenizer(["a red circle"], vocab_size=300)
    return save_model(dreamllm(), path, tokenizer=words, transforms={"vision": {"size": 16}})


@pytest.fixture
def model_folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "models" / "copy"))


def test_a_whole_model_folder_is_ok(model_folder: Path) -> None:
    (finding,) = check_model_folder(model_folder)

    assert finding.state == "ok"
    assert "5 weight files" in finding.seen


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_weight_file_cut_anywhere_is_found(model_folder: Path, keep: int) -> None:
    file = model_folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])

    (finding,) = check_model_folder(model_folder)

    assert finding.state == "broken"
    assert str(file) in finding.seen
    assert finding.cure


def test_a_weight_file_that_is_something_else_is_found(model_folder: Path) -> None:
    file = model_folder / WEIGHTS
    file.write_bytes((7).to_bytes(8, "little") + b"[1,2,3]")

    (finding,) = check_model_folder(model_folder)

    assert finding.state == "broken"
    assert "does not list tensors" in finding.seen


def test_a_config_without_its_weights_is_found(model_folder: Path) -> None:
    (model_folder / WEIGHTS).unlink()

    (finding,) = check_model_folder(model_folder)

    assert finding.state == "broken"
    assert finding.seen == f"{model_folder / UNET} has a config.json but no weights"


def test_json_that_does_not_parse_is_found(model_folder: Path) -> None:
    (model_folder / UNET / "config.json").write_text('{"width": ')

    (finding,) = check_model_folder(model_folder)

    assert finding.state == "broken"
    assert "config.json is not JSON" in finding.seen


def test_a_shard_that_an_index_names_must_be_there(model_folder: Path) -> None:
    index = {"weight_map": {"a": WEIGHTS.name, "b": "model-00002-of-00002.safetensors"}}
    (model_folder / UNET / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))

    (finding,) = check_model_folder(model_folder)

    assert finding.state == "broken"
    assert "names model-00002-of-00002.safetensors" in finding.seen


@pytest.mark.parametrize("part", MODEL_PARTS)
def test_a_missing_part_is_named(part: str, model_folder: Path) -> None:
    shutil.rmtree(model_folder / part)

    (finding,) = check_model_folder(model_folder)

    assert finding.state == "broken"
    assert finding.seen == f"{model_folder / part} is missing"


def test_a_folder_without_an_index_and_a_path_that_is_no_folder_are_broken(tmp_path: Path) -> None:
    states = [next(check_model_folder(path)).state for path in (tmp_path, tmp_path / "nothing")]

    assert states == ["broken", "broken"]


def test_missing_shipped_weights_are_broken_and_present_ones_are_read(model_folder: Path) -> None:
    (missing,) = check_shipped_weights(model_folder / "nowhere")
    (present,) = check_shipped_weights(model_folder.parent)

    assert (missing.state, present.state) == ("broken", "ok")


@pytest.mark.parametrize(
    ("line", "state"),
    [("torch>=2", "ok"), ("torch>=99", "broken"), ("surely-not-a-package>=1", "broken")],
)
def test_a_requirement_is_held_against_what_is_installed(line: str, state: str) -> None:
    finding = check_requirement(Requirement(line))

    assert finding.state == state
    assert bool(finding.cure) == (state == "broken")


def test_torch_is_reported_with_its_build_and_threads() -> None:
    first, *_ = check_torch()

    assert first.state == "ok"
    assert first.seen == f"{torch.__version__}, {torch.get_num_threads()} CPU threads"


def test_a_torchvision_that_cannot_load_is_broken_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    failure = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / "torchvision" / "__init__.py").write_text(failure)
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for the process that tries the import

    (finding,) = check_torchvision()

    assert finding.state == "broken"
    assert "operator torchvision::nms does not exist" in finding.seen
    assert "pip uninstall torchvision" in finding.cure
    assert "torchvision" not in sys.modules


def test_a_broken_model_makes_the_verb_exit_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["doctor", str(tmp_path)])

    assert status == 1
    assert "has no model_index.json" in capsys.readouterr().out


def test_a_shipped_model_is_known_by_its_name_and_a_folder_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jam-tiny").mkdir()

    assert main(["doctor", "jam-tiny"]) == 0
    assert "every number is what it was" in capsys.readouterr().out
    assert main(["doctor", "./jam-tiny"]) == 1
    assert "jam-tiny has no model_index.json" in capsys.readouterr().out.replace("\n", " ")


def test_a_model_is_loaded_and_tested(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")

    (without,) = check_model(folder)
    model = load_model(folder)
    write_self_test(folder, model, load_encoder(folder, model))
    (passed,) = check_model(folder)
    shrink = json.loads((folder / "image_processor" / "vision.json").read_text()) | {"image_px": 8}
    (folder / "image_processor" / "vision.json").write_text(json.dumps(shrink))
    faults = list(check_model(folder))

    assert (without.state, without.subject) == ("note", "self-test")
    assert (passed.state, passed.seen) == ("ok", "every number is what it was")
    assert faults[0].state == "broken"


def test_a_tensor_that_no_part_expects_is_broken(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    file = folder / "connectors" / "model.safetensors"
    save_file({**load_file(file), "extra.weight": torch.zeros(1)}, file)

    (finding,) = check_model(folder)

    assert finding.state == "broken"
    assert "1 left over: extra.weight" in finding.seen


def test_a_denoiser_is_a_unet_or_a_transformer(model_folder: Path) -> None:
    (model_folder / UNET).rename(model_folder / "image_decoder" / "transformer")
    (renamed,) = check_model_folder(model_folder)
    shutil.rmtree(model_folder / "image_decoder" / "transformer")

    (missing,) = check_model_folder(model_folder)

    assert renamed.state == "ok"
    assert missing.seen == f"{model_folder / UNET} is missing, and so is transformer"
