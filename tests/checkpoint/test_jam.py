"""A JAM on disk: what is written reads back equal, and whatever is wrong is one readable line."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny_jam import (
    CODES_PER_PICTURE,
    NUM_CODES,
    PICTURE_PX,
    byte_tokenizer,
    jam,
    llama,
    save_tiny_jam,
)
from tests.cli.small_model import save_small_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from dreamllm.checkpoint.jam import load_jam, load_jam_encoder, read_jam_index, save_jam
from dreamllm.checkpoint.model_folder import PartSource, family_of
from dreamllm.checkpoint.pretrained import load_model
from dreamllm.document.document import Document, Image, Text
from dreamllm.errors import CheckpointError, DocumentError
from dreamllm.losses.total import Term
from dreamllm.models.jam import JAM
from dreamllm.models.quantization import quantize_linears
from dreamllm.sequence.packing import collate

SOURCES = {"language_model": PartSource(source="owner/words", license="mit")}
PICTURE = PILImage.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
STORY = Document(parts=(Text(text="a red"), Image(source=PICTURE), Text(text="and blue")))
CODEBOOK = "quantize.embedding.weight"
VQ_FILE = "image_tokenizer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_jam(tmp_path_factory.mktemp("models") / "jam", sources=SOURCES)


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def losses(model: JAM, folder: Path, document: Document = STORY) -> dict[str, float]:
    encoder = load_jam_encoder(folder, model)
    with torch.no_grad():
        terms: dict[str, Term] = model(collate([encoder.encode(document)], encoder.tokenizer.pad_id))
    return {name: float(term.sum) for name, term in terms.items()}


def edit(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_loaded_model_is_the_saved_one(saved: Path) -> None:
    model, loaded = jam(byte_tokenizer()), load_jam(saved)

    assert loaded.config == model.config
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses(loaded, saved) == losses(model.eval(), saved)
    assert min(losses(loaded, saved).values()) > 0
    assert not any(module.training for module in loaded.modules())


def test_every_part_loads_with_its_own_library(saved: Path) -> None:
    model = load_jam(saved)

    words = AutoModelForCausalLM.from_pretrained(saved / "language_model").state_dict()
    pictures = VQModel.from_pretrained(saved / "image_tokenizer").state_dict()

    assert all(torch.equal(t, words[name]) for name, t in model.language_model.state_dict().items())
    assert model.image_tokenizer is not None
    own = model.image_tokenizer.vq_model.state_dict()
    assert own.keys() == pictures.keys()
    assert all(torch.equal(tensor, pictures[name]) for name, tensor in own.items())


def test_the_folder_says_what_it_is(saved: Path) -> None:
    index = read_jam_index(saved)

    assert family_of(saved) == "JAM"
    assert (index.config.num_codes, index.config.codes_per_picture) == (NUM_CODES, CODES_PER_PICTURE)
    assert index.sources == SOURCES
    assert sorted(item.name for item in saved.iterdir()) == [
        "image_processor",
        "image_tokenizer",
        "language_model",
        "model_index.json",
        "tokenizer",
    ]
    assert json.loads((saved / "image_processor" / "target.json").read_text()) == {"image_px": PICTURE_PX}
    assert not [text for text in saved.rglob("*.json") if str(saved) in text.read_text()]


def test_saving_what_was_loaded_names_no_folder_of_this_machine(saved: Path, tmp_path: Path) -> None:
    model = load_jam(saved)
    encoder = load_jam_encoder(saved, model)

    again = save_jam(
        model, tmp_path / "again", tokenizer=encoder.tokenizer, target_transform=encoder.target_transform
    )

    assert not [file for file in again.rglob("*.json") if str(saved) in file.read_text()]
    assert losses(load_jam(again), again) == losses(model, saved)


def test_half_precision_on_disk_loads_as_float32_and_leaves_memory_alone(saved: Path, tmp_path: Path) -> None:
    small = save_tiny_jam(tmp_path / "small", dtype=torch.float16)

    for file in small.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}, file
    loaded = load_jam(small)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    whole, halved = losses(load_jam(saved), saved), losses(loaded, small)
    assert whole != halved
    assert_close(torch.tensor(list(halved.values())), torch.tensor(list(whole.values())), rtol=2e-2, atol=0)
    assert {p.dtype for p in load_jam(small, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_the_encoder_of_a_folder_fits_its_model_and_survives_a_pickle(saved: Path) -> None:
    model = load_jam(saved)

    encoder = load_jam_encoder(saved, model)

    (sequence,) = encoder.encode(STORY)
    codes = sequence.input_ids[encoder.tokens.is_code(sequence.input_ids)]
    pixels = torch.from_numpy(encoder.target_transform(PICTURE))[None]
    assert model.image_tokenizer is not None
    expected = model.image_tokenizer.encode(pixels)[0].numpy() + model.config.first_code
    assert codes.tolist() == expected.tolist()
    assert encoder.options.max_length == model.language_model.config.max_position_embeddings
    again = pickle.loads(pickle.dumps(encoder.picture_codes))(pixels)
    assert (again[0].numpy() + model.config.first_code).tolist() == codes.tolist()


def test_a_parent_of_words_alone_has_no_image_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny_jam(tmp_path / "words", has_pictures=False)

    model = load_jam(folder)

    assert model.image_tokenizer is None
    assert sorted(item.name for item in folder.iterdir()) == [
        "language_model",
        "model_index.json",
        "tokenizer",
    ]
    assert losses(model, folder, Document(parts=(Text(text="a red"),)))["text"] > 0
    with pytest.raises(DocumentError, match="no image tokenizer"):
        losses(model, folder)


def test_a_folder_of_the_other_family_is_one_line(saved: Path, tmp_path: Path) -> None:
    dream = save_small_model(tmp_path / "dream")

    with pytest.raises(CheckpointError, match=r"holds a DreamLLM, expected a JAM; .*dreamllm\.DreamLLM\."):
        load_jam(dream)
    with pytest.raises(CheckpointError, match=r"holds a JAM, expected a DreamLLM; .*dreamllm\.JAM\."):
        load_model(saved)


def test_a_model_folder_is_replaced_and_anything_else_is_not(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")

    save_tiny_jam(copied, llama(byte_tokenizer(), seed=9))
    with pytest.raises(CheckpointError, match="no model folder"):
        save_tiny_jam(tmp_path / "thesis")

    assert losses(load_jam(copied), copied) == losses(
        jam(byte_tokenizer(), llama(byte_tokenizer(), seed=9)).eval(), copied
    )
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["copy", "thesis"]


def test_quantised_weights_are_not_written(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = jam(tokenizer)
    quantize_linears(model.language_model.get_decoder(), "int8")

    with pytest.raises(CheckpointError, match="holds quantised weights"):
        save_jam(model, tmp_path / "m", tokenizer=tokenizer, target_transform=None)

    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("file", "name"),
    [("language_model/model.safetensors", "model.norm.weight"), (VQ_FILE, CODEBOOK)],
)
def test_tensors_that_do_not_fit_are_named(copied: Path, file: str, name: str) -> None:
    path = copied / file
    whole = path.read_bytes()

    edit(path, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"1 missing: {name}"):
        load_jam(copied)

    path.write_bytes(whole)
    edit(path, lambda tensors: tensors.update({"stray.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"1 left over: stray\.weight"):
        load_jam(copied)

    path.write_bytes(whole)
    edit(path, lambda tensors: tensors.update({name: torch.zeros(5)}))
    with pytest.raises(CheckpointError, match=rf"1 of the wrong shape: {name} \(5,\) instead of"):
        load_jam(copied)

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_jam(copied)


def test_a_codebook_that_is_not_finite_is_one_line(copied: Path) -> None:
    edit(copied / VQ_FILE, lambda tensors: tensors[CODEBOOK][3].fill_(float("nan")))

    with pytest.raises(CheckpointError, match=r"image_tokenizer: the codebook .* not finite"):
        load_jam(copied)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("language_model", r"language_model is missing"),
        ("image_tokenizer", r"image_tokenizer is missing"),
        ("image_processor", r"image_processor is missing"),
        ("tokenizer", r"holds no tokenizer\.json"),
    ],
)
def test_a_missing_part_is_named(copied: Path, part: str, told: str) -> None:
    shutil.rmtree(copied / part)

    with pytest.raises(CheckpointError, match=told):
        load_jam_encoder(copied, load_jam(copied))


def change_index(folder: Path, **config: object) -> None:
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps({**index, "config": {**index["config"], **config}}))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"first_code": 900}, r"has a vocabulary of \d+, but 12 codes from 900 on need 912"),
        ({"num_codes": 11}, "the image tokenizer has 12 codes and 4 a picture"),
        ({"first_code": 3}, "the tokenizer uses ids up to"),
        ({"num_queries": 3}, "num_queries"),
        ({"chat_template": "nonsense"}, "nonsense"),
    ],
)
def test_an_index_that_does_not_fit_the_parts_is_one_line(
    copied: Path, config: dict[str, object], told: str
) -> None:
    change_index(copied, **config)

    with pytest.raises(CheckpointError, match=told) as caught:
        load_jam_encoder(copied, load_jam(copied))

    assert "\n" not in str(caught.value)


def test_pictures_made_for_another_image_tokenizer_are_one_line(copied: Path) -> None:
    (copied / "image_processor" / "target.json").write_text('{"image_px": 32}')

    with pytest.raises(CheckpointError, match="makes pictures of 32 px, but the image tokenizer reads 16 px"):
        load_jam_encoder(copied, load_jam(copied))


def test_an_index_of_another_format_or_class_is_one_line(copied: Path) -> None:
    file = copied / "model_index.json"
    index = json.loads(file.read_text())

    file.write_text(json.dumps({**index, "format_version": 99}))
    with pytest.raises(
        CheckpointError, match="a 'JAM' in format 99; this version reads 'DreamLLM' and 'JAM'"
    ):
        load_jam(copied)
    file.write_text(json.dumps({**index, "model_class": "GILL"}))
    with pytest.raises(CheckpointError, match="a 'GILL' in format 1"):
        load_jam(copied)
    file.write_text(json.dumps({**index, "sources": [1]}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_jam(copied)
