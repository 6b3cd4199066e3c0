import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.small_model import save_small_model

from dreamllm.checkpoint.encoder import load_encoder
from dreamllm.checkpoint.pretrained import load_model
from dreamllm.checkpoint.self_test import FILE, check_self_test, write_self_test


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with its self-test."""
    path = save_small_model(tmp_path / "model")
    model = load_model(path)
    write_self_test(path, model, load_encoder(path, model))
    return path


def faults(folder: Path) -> list[str] | None:
    model = load_model(folder)
    return check_self_test(folder, model, load_encoder(folder, model))


def test_a_model_passes_its_own_test_and_one_without_has_none(folder: Path) -> None:
    assert faults(folder) == []

    (folder / FILE).unlink()

    assert faults(folder) is None


@pytest.mark.parametrize(
    ("file", "tensor", "noticed"),
    [
        ("language_model/model", "model.norm.weight", "condition_spread"),
        ("connectors/model", "condition_projector.weight", "condition_spread"),
        ("image_decoder/unet/diffusion_pytorch_model", "conv_in.weight", "denoising"),
        ("image_decoder/vae/diffusion_pytorch_model", "decoder.conv_in.weight", "picture_spread"),
        ("vision_encoder/model", "post_layernorm.bias", None),  # the layer before it is read
    ],
)
def test_a_part_that_is_no_longer_what_it_was_is_noticed(
    folder: Path, file: str, tensor: str, noticed: str | None
) -> None:
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    [name] = [each for each in tensors if each.endswith(tensor)]
    tensors[name] = 2.0 * tensors[name] + 0.5
    save_file(tensors, path, metadata={"format": "pt"})

    found = faults(folder)

    assert found is not None
    assert [line.split()[0] for line in found if line.startswith(str(noticed))] == (
        [noticed] if noticed else []
    )


def test_a_decoder_that_does_not_listen_is_noticed(folder: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        for name, parameter in model.image_decoder.unet.named_parameters():
            if name.endswith("attn2.to_v.weight"):
                parameter.zero_()

    found = check_self_test(folder, model, load_encoder(folder, model))

    assert found is not None
    assert "guidance changes nothing: the condition does not reach the picture" in found


def test_another_tokenizer_is_noticed(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))

    found = faults(folder)

    assert found is not None
    assert found[0] == "the tokenizer's vocabulary is not the one the model was saved with"
