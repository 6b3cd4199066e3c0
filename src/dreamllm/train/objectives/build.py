"""Config -> objective. Paths in the config are relative to the folder of the run."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from dreamllm.checkpoint.parts_config import PartsConfig, is_local
from dreamllm.runtime.seeding import derive_seed, seed_everything
from dreamllm.train.objectives import configs
from dreamllm.train.objectives.objective import Objective
from dreamllm.train.run_config import RunConfig


def build_objective(config: RunConfig, out_dir: Path) -> Objective:
    """The objective of a run, its weights drawn from the run's seed."""
    seed_everything(derive_seed(config.seed, "weights"))
    chosen: Any = _resolve(config.objective, out_dir)
    seed = derive_seed(config.seed, "data")
    match chosen:
        case configs.VaeObjectiveConfig():
            from dreamllm.train.objectives.vae import VaeObjective

            return VaeObjective(chosen, steps=config.steps, seed=seed)
        case configs.ImageTokenizerObjectiveConfig():
            from dreamllm.train.objectives.image_tokenizer import ImageTokenizerObjective

            return ImageTokenizerObjective(chosen, steps=config.steps, seed=seed)
        case configs.LanguageModelObjectiveConfig():
            from dreamllm.train.objectives.language_model import LanguageModelObjective

            return LanguageModelObjective(chosen, steps=config.steps, seed=seed)
        case configs.ClipObjectiveConfig():
            from dreamllm.train.objectives.clip import ClipObjective

            return ClipObjective(chosen, steps=config.steps, seed=seed)
        case configs.StableDiffusionObjectiveConfig():
            from dreamllm.train.objectives.stable_diffusion import StableDiffusionObjective

            return StableDiffusionObjective(chosen, steps=config.steps, seed=seed)
        case configs.JamObjectiveConfig():
            from dreamllm.train.objectives.jam import JamObjective

            return JamObjective(chosen, steps=config.steps, seed=seed)
        case configs.DreamLLMObjectiveConfig():
            from dreamllm.train.objectives.dreamllm import DreamLLMObjective

            return DreamLLMObjective(chosen, steps=config.steps, seed=seed)
    raise TypeError(type(chosen))


def _resolve(config: Any, base: Path) -> Any:
    """The config with every relative path below it made absolute; source files of the user keep theirs."""
    changed: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, Path):
            changed[item.name] = (base / value).resolve()
        elif is_dataclass(value):
            changed[item.name] = _resolve(value, base)
    if isinstance(config, PartsConfig):
        for name, source in config.sources():
            if is_local(source):
                changed[name] = str((base / Path(source).expanduser()).resolve())
    return replace(config, **changed)
