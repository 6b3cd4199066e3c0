"""The stock configurations of all parts of a model, and the model they describe.

Shapes hold no tensor. The model is built by the stock classes and by `DreamLLM` itself, on the meta device:
seven billion parameters take neither memory nor time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dreamllm.checkpoint.compose import model_config
from dreamllm.checkpoint.parts import read_json
from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.checkpoint.pretrained import read_index
from dreamllm.config import load_config
from dreamllm.data.transforms import VisionTransform
from dreamllm.errors import CheckpointError, ConfigError
from dreamllm.models.decoders.kinds import decoder_class
from dreamllm.models.dreamllm import DreamLLM, DreamLLMConfig
from dreamllm.models.vision_encoder import VISION_CLASSES
from dreamllm.sequence.chat import VICUNA_V1_1
from dreamllm.sequence.special_tokens import NUM_SPECIAL_TOKENS
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.plan.stock_configs import config_folder
from dreamllm.train.run_config import RunConfig

SPARE_ROWS: Final = frozenset({"qwen2", "qwen3"})
"""Language models whose tables have unused rows, enough for the special tokens."""

StockConfig = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Everything that decides the shape of a model."""

    config: DreamLLMConfig
    language_model: StockConfig
    vision_model: StockConfig
    denoiser: StockConfig
    vae: StockConfig
    scheduler: StockConfig
    num_new_rows: int = 0
    """Rows the language model's tables gain for the special tokens."""


def find_shapes(objective: DreamLLMObjectiveConfig, *, recipe: Path, out_dir: Path) -> Shapes:
    """The shapes of the model a stage trains, whose run would write to `out_dir`.

    A stage that goes on from `../NAME/model` finds that folder, or, while it is not yet trained, the recipe
    `NAME.yaml` beside its own, which says what the model will be.

    Raises:
        CheckpointError: a part or its configuration is not known.
        ConfigError: there is neither a model nor a recipe that makes it.
    """
    if objective.parts is not None:
        return shapes_of_parts(objective.parts, out_dir)
    assert objective.model is not None  # the config has one of the two
    folder = (out_dir / objective.model).resolve()
    if folder.is_dir():
        return shapes_of_model(folder)
    earlier = recipe.parent / f"{folder.parent.name}.yaml"
    if not earlier.is_file() or earlier.samefile(recipe):
        raise ConfigError(
            f"{recipe} goes on from {objective.model}, but there is neither the model {folder} nor a recipe "
            f"{earlier} that would make it; train the stage before, or give objective.model=FOLDER"
        )
    made_by = load_config(RunConfig, earlier).objective
    if not isinstance(made_by, DreamLLMObjectiveConfig):
        raise ConfigError(
            f"{recipe} goes on from {objective.model}, but {earlier} trains a {made_by.kind}, expected a "
            "stage of DreamLLM; correct objective.model"
        )
    return find_shapes(made_by, recipe=earlier, out_dir=folder.parent)


def shapes_of_parts(parts: PartsConfig, base: Path) -> Shapes:
    """The shapes of a new model; folders of parts are relative to `base`."""
    language_model = read_json(config_folder(parts.language_model, base) / "config.json")
    vision_folder = config_folder(parts.vision_encoder, base)
    vision_model = read_json(vision_folder / "config.json")
    decoder: Any = _decoder_configs(config_folder(parts.image_decoder, base))
    preprocessor, vision_px = vision_folder / "preprocessor_config.json", parts.vision_px
    if vision_px is None and preprocessor.is_file():  # DINOv2 is trained at another size than it is read at
        vision_px = VisionTransform.from_preprocessor(read_json(preprocessor)).image_px
    return Shapes(
        config=model_config(
            parts, _vision_config(vision_model), vision_px=vision_px, chat_template=VICUNA_V1_1.name
        ),
        language_model=language_model,
        vision_model=vision_model,
        num_new_rows=0 if language_model.get("model_type") in SPARE_ROWS else NUM_SPECIAL_TOKENS,
        **decoder,
    )


def shapes_of_model(folder: Path) -> Shapes:
    """The shapes of a saved model."""
    decoder: Any = _decoder_configs(folder / "image_decoder")
    return Shapes(
        config=read_index(folder).config,
        language_model=read_json(folder / "language_model" / "config.json"),
        vision_model=read_json(folder / "vision_encoder" / "config.json"),
        **decoder,
    )


def build_model(shapes: Shapes, *, device: str = "meta") -> DreamLLM:
    """The model, its weights new; raises ConfigError for parts that do not fit each other."""
    stock = dict(shapes.language_model)
    language_config = AutoConfig.for_model(stock.pop("model_type"), **stock)
    language_config.get_text_config().vocab_size += shapes.num_new_rows
    vision_class = VISION_CLASSES[shapes.vision_model["model_type"]]
    kind: Any = decoder_class(shapes.denoiser)
    scheduler = kind.make_scheduler(shapes.scheduler)  # reads its own numbers, so they are real
    with torch.device(device):
        return DreamLLM(
            shapes.config,
            language_model=AutoModelForCausalLM.from_config(language_config),
            vision_model=vision_class(_vision_config(shapes.vision_model)),
            image_decoder=kind(
                kind.denoiser_class.from_config(dict(shapes.denoiser)),
                kind.vae_class.from_config(dict(shapes.vae)),
                scheduler,
            ),
        )


def _vision_config(stock: StockConfig) -> Any:
    """The configuration of a vision model, or of the vision half of a two-tower model."""
    model_type = stock.get("model_type")
    if not isinstance(model_type, str) or model_type not in VISION_CLASSES:
        raise ConfigError(
            f"a model of type {model_type!r} is no vision encoder known here; choose one of "
            f"{', '.join(VISION_CLASSES)}"
        )
    own = {key: value for key, value in stock.get("vision_config", stock).items() if key != "model_type"}
    return VISION_CLASSES[model_type].config_class(**own)


def _decoder_configs(folder: Path) -> dict[str, StockConfig]:
    denoisers = [folder / name / "config.json" for name in ("unet", "transformer")]
    found = [file for file in denoisers if file.is_file()]
    if not found:
        raise CheckpointError(
            f"{folder} holds neither unet/config.json nor transformer/config.json, so it is no image "
            "decoder; give the folder or hub id of a diffusers pipeline"
        )
    return {
        "denoiser": read_json(found[0]),
        "vae": read_json(folder / "vae" / "config.json"),
        "scheduler": read_json(folder / "scheduler" / "scheduler_config.json"),
    }
