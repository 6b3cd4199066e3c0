"""`dreamllm compose` with parts that are damaged, missing, hostile or do not fit: one line, exit status 2."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.tiny_decoders import DECODERS
from tests.models.tiny_language_models import FAMILIES
from tests.test_families import EYES, PADDED_VOCABULARY, stock_tokenizer

from dreamllm.cli import main

LLAMA, CLIP, SD = "llama", "clip", "sd"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    FAMILIES[LLAMA](vocab_size=PADDED_VOCABULARY).save_pretrained(folder / LLAMA)
    stock_tokenizer(LLAMA).save_pretrained(folder / LLAMA)
    EYES[CLIP]().save_pretrained(folder / CLIP)
    for name, part in DECODERS[SD]().parts().items():
        part.save_pretrained(folder / SD / name)
    return folder


@pytest.fixture
def parts(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "parts"))


class Payload:
    """A pickle that writes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (self.path, "code ran")  # type: ignore[return-value]


def composed(parts: Path, capsys: pytest.CaptureFixture[str], *extra: str, **changed: str) -> tuple[int, str]:
    """Exit status and what stood on stderr."""
    named = {"language_model": LLAMA, "vision_encoder": CLIP, "image_decoder": SD} | changed
    arguments = ["compose", str(parts / "out")]
    for name, source in named.items():
        folder = parts / source
        arguments += [f"--{name.replace('_', '-')}", str(folder) if "/" not in source else source]
    status = main([*arguments, "--num-dream-queries", "3", *extra])
    return status, capsys.readouterr().err.strip()


def test_sound_parts_are_composed_and_pass_their_own_test(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = composed(parts, capsys)

    assert status == 0
    assert main(["doctor", str(parts / "out")]) == 0
    assert "every number is what it was" in capsys.readouterr().out


def truncate(parts: Path) -> None:
    file = parts / LLAMA / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def poison(parts: Path) -> None:
    (parts / LLAMA / "model.safetensors").unlink()
    (parts / LLAMA / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(parts / "ran"), protocol=2))


def drop_vae(parts: Path) -> None:
    shutil.rmtree(parts / SD / "vae")


def drop_weights(parts: Path) -> None:
    (parts / CLIP / "model.safetensors").unlink()


def swap(parts: Path) -> None:
    shutil.rmtree(parts / CLIP)
    shutil.copytree(parts / LLAMA, parts / CLIP)


def cap_logits(parts: Path) -> None:
    config = parts / LLAMA / "config.json"
    config.write_text(config.read_text().replace("{", '{"final_logit_softcapping": 30.0,', 1))


def shorten(parts: Path) -> None:
    config = parts / LLAMA / "config.json"
    config.write_text(
        config.read_text().replace('"max_position_embeddings": 256', '"max_position_embeddings": 8')
    )


def forget_tokenizer(parts: Path) -> None:
    (parts / LLAMA / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, "llama cannot be read"),
        (poison, "llama cannot be read"),
        (drop_vae, "vae is missing"),
        (drop_weights, "clip cannot be read"),
        (swap, "is no vision encoder known here"),
        (cap_logits, "final_logit_softcapping=30.0"),
        (shorten, "a drawn picture takes 11 positions"),
        (forget_tokenizer, "holds neither tokenizer.json nor tokenizer.model"),
    ],
)
def test_a_part_that_cannot_be_used_is_one_line_and_nothing_is_written(
    damage: object, told: str, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(parts)  # type: ignore[operator]

    status, error = composed(parts, capsys)

    assert status == 2
    assert told in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert error.splitlines()[-1].startswith("error: ")
    assert not (parts / "out").exists()
    assert not (parts / "ran").exists()


def test_a_hub_id_without_network_is_one_line(
    parts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, error = composed(parts, capsys, "--tokenizer", "nobody/nothing")

    assert status == 2
    assert "nobody/nothing" in error.splitlines()[-1]


def test_a_folder_that_is_there_is_not_touched(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "out").mkdir()

    status, error = composed(parts, capsys)

    assert (status, list((parts / "out").iterdir())) == (2, [])
    assert "exists" in error


def test_weights_in_a_bin_file_are_read_as_data(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vicuna is published so."""
    file = parts / LLAMA / "model.safetensors"
    torch.save(load_file(file), parts / LLAMA / "pytorch_model.bin")
    file.unlink()

    status, _ = composed(parts, capsys)

    assert status == 0
