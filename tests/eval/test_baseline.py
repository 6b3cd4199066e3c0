"""The baseline: its own text tower, the model's image decoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.tiny import decoder as other_decoder
from transformers import CLIPTextModel

from dreamllm.errors import CheckpointError
from dreamllm.eval.baseline import Baseline
from dreamllm.eval.subject import Subject
from dreamllm.sequence.tokenizer import Tokenizer

DRAWING = {"seed": 0, "guidance_scale": 2.0, "num_inference_steps": 2}


@pytest.fixture
def folder(tmp_path: Path, text_encoder: CLIPTextModel, tokenizer: Tokenizer) -> Path:
    text_encoder.save_pretrained(tmp_path / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_a_loaded_baseline_draws_what_the_saved_one_drew(folder: Path, subject: Subject) -> None:
    assert subject.baseline is not None
    loaded = Baseline.load(folder, subject.generator.model.image_decoder)
    texts = ["A red circle.", "A blue square."]

    one, other = (b.draw(texts, batch_size=2, **DRAWING) for b in (subject.baseline, loaded))

    assert [np.asarray(p).tolist() for p in one] == [np.asarray(p).tolist() for p in other]
    assert one[0].tobytes() != one[1].tobytes()


def test_a_picture_does_not_depend_on_its_batch(subject: Subject) -> None:
    assert subject.baseline is not None
    texts = ["A red circle.", "A blue square.", "A pink star."]

    together, alone = (subject.baseline.draw(texts, batch_size=size, **DRAWING) for size in (3, 1))

    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(np.asarray(one, dtype=int), np.asarray(other, dtype=int), atol=1)


def test_the_condition_is_the_text_towers_last_state(subject: Subject, text_encoder: CLIPTextModel) -> None:
    assert subject.baseline is not None
    tokenizer = subject.generator.tokenizer
    words = tokenizer.encode(" A red circle.")
    ids = [tokenizer.bos_id, *words, tokenizer.eos_id]
    ids += [tokenizer.eos_id] * (text_encoder.config.max_position_embeddings - len(ids))

    with torch.no_grad():
        found = subject.baseline.condition(["A red circle."])
        expected = text_encoder(input_ids=torch.tensor([ids])).last_hidden_state

    torch.testing.assert_close(found, expected)


def test_captions_beyond_the_context_are_cut(subject: Subject) -> None:
    assert subject.baseline is not None

    assert not subject.baseline.is_cut("A red circle.")
    assert subject.baseline.is_cut("A red circle and a blue square. " * 10)


def test_a_folder_without_a_text_encoder_is_no_baseline(tmp_path: Path, subject: Subject) -> None:
    with pytest.raises(CheckpointError, match=r"is no baseline: it has no text_encoder/config\.json"):
        Baseline.load(tmp_path, subject.generator.model.image_decoder)


def test_a_baseline_of_another_width_does_not_fit(tmp_path: Path, folder: Path, tokenizer: Tokenizer) -> None:
    decoder = other_decoder()
    config = CLIPTextModel.from_pretrained(folder / "text_encoder").config
    config.hidden_size, config.num_attention_heads = 32, 2
    CLIPTextModel(config).save_pretrained(tmp_path / "wide" / "text_encoder")

    with pytest.raises(CheckpointError, match="is 32 wide, but the model's U-Net reads 24"):
        Baseline.load(tmp_path / "wide", decoder)
