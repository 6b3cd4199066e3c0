"""`dreamllm import` and `dreamllm export`: what is written, what is told, and mistakes in one line."""

from pathlib import Path

import pytest
import torch
from tests.checkpoint.official.miniature import NUM_QUERIES, PICTURE_PX, Miniature, save, write_miniature

from dreamllm.checkpoint.pretrained import read_index
from dreamllm.cli import main
from dreamllm.generate.pipeline import DreamLLM

# numpy 2 warns of a call inside the stock DPM-Solver.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def made(tmp_path: Path) -> Miniature:
    return write_miniature(tmp_path / "official")


def arguments(made: Miniature, out: Path) -> list[str]:
    stock = ["--vision-encoder", str(made.vision_encoder), "--image-decoder", str(made.image_decoder)]
    return ["import", "official", str(made.checkpoint), str(out), *stock]


def test_an_imported_checkpoint_draws_and_goes_back(
    made: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"

    status = main(arguments(made, ours))

    assert status == 0
    assert capsys.readouterr().out == f"skipped 2 computed buffers\nwritten to {ours}\n"
    assert read_index(ours).config.num_dream_queries == NUM_QUERIES
    assert read_index(ours).sources["language_model"].source == made.checkpoint.name
    picture = DreamLLM.from_pretrained(ours).draw(["a red cat"], num_inference_steps=2)[0]
    assert picture.size == (PICTURE_PX, PICTURE_PX)

    status = main(["export", "official", str(ours), str(back)])

    assert status == 0
    assert capsys.readouterr().out.endswith(f"written to {back}\n")
    queries = torch.load(back / "dream_embedding.bin", weights_only=True)["dream_queries"]
    assert torch.equal(queries, made.tensors("dream_embedding.bin")["dream_queries"])


def test_a_checkpoint_that_cannot_be_used_is_one_line_and_leaves_nothing(
    made: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.change("stable_diffusion_head.bin", unet__conv_in__bias=None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty").mkdir()
    mistakes = {
        "1 missing: conv_in.bias": arguments(made, tmp_path / "ours"),
        "taken exists": arguments(made, tmp_path / "taken"),
        "is neither a local folder nor a hub id": [
            *arguments(made, tmp_path / "ours"),
            "--image-decoder",
            "/no",
        ],
        "empty is no model folder": ["export", "official", str(tmp_path / "empty"), str(tmp_path / "back")],
    }

    for said, line in mistakes.items():
        status = main(line)

        shown = capsys.readouterr().err
        assert status == 2
        assert said in shown.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "official", "taken"]


def test_a_payload_is_told_in_one_line(
    made: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(made.checkpoint / "dream_embedding.bin", {"dream_queries": print})

    status = main(arguments(made, tmp_path / "ours"))

    shown = capsys.readouterr().err
    assert status == 2
    assert "dream_embedding.bin holds more than tensors" in shown
    assert shown.count("\n") == 1
