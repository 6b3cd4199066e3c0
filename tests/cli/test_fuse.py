"""`dreamllm fuse`: two parents become a model folder, or one line says why not and nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny_jam import byte_tokenizer, llama, save_tiny_jam
from tests.cli.small_model import save_small_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from dreamllm import JAM
from dreamllm.checkpoint.card import facts_of
from dreamllm.checkpoint.jam import load_jam, read_jam_index
from dreamllm.cli import main
from dreamllm.sequence.tokenizer import Tokenizer

WAYS = {
    "uniform": ("LlamaForCausalLM", ["--method", "uniform"]),
    "width": ("LlamaForCausalLM", ["--method", "width"]),
    "width-grouped": ("JamWidthForCausalLM", ["--method", "width", "--width.norm", "grouped"]),
    "cross": ("JamCrossForCausalLM", ["--cross.every", "1"]),
    "jam-x": ("JamCrossForCausalLM", ["--cross.text-skips-images", "--cross.every", "1"]),
}
VQ_FILE = "image_tokenizer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parents."""
    folder = tmp_path_factory.mktemp("parents")
    tokenizer = byte_tokenizer()
    save_tiny_jam(folder / "text" / "model", llama(tokenizer, seed=1), has_pictures=False)
    save_tiny_jam(folder / "image", llama(tokenizer, seed=2))
    return folder


@pytest.fixture
def parents(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "parents"))


