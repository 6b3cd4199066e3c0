import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.checkpoint.official.miniature import (
    CONDITION_WIDTH,
    NUM_QUERIES,
    PICTURE_PX,
    SENTENCES,
    WIDTH,
    Miniature,
    save,
    write_miniature,
)
from tests.models.tiny import clip, decoder, qwen3

from dreamllm.checkpoint.encoder import load_encoder
from dreamllm.checkpoint.official.importer import OfficialModel, read_official
from dreamllm.checkpoint.pretrained import load_model, save_model
from dreamllm.errors import CheckpointError, MissingExtraError

LANGUAGE, VISION = "pytorch_model.bin", "clip_vision_embedding.bin"
QUERIES, HEAD = "dream_embedding.bin", "stable_diffusion_head.bin"
FILES = (LANGUAGE, VISION, QUERIES, HEAD)


def read(made: Miniature) -> OfficialModel:
    return read_official(
        made.checkpoint, vision_encoder=made.vision_encoder, image_decoder=made.image_decoder
    )


def stored(made: Miniature) -> dict[str, torch.Tensor]:
    """Every tensor of the files by its name in our model."""
    language, vision = made.tensors(LANGUAGE), made.tensors(VISION)
    head = made.tensors(HEAD)
    frozen = "clip_vision_model.vision_model."
    return {
        **{f"language_model.{name}": each for name, each in language.items() if "inv_freq" not in name},
        **{
            f"vision_encoder.model.{name.removeprefix(frozen)}": each
            for name, each in vision.items()
            if name.startswith(frozen)
        },
        **{
            f"image_decoder.{name}": each for name, each in head.items() if name.startswith(("unet.", "vae."))
        },
        "visual_projector.weight": vision["projector.projector.weight"],
        "visual_projector.bias": vision["projector.projector.bias"],
        "dream_queries.queries": made.tensors(QUERIES)["dream_queries"],
        "condition_projector.weight": head["projector.projector.weight"],
    }


