import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file, save_file
from tests.models.tiny import BRACKETS, STORY, batch_of, dreamllm, llama, qwen3
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, CLIPVisionModel

from dreamllm.checkpoint.model_folder import read_transforms
from dreamllm.checkpoint.pretrained import load_model, read_index, save_model
from dreamllm.errors import CheckpointError, DiskError
from dreamllm.models.freezing import Trainable, apply_trainable
from dreamllm.models.quantization import quantize_linears

TRANSFORMS = {"vision": {"size": 16, "mean": [0.5, 0.5, 0.5]}, "target": {"size": 16}}


class WordList:
    """A tokenizer as far as a checkpoint is concerned: it writes itself to a folder."""

    def save_pretrained(self, path):
        Path(path).mkdir(parents=True)
        (Path(path) / "words.txt").write_text("a\nb\n")


def save(model, path, **options):
    return save_model(model, path, tokenizer=WordList(), transforms=TRANSFORMS, **options)


def losses(model):
    terms = model(batch_of([[STORY]], 30), torch.Generator().manual_seed(0))
    return torch.stack([term.sum for term in terms.values()])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that tests copy before they damage it."""
    return save(dreamllm(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_no_file_of_a_model_names_the_folder_it_was_loaded_from(saved, tmp_path):
    again = save(load_model(saved), tmp_path / "again")

    texts = [path.read_text(encoding="utf-8") for path in again.rglob("*.json")]
    assert len(texts) > 5
    assert not [text for text in texts if str(saved) in text]


@pytest.mark.parametrize("language_model", [llama, qwen3, lambda: llama(tie=True)])
def test_a_loaded_model_has_the_losses_of_the_saved_one(language_model, tmp_path):
    model = dreamllm(language_model(), condition_projector="mlp")
    with torch.no_grad():
        model.dream_queries.queries.add_(1.0)

    loaded = load_model(save(model, tmp_path / "model"))

    assert torch.equal(losses(loaded), losses(model.eval()))
    assert loaded.config == model.config
    saved, restored = model.state_dict(), loaded.state_dict()
    assert saved.keys() == restored.keys()
    assert all(torch.equal(saved[name], restored[name]) for name in saved)


def test_every_part_loads_with_its_own_library(saved):
    model = dreamllm()

    parts = {
        model.language_model: AutoModelForCausalLM.from_pretrained(saved / "language_model"),
        model.vision_encoder.model: CLIPVisionModel.from_pretrained(saved / "vision_encoder"),
        model.image_decoder.unet: UNet2DConditionModel.from_pretrained(saved / "image_decoder" / "unet"),
        model.image_decoder.vae: AutoencoderKL.from_pretrained(saved / "image_decoder" / "vae"),
    }

    for ours, stock in parts.items():
        tensors = stock.state_dict()
        assert tensors.keys() == ours.state_dict().keys()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in ours.state_dict().items())
    stock_scheduler = DDPMScheduler.from_pretrained(saved / "image_decoder" / "scheduler")
    assert torch.equal(stock_scheduler.alphas_cumprod, model.image_decoder.scheduler.alphas_cumprod)
    assert not [file for file in saved.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_the_folder_says_what_it_is(saved):
    index = read_index(saved)

    assert index.config == dreamllm().config
    assert index.versions["torch"] == torch.__version__
    assert read_transforms(saved) == TRANSFORMS
    assert (saved / "tokenizer" / "words.txt").is_file()
    assert sorted(item.name for item in saved.iterdir()) == [
        "connectors",
        "image_decoder",
        "image_processor",
        "language_model",
        "model_index.json",
        "tokenizer",
        "vision_encoder",
    ]


def test_half_precision_on_disk_leaves_the_model_in_memory_alone(tmp_path):
    model = dreamllm()
    before = losses(model)

    path = save(model, tmp_path / "small", dtype=torch.float16)

    assert torch.equal(losses(model), before)
    for file in path.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file
    loaded = load_model(path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert_close(losses(loaded), before, rtol=2e-2, atol=0)
    assert {p.dtype for p in load_model(path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_trained_bracket_rows_are_saved_in_the_stock_tables(tmp_path):
    model = dreamllm()
    apply_trainable(model, Trainable(special_token_rows=True), special_token_ids=BRACKETS)
    with torch.no_grad():
        model.special_token_rows.embedding_rows.add_(0.3)
        model.special_token_rows.head_rows.sub_(0.3)

    loaded = load_model(save(model, tmp_path / "model"))

    assert_close(losses(loaded), losses(model))
    assert (losses(loaded) - losses(dreamllm())).abs().min() > 1e-3


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(copied):
    changed = dreamllm()
    with torch.no_grad():
        changed.dream_queries.queries.zero_()

    save(changed, copied)

    assert torch.equal(load_model(copied).dream_queries.queries, changed.dream_queries.queries)
    assert [item.name for item in copied.parent.iterdir()] == [copied.name]


def test_a_save_that_fails_leaves_the_old_model_whole(copied):
    class FullDisk:
        def save_pretrained(self, path):
            raise OSError("no space left on device")

    with pytest.raises(DiskError, match="no space"):
        save_model(dreamllm(), copied, tokenizer=FullDisk(), transforms={})

    assert torch.equal(losses(load_model(copied)), losses(dreamllm()))
    assert [item.name for item in copied.parent.iterdir()] == [copied.name]


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(CheckpointError, match="no model folder"):
        save(dreamllm(), tmp_path)

    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_quantised_weights_are_not_written(tmp_path):
    model = dreamllm()
    quantize_linears(model.language_model.get_decoder(), "int8")

    with pytest.raises(CheckpointError, match="holds quantised weights"):
        save(model, tmp_path / "model")

    assert not (tmp_path / "model").exists()


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


PARTS = {
    "language_model/model.safetensors": "model.norm.weight",
    "vision_encoder/model.safetensors": "post_layernorm.weight",
    "connectors/model.safetensors": "visual_projector.bias",
    "image_decoder/unet/diffusion_pytorch_model.safetensors": "conv_in.bias",
    "image_decoder/vae/diffusion_pytorch_model.safetensors": "encoder.conv_in.bias",
}


@pytest.mark.parametrize(("file", "name"), PARTS.items())
def test_tensors_that_do_not_fit_are_named(copied, file, name):
    path = copied / file
    whole = path.read_bytes()

    edit(path, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"1 missing: {name}"):
        load_model(copied)

    path.write_bytes(whole)
    edit(path, lambda tensors: tensors.update({"stray.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"1 left over: stray\.weight"):
        load_model(copied)

    path.write_bytes(whole)
    edit(path, lambda tensors: tensors.update({name: torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=rf"1 of the wrong shape: {name} \(5,\) instead of"):
        load_model(copied)

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(copied)


@pytest.mark.parametrize(
    "part",
    [
        "language_model",
        "vision_encoder",
        "connectors",
        *(f"image_decoder/{p}" for p in ("unet", "vae", "scheduler")),
    ],
)
def test_a_missing_part_is_named(copied, part):
    shutil.rmtree(copied / part)

    with pytest.raises(CheckpointError, match=rf"{part} is missing"):
        load_model(copied)


def test_a_missing_or_foreign_index_is_refused(copied):
    index = json.loads((copied / "model_index.json").read_text())

    with pytest.raises(CheckpointError, match=r"has no model_index.json"):
        read_index(copied / "nowhere")
    (copied / "model_index.json").write_text(json.dumps({**index, "format_version": 99}))
    with pytest.raises(CheckpointError, match="in format 99"):
        load_model(copied)
    (copied / "model_index.json").write_text(json.dumps({**index, "config": {"num_queries": 3}}))
    with pytest.raises(CheckpointError, match="num_queries"):
        read_index(copied)
    (copied / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_index(copied)
