import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.checkpoint.official.miniature import (
    NUM_QUERIES,
    PICTURE_PX,
    SENTENCES,
    WIDTH,
    Miniature,
    write_miniature,
)
from tests.models.tiny import clip, decoder, qwen3
from tests.models.tiny_decoders import stable_diffusion_xl
from transformers import LlamaConfig, LlamaForCausalLM

from dreamllm.checkpoint.official.exporter import write_official
from dreamllm.checkpoint.official.importer import OfficialModel, read_official
from dreamllm.checkpoint.pretrained import load_model, save_model
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.errors import CheckpointError
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.sequence.tokenizer import Tokenizer, train_tokenizer

FILES = {"pytorch_model.bin", "clip_vision_embedding.bin", "dream_embedding.bin", "stable_diffusion_head.bin"}
TRANSFORMS = {
    "vision": VisionTransform(image_px=PICTURE_PX).to_dict(),
    "target": TargetTransform(image_px=PICTURE_PX).to_dict(),
}


def save(official: OfficialModel, path: Path) -> Path:
    return save_model(official.model, path, tokenizer=official.tokenizer, transforms=official.transforms)


def read(made: Miniature, checkpoint: Path) -> OfficialModel:
    return read_official(checkpoint, vision_encoder=made.vision_encoder, image_decoder=made.image_decoder)


def assert_same(model: DreamLLM, expected: DreamLLM) -> None:
    found, tensors = model.state_dict(), expected.state_dict()
    assert found.keys() == tensors.keys()
    assert [name for name in tensors if not torch.equal(found[name], tensors[name])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_import_export_and_import_again_changes_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    made = write_miniature(tmp_path / "official", dtype)
    made.change_json("config.json", rope_theta=5000.0, rope_scaling={"rope_type": "linear", "factor": 2.0})
    ours = save(read(made, made.checkpoint), tmp_path / "ours")

    back = write_official(ours, tmp_path / "back")

    for file in FILES:
        before, after = made.tensors(file), torch.load(back / file, weights_only=True)
        before = {name: tensor for name, tensor in before.items() if "inv_freq" not in name}
        assert before.keys() == after.keys()
        assert {name: tensor.dtype for name, tensor in after.items()} == dict.fromkeys(before, dtype)
        assert all(torch.equal(before[name], after[name]) for name in before)
    described = json.loads((back / "config.json").read_text())
    kept = {name: value for name, value in made.json("config.json").items() if name in described}
    added = made.json("added_tokens.json")
    mended = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": added["[PAD]"]}
    assert {name: described[name] for name in kept} == kept | mended
    assert len(kept) > 14
    assert json.loads((back / "added_tokens.json").read_text()) == added
    assert (back / "tokenizer.model").read_bytes() == (made.checkpoint / "tokenizer.model").read_bytes()
    again = save(read(made, back), tmp_path / "again")
    first, second = load_model(ours, dtype=dtype), load_model(again, dtype=dtype)
    assert first.config == second.config
    assert_same(second, first)
    for part in ("language_model", "vision_encoder", "image_decoder/unet", "image_decoder/scheduler"):
        configs = [next((path / part).glob("*config.json")).read_text() for path in (ours, again)]
        assert configs[0] == configs[1], part


def test_old_libraries_find_the_special_tokens(miniature: Miniature, tmp_path: Path) -> None:
    ours = save(read(miniature, miniature.checkpoint), tmp_path / "ours")

    back = write_official(ours, tmp_path / "back")

    spelled = json.loads((back / "special_tokens_map.json").read_text())
    before = miniature.json("special_tokens_map.json")
    assert {name: spelled[name] for name in spelled if name != "additional_special_tokens"} == {
        name: before[name] for name in before if name != "additional_special_tokens"
    }
    assert sorted(spelled["additional_special_tokens"]) == sorted(before["additional_special_tokens"])


def composed(*, tie: bool = False, **given: object) -> tuple[DreamLLM, Tokenizer]:
    """A model of our own, with a tokenizer of letters; parts and settings may be others."""
    words = train_tokenizer(SENTENCES, vocab_size=300)
    torch.manual_seed(0)
    language_model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words.vocab_size,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=words.bos_id,
            eos_token_id=words.eos_id,
            pad_token_id=words.pad_id,
            tie_word_embeddings=tie,
        )
    )
    parts = {"language_model": language_model, "vision_model": clip(), "image_decoder": decoder()}
    parts |= {name: given.pop(name) for name in parts if name in given}
    return DreamLLM(DreamLLMConfig(num_dream_queries=NUM_QUERIES, **given), **parts), words


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_model_composed_here_survives_the_official_layout(tmp_path: Path, kind: str) -> None:
    model, words = composed(visual_projector=kind, condition_projector=kind)
    ours = save_model(model, tmp_path / "ours", tokenizer=words, transforms=TRANSFORMS)

    back = write_official(ours, tmp_path / "back")
    official = read_official(
        back, vision_encoder=ours / "vision_encoder", image_decoder=ours / "image_decoder"
    )

    assert_same(official.model, model)
    assert official.model.config == model.config
    kept = (
        "vocab_size",
        "num_key_value_heads",
        "rope_parameters",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    for name in kept:
        assert getattr(official.model.language_model.config, name) == getattr(
            model.language_model.config, name
        )
    assert official.transforms == TRANSFORMS
    again = official.tokenizer.tokenizer
    assert again.special == words.special
    assert again.encode(SENTENCES[0]) == words.encode(SENTENCES[0])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"language_model": qwen3}, "its language model is 'qwen3'"),
        ({"tie": True}, "its language model has tied embeddings"),
        ({"image_decoder": stable_diffusion_xl}, "its image decoder is another one"),
        ({"condition_projector": "transformer"}, "its condition projector is a transformer"),
        ({"select_layer": -1}, "its select_layer is -1 and not -2"),
        ({"chat_template": "chatml"}, "its chat_template is 'chatml' and not 'vicuna_v1_1'"),
    ],
)
def test_what_the_layout_has_no_place_for_is_refused(
    tmp_path: Path, parts: dict[str, object], said: str
) -> None:
    model, words = composed(**{name: part() if callable(part) else part for name, part in parts.items()})
    ours = save_model(model, tmp_path / "ours", tokenizer=words, transforms=TRANSFORMS)

    with pytest.raises(CheckpointError, match=said) as caught:
        write_official(ours, tmp_path / "back")

    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_an_export_appears_whole_or_not_at_all(miniature: Miniature, tmp_path: Path) -> None:
    ours = save(read(miniature, miniature.checkpoint), tmp_path / "ours")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="taken is there already"):
        write_official(ours, taken)
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]

    shutil.rmtree(ours / "image_decoder" / "vae")
    with pytest.raises(CheckpointError, match="vae holds no tensors"):
        write_official(ours, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official", "ours", "taken"]