def assert_same(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_arrives_as_it_is_stored_and_survives_our_folder(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    made = write_miniature(tmp_path / "official", dtype)
    expected = stored(made)

    official = read(made)
    path = save_model(
        official.model, tmp_path / "ours", tokenizer=official.tokenizer, transforms=official.transforms
    )

    assert len(expected) > 200
    assert {tensor.dtype for tensor in expected.values()} == {dtype}
    assert_same(official.model, expected)
    assert_same(load_model(path, dtype=dtype), expected)
    assert official.model.config.num_dream_queries == NUM_QUERIES
    assert official.skipped == {"computed buffers": 2}


def test_ids_and_spelling_come_from_the_tokenizer_files(miniature: Miniature, tmp_path: Path) -> None:
    official = read(miniature)
    path = save_model(
        official.model, tmp_path / "ours", tokenizer=official.tokenizer, transforms=official.transforms
    )
    model = load_model(path)
    encoder = load_encoder(path, model)

    words, special = miniature.sentencepiece(), encoder.tokenizer.special
    first = len(words)
    names = ("pad", "im_start", "dream_end", "dream_start", "im_patch", "im_end", "image", "dream")
    assert {name: getattr(special, name) for name in names} == {
        name: first + place for place, name in enumerate(names)
    }
    config = model.language_model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, first)
    assert (encoder.tokenizer.bos_id, encoder.tokenizer.eos_id) == (1, 2)
    for text in (*SENTENCES, "two  spaces", "snow ☃ 12", "a <dream_start> is typed"):
        assert encoder.tokenizer.encode(text) == words.encode(text)
    assert encoder.chat.name == "vicuna_v1_1"
    assert encoder.vision_transform.image_px == encoder.target_transform.image_px == PICTURE_PX


def test_a_checkpoint_of_several_types_is_held_exactly(tmp_path: Path) -> None:
    made = write_miniature(tmp_path / "official", torch.bfloat16)
    norm = torch.rand(WIDTH)
    made.change(LANGUAGE, model__norm__weight=norm)

    language_model = read(made).model.language_model

    assert {tensor.dtype for tensor in language_model.state_dict().values()} == {torch.float32}
    assert torch.equal(language_model.model.norm.weight, norm)
    head = made.tensors(LANGUAGE)["lm_head.weight"]
    assert torch.equal(language_model.lm_head.weight, head.float())


@pytest.mark.parametrize(
    ("changes", "legacy"), [({}, True), ({"legacy": True}, True), ({"legacy": False}, False)]
)
def test_text_after_a_special_token_is_spelled_as_the_model_learned_it(
    miniature: Miniature, changes: dict[str, bool], legacy: bool
) -> None:
    miniature.change_json("tokenizer_config.json", **changes)

    words = read(miniature).tokenizer.tokenizer

    ids = words.encode("sits on", after=words.special.im_end)
    assert (ids == miniature.sentencepiece().encode("sits on")) is legacy
    assert words.decode(ids).strip() == "sits on"


def sharded(made: Miniature) -> None:
    tensors = list(made.tensors(LANGUAGE).items())
    places = {}
    for number in (1, 2):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        part = dict(tensors[:9] if number == 1 else tensors[9:])
        save(made.checkpoint / name, part)
        places |= dict.fromkeys(part, name)
    (made.checkpoint / f"{LANGUAGE}.index.json").write_text(json.dumps({"weight_map": places}))
    (made.checkpoint / LANGUAGE).unlink()


def as_safetensors(made: Miniature) -> None:
    save_file(made.tensors(LANGUAGE), made.checkpoint / "model.safetensors")
    (made.checkpoint / LANGUAGE).unlink()


def fast_tokenizer(made: Miniature) -> None:
    read(made).tokenizer.tokenizer.save_pretrained(made.checkpoint)
    (made.checkpoint / "tokenizer.model").unlink()


def short_names_of_clip(made: Miniature) -> None:
    tensors = {name.replace(".vision_model.", "."): each for name, each in made.tensors(VISION).items()}
    tensors = {name.replace("pre_layrnorm", "pre_layernorm"): each for name, each in tensors.items()}
    save(made.checkpoint / VISION, tensors | {"clip_vision_model.embeddings.position_ids": torch.arange(5)})


def old_names_of_attention(made: Miniature) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in made.tensors(HEAD).items():
        match = re.fullmatch(r"(vae\..*attentions\.0\.)(to_q|to_k|to_v|to_out\.0)\.(weight|bias)", name)
        if match is None:
            tensors[name] = tensor
        else:
            convolved = tensor[:, :, None, None] if match[3] == "weight" else tensor
            tensors[f"{match[1]}{old[match[2]]}.{match[3]}"] = convolved
    assert sum(tensor.dim() == 4 and "attentions" in name for name, tensor in tensors.items()) >= 8
    save(made.checkpoint / HEAD, tensors)


def parameters(made: Miniature) -> None:
    """A file of `nn.Parameter`s, which is what a careless save writes."""
    save(
        made.checkpoint / QUERIES,
        {"dream_queries": torch.nn.Parameter(made.tensors(QUERIES)["dream_queries"])},
    )


@pytest.mark.parametrize(
    "rewrite",
    [
        sharded,
        as_safetensors,
        fast_tokenizer,
        short_names_of_clip,
        old_names_of_attention,
        parameters,
    ],
)
def test_the_same_checkpoint_in_another_dress_is_the_same_model(
    miniature: Miniature, rewrite: Callable[[Miniature], None]
) -> None:
    expected, ids = stored(miniature), miniature.sentencepiece().encode(SENTENCES[0])

    rewrite(miniature)

    official = read(miniature)
    assert_same(official.model, expected)
    assert official.tokenizer.tokenizer.encode(SENTENCES[0]) == ids


def test_copies_of_plugin_tensors_are_counted_and_left_out(miniature: Miniature) -> None:
    expected, language = stored(miniature), miniature.tensors(LANGUAGE)
    prefixes = {
        VISION: "model.clip_vision_embedding.",
        QUERIES: "model.dream_embedding.",
        HEAD: "stable_diffusion_head.",
    }
    copies = {
        prefix + name: tensor
        for file, prefix in prefixes.items()
        for name, tensor in miniature.tensors(file).items()
    }
    save(miniature.checkpoint / LANGUAGE, language | copies)

    official = read(miniature)

    assert_same(official.model, expected)
    assert official.skipped == {"computed buffers": 2, "copies of plugin tensors": len(copies)}
    copies["model.dream_embedding.dream_queries"] = copies["model.dream_embedding.dream_queries"] + 1
    save(miniature.checkpoint / LANGUAGE, language | copies)
    with pytest.raises(
        CheckpointError, match=r"1 tensors twice with different values: dream_queries\.queries"
    ):
        read(miniature)


def test_early_files_without_the_frozen_parts_take_them_from_the_stock_folders(
    miniature: Miniature,
) -> None:
    expected = stored(miniature)
    vision, head = miniature.tensors(VISION), miniature.tensors(HEAD)
    torch.manual_seed(8)
    eye, brush = clip(), decoder()
    eye.save_pretrained(miniature.vision_encoder)
    brush.unet.save_pretrained(miniature.image_decoder / "unet")
    brush.vae.save_pretrained(miniature.image_decoder / "vae")
    save(miniature.checkpoint / "dream_queries.pt", miniature.tensors(QUERIES)["dream_queries"])
    projector = {name.removeprefix("projector."): vision[name] for name in vision if "projector.p" in name}
    save(miniature.checkpoint / "clip_vision_model_projector.pt", projector)
    save(miniature.checkpoint / "unet_projector.pt", {"weight": head["projector.projector.weight"]})
    for file in (VISION, QUERIES, HEAD):
        (miniature.checkpoint / file).unlink()

    model = read(miniature).model

    stock = {
        "vision_encoder.model": eye,
        "image_decoder.unet": brush.unet,
        "image_decoder.vae": brush.vae,
    }
    for prefix, module in stock.items():
        expected |= {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}
    assert_same(model, expected)


def test_weights_of_the_checkpoint_win_over_those_of_the_stock_folders(miniature: Miniature) -> None:
    expected = stored(miniature)
    with torch.no_grad():
        eye = clip()
        eye.pre_layrnorm.weight.add_(1)
    eye.save_pretrained(miniature.vision_encoder)

    assert_same(read(miniature).model, expected)


def test_projectors_of_two_layers_are_recognised(miniature: Miniature) -> None:
    first, second = torch.randn(WIDTH, 16), torch.randn(WIDTH, WIDTH)
    miniature.change(
        VISION,
        projector__projector__weight=None,
        projector__projector__bias=None,
        projector__projector__0__weight=first,
        projector__projector__0__bias=torch.randn(WIDTH),
        projector__projector__2__weight=second,
        projector__projector__2__bias=torch.randn(WIDTH),
    )
    miniature.change(
        HEAD,
        projector__projector__weight=None,
        projector__projector__0__weight=torch.randn(CONDITION_WIDTH, WIDTH),
        projector__projector__2__weight=torch.randn(CONDITION_WIDTH, CONDITION_WIDTH),
    )

    model = read(miniature).model

    assert (model.config.visual_projector, model.config.condition_projector) == ("mlp", "mlp")
    assert torch.equal(model.visual_projector[0].weight, first)
    assert torch.equal(model.visual_projector[2].weight, second)


class Hostile:
    """Runs a command when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("file", FILES)
def test_a_payload_in_a_file_is_never_run(miniature: Miniature, tmp_path: Path, file: str) -> None:
    mark = tmp_path / "was-run"
    save(miniature.checkpoint / file, {**miniature.tensors(file), "payload": Hostile(mark)})

    with pytest.raises(
        CheckpointError, match=rf"{file} holds more than tensors: it asks for \S+system"
    ) as caught:
        read(miniature)

    assert not mark.exists()
    assert "\n" not in str(caught.value)
    torch.load(miniature.checkpoint / file, weights_only=False)
    assert mark.exists()  # so the payload was one


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.98])
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_short_is_one_readable_error(miniature: Miniature, file: str, part: float) -> None:
    path = miniature.checkpoint / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])

    with pytest.raises(CheckpointError, match=rf"{file} cannot be read: .*cut short") as caught:
        read(miniature)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds a list, expected a dictionary of tensors"),
        ({"dream_queries": 3.5}, "1 entries that are no dense tensors of numbers: dream_queries"),
        ({"dream_queries": torch.zeros(1, 3, 32).to_sparse()}, "1 entries that are no dense tensors"),
        ({"dream_queries": torch.zeros(1, 3, 32, dtype=torch.int8)}, r"no floating-point .* torch\.int8"),
    ],
)
def test_what_is_no_dictionary_of_plain_tensors_is_refused(
    miniature: Miniature, content: object, said: str
) -> None:
    save(miniature.checkpoint / QUERIES, content)

    with pytest.raises(CheckpointError, match=said):
        read(miniature)


def test_import_paths_in_configurations_are_not_followed(
    miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_plugin.py").write_text("raise SystemExit('was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (miniature.checkpoint / "hostile_plugin.py").write_text("raise SystemExit('was imported')")
    plugin = {"_target_": "hostile_plugin.Head", "pretrained_model_name_or_path": "none"}
    auto = dict.fromkeys(("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"), "hostile_plugin.Head")
    miniature.change_json(
        "config.json", plugins={"head": plugin}, _target_="hostile_plugin.Head", auto_map=auto
    )
    miniature.change_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["hostile_plugin.Head", None]})

    assert_same(read(miniature).model, stored(miniature))

    assert not [name for name in sys.modules if "hostile_plugin" in name]


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (LANGUAGE, {"model__norm__weight": None}, r"1 missing: model\.norm\.weight"),
        (LANGUAGE, {"model__layers__0__x": torch.zeros(2)}, r"1 left over: model\.layers\.0\.x"),
        (LANGUAGE, {"stray": torch.zeros(2)}, "1 tensors that belong to no part .*: stray"),
        (LANGUAGE, {"model__norm__weight": torch.zeros(5)}, r"model\.norm\.weight \(5,\) instead of \(32,\)"),
        (
            VISION,
            {"clip_vision_model__vision_model__post_layernorm__bias": None},
            r"1 missing: post_layernorm",
        ),
        (
            VISION,
            {"projector__norm__weight": torch.zeros(2)},
            r"belong to no part .*: projector\.norm\.weight",
        ),
        (VISION, {"projector__projector__bias": None}, "1 missing: bias"),
        (QUERIES, {"dream_queries": None}, "1 missing: queries"),
        (QUERIES, {"dream_queries": torch.zeros(1, 3, 8)}, r"queries \(1, 3, 8\) instead of \(1, 3, 32\)"),
        (QUERIES, {"dream_queries": torch.zeros(32)}, r"queries \(32,\) instead of \(1, 1, 32\)"),
        (HEAD, {"unet__conv_in__bias": None}, r"1 missing: conv_in\.bias"),
        (HEAD, {"vae__stray": torch.zeros(2)}, "1 left over: stray"),
        (HEAD, {"vae__quant_conv__bias": torch.zeros(3)}, r"quant_conv\.bias \(3,\) instead of \(8,\)"),
        (HEAD, {"projector__projector__bias": torch.zeros(24)}, "1 left over: bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    miniature: Miniature, file: str, changes: dict[str, torch.Tensor | None], said: str
) -> None:
    miniature.change(file, **changes)

    with pytest.raises(CheckpointError, match=said):
        read(miniature)


def test_of_many_tensors_that_do_not_fit_eight_are_named(miniature: Miniature) -> None:
    names = [name for name in miniature.tensors(LANGUAGE) if "layers.0" in name and "inv_freq" not in name]
    miniature.change(LANGUAGE, **dict.fromkeys(names))

    with pytest.raises(CheckpointError) as caught:
        read(miniature)

    assert f"{len(names)} missing: " in str(caught.value)
    assert str(caught.value).count("layers.0") == 8 < len(names)


@pytest.mark.parametrize("file", [*FILES, "config.json", "added_tokens.json", "tokenizer.model"])
def test_a_missing_file_is_named(miniature: Miniature, file: str) -> None:
    (miniature.checkpoint / file).unlink()

    with pytest.raises(CheckpointError, match=re.escape(file)):
        read(miniature)


def test_special_tokens_with_other_ids_than_stated_are_refused(miniature: Miniature) -> None:
    added = miniature.json("added_tokens.json")
    first = added["[PAD]"]
    gap = {token: token_id + 1 for token, token_id in added.items()}
    (miniature.checkpoint / "added_tokens.json").write_text(json.dumps(gap))
    with pytest.raises(CheckpointError, match=rf"\[PAD\] is {first}, not {first + 1}"):
        read(miniature)

    del added["<dream>"]
    (miniature.checkpoint / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(CheckpointError, match=rf"<dream> is {first + 7}, not None"):
        read(miniature)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "is of model_type 'llama' and lacks no field; expected 'dreamllm'"),
        ({"rms_norm_eps": None}, "lacks rms_norm_eps"),
        ({"vocab_size": 300}, "has vocab_size 300 but the tokenizer beside it has 328 tokens"),
        ({"hidden_size": "wide"}, "config.json cannot be read: .*hidden_size"),
        ({"hidden_act": "no_such"}, "cannot be read: KeyError"),
        ({"num_attention_heads": 5}, "config.json cannot be read"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(
    miniature: Miniature, changes: dict[str, object], said: str
) -> None:
    miniature.change_json("config.json", **changes)

    with pytest.raises(CheckpointError, match=said):
        read(miniature)


def test_a_damaged_sentencepiece_model_is_one_readable_error(
    miniature: Miniature, caplog: pytest.LogCaptureFixture
) -> None:
    path = miniature.checkpoint / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:1000])

    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read"),
    ):
        read(miniature)

    assert caplog.records == []


def test_without_sentencepiece_the_line_that_installs_it_is_named(
    miniature: Miniature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)

    with pytest.raises(MissingExtraError, match=r"sentencepiece is not installed; run `pip install"):
        read(miniature)


def test_stock_folders_of_other_models_are_refused(miniature: Miniature, tmp_path: Path) -> None:
    qwen3().config.save_pretrained(tmp_path / "qwen")
    with pytest.raises(CheckpointError, match=r"qwen holds no CLIP"):
        read_official(
            miniature.checkpoint, vision_encoder=tmp_path / "qwen", image_decoder=miniature.image_decoder
        )

    unet = miniature.image_decoder / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"addition_embed_type": "text_time"}))
    with pytest.raises(CheckpointError, match="holds no Stable Diffusion 1 or 2"):
        read(miniature)


def test_an_index_may_only_name_files_beside_it(miniature: Miniature, tmp_path: Path) -> None:
    (miniature.checkpoint / LANGUAGE).rename(tmp_path / "elsewhere.bin")
    index = {"weight_map": {"model.norm.weight": "../../elsewhere.bin"}}
    (miniature.checkpoint / f"{LANGUAGE}.index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match="no weight_map from tensors to files beside it"):
        read(miniature)