def fused(
    parents: Path,
    capsys: pytest.CaptureFixture[str],
    *extra: str,
    text: str = "text/model",
    image: str = "image",
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    arguments = ["fuse", str(parents / text), str(parents / image), str(parents / "out"), *extra]
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip()


@pytest.mark.parametrize("way", WAYS)
def test_a_fused_model_is_a_folder_that_passes_its_own_test_and_writes(
    way: str, parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class_name, arguments = WAYS[way]

    status, out, _ = fused(parents, capsys, *arguments)

    folder = parents / "out"
    assert status == 0
    assert out.splitlines()[-1] == f"written to {folder}"
    assert json.loads((folder / "language_model" / "config.json").read_text())["architectures"] == [
        class_name
    ]
    assert main(["doctor", str(folder)]) == 0
    assert "every number is what it was" in capsys.readouterr().out
    handle = JAM.from_pretrained(folder, device="cpu")
    assert len(handle.draw(["red", "blue"], guidance_scale=1.5)) == 2
    num = sum(tensor.numel() for tensor in handle.model.language_model.parameters())
    assert f"{num:,}" in out  # what the closed formula says


def test_pictures_come_from_the_image_parent_and_both_are_named(
    parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fused(parents, capsys)[0] == 0

    folder = parents / "out"
    ours, theirs = load_file(folder / VQ_FILE), load_file(parents / "image" / VQ_FILE)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert (folder / "image_processor" / "target.json").read_text() == (
        parents / "image" / "image_processor" / "target.json"
    ).read_text()
    sources = read_jam_index(folder).sources
    assert {name: source.source for name, source in sources.items()} == {
        "text_model": "text",  # the run, not its folder `model`
        "image_model": "image",
        "image_tokenizer": "image",
    }
    assert facts_of(folder).parents == (sources["text_model"], sources["image_model"])
    assert "| text and image |" in (folder / "README.md").read_text()


def test_a_model_in_half_precision_passes_the_test_of_what_is_on_disk(
    parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fused(parents, capsys, "--dtype", "float16")[0] == 0

    folder = parents / "out"
    tensors = load_file(folder / "language_model" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert main(["doctor", str(folder)]) == 0


def test_the_seed_decides_new_weights(parents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def weights(*arguments: str) -> torch.Tensor:
        assert (
            fused(parents, capsys, "--method", "width", "--width.off-diagonal", "noise", *arguments)[0] == 0
        )
        tensors = load_file(parents / "out" / "language_model" / "model.safetensors")
        shutil.rmtree(parents / "out")
        return tensors["model.layers.0.mlp.up_proj.weight"]

    first, again, other = weights("--seed", "1"), weights("--seed", "1"), weights("--seed", "2")

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_common_is_shown_whole_in_a_pipe_and_a_dry_run_writes_nothing(
    parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["fuse", str(parents / "text" / "model"), str(parents / "image"), "--dry-run"])

    out = capsys.readouterr().out
    assert status == 0
    for words in ("rotary positions", "codes a picture", "these parents allow: uniform, width, cross"):
        assert words in out
    assert "…" not in out
    assert sorted(item.name for item in parents.iterdir()) == ["image", "text"]


# ---- what cannot be fused -----------------------------------------------------------------------------


def narrow(parents: Path) -> None:
    tokenizer = byte_tokenizer()
    save_tiny_jam(parents / "image", llama(tokenizer, hidden_size=48))


def deepen(parents: Path) -> None:
    save_tiny_jam(parents / "image", llama(byte_tokenizer(), num_hidden_layers=3))


def another_class(parents: Path) -> None:
    values = llama(byte_tokenizer()).config.to_dict()
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = Qwen3Config(**{key: values[key] for key in keys}, num_key_value_heads=2, head_dim=16)
    save_tiny_jam(parents / "image", Qwen3ForCausalLM(config))


def another_tokenizer(parents: Path) -> None:
    file = parents / "image" / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))


def no_break(parents: Path) -> None:
    file = parents / "text" / "model" / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text().replace("<break>", "<brake>"))


def no_rows_for_codes(parents: Path) -> None:
    shutil.rmtree(parents / "text" / "model" / "language_model")
    llama(byte_tokenizer(), vocab_size=byte_tokenizer().vocab_size).save_pretrained(
        parents / "text" / "model" / "language_model"
    )


def nan_codebook(parents: Path) -> None:
    tensors = load_file(parents / "image" / VQ_FILE)
    tensors["quantize.embedding.weight"][0, 0] = float("nan")
    save_file(tensors, parents / "image" / VQ_FILE, metadata={"format": "pt"})


def short_codebook(parents: Path) -> None:
    tensors = load_file(parents / "image" / VQ_FILE)
    tensors["quantize.embedding.weight"] = tensors["quantize.embedding.weight"][:7].clone()
    save_file(tensors, parents / "image" / VQ_FILE, metadata={"format": "pt"})


def truncate(parents: Path) -> None:
    file = parents / "text" / "model" / "language_model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def forget(parents: Path) -> None:
    shutil.rmtree(parents / "text")


def dream(parents: Path) -> None:
    shutil.rmtree(parents / "image")
    save_small_model(parents / "image")


def other_codes(parents: Path) -> None:
    file = parents / "text" / "model" / "model_index.json"
    index = json.loads(file.read_text())
    index["config"]["codes_per_picture"] = 9
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "arguments", "told"),
    [
        (narrow, ["--method", "uniform"], "width 32 and 48"),
        (narrow, ["--method", "width"], "width 32 and 48"),
        (deepen, [], "layers 2 and 3"),
        (another_class, ["--method", "width"], "class LlamaForCausalLM and Qwen3ForCausalLM"),
        (another_tokenizer, [], "2 tokens have other ids or are missing, such as 'a', 'b'"),
        (no_break, [], "has no <break>"),
        (no_rows_for_codes, [], "has a vocabulary of"),
        (nan_codebook, [], "holds values that are not finite"),
        (short_codebook, [], "1 of the wrong shape: quantize.embedding.weight (7, 4) instead of (12, 4)"),
        (truncate, [], "language_model cannot be read"),
        (forget, [], "is neither a local folder nor a hub id"),
        (dream, [], "holds a DreamLLM, expected a JAM"),
        (other_codes, [], "codes a picture 9 and 4"),
    ],
)
def test_parents_that_cannot_be_fused_are_one_line_and_nothing_is_written(
    damage: Callable[[Path], None],
    arguments: list[str],
    told: str,
    parents: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(parents)

    status, _, error = fused(parents, capsys, *arguments)

    lines = error.splitlines()
    assert status == 2
    assert told in lines[-1]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not [item for item in parents.iterdir() if item.name not in ("text", "image")]


def test_towers_of_different_width_can_still_be_crossed(
    parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(parents)

    assert fused(parents, capsys, "--method", "cross")[0] == 0
    assert load_jam(parents / "out").language_model.config.hidden_size == 32 + 48


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "uniform", "--cross.every", "3"], "there are options of method 'cross'"),
        (["--uniform.alpha", "0.3"], "there are options of method 'uniform', but the method is 'cross'"),
        (["--method", "uniform", "--uniform.alpha", "3"], "alpha is 3.0"),
        (["--cross.every", "-1"], "every is -1"),
    ],
)
def test_options_that_cannot_be_meant_are_one_line(
    arguments: list[str], told: str, parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = fused(parents, capsys, *arguments)

    assert (status, out) == (2, "")
    assert told in error.splitlines()[-1]
    assert not (parents / "out").exists()


def test_the_image_parent_comes_second(parents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = fused(parents, capsys, text="image", image="text/model")

    assert status == 2
    assert "has no image tokenizer" in error
    assert "name the text parent first" in error


def test_a_folder_that_is_there_is_not_touched_and_one_must_be_named(
    parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parents / "out").mkdir()

    status, _, error = fused(parents, capsys)
    unnamed = main(["fuse", str(parents / "text" / "model"), str(parents / "image")])

    assert (status, list((parents / "out").iterdir())) == (2, [])
    assert "exists" in error
    assert unnamed == 2
    assert "there is no OUT" in capsys.readouterr().err


def test_the_tokenizer_is_the_text_parents(parents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fused(parents, capsys)[0] == 0

    ours = Tokenizer.from_pretrained(parents / "out" / "tokenizer")
    theirs = Tokenizer.from_pretrained(parents / "text" / "model" / "tokenizer")
    assert ours.hf.get_vocab() == theirs.hf.get_vocab()


def test_no_configuration_names_a_folder_of_this_machine(
    parents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, _ = fused(parents, capsys, "--cross.every", "1")

    assert status == 0
    configs = list((parents / "out").glob("*/config.json"))
    assert len(configs) == 2
    assert not [path for path in configs if str(parents) in path.read_text(encoding="utf-8")]
