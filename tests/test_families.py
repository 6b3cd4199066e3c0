"""Every family of language models with each kind of eye and brush: composed, trained, saved and used."""

from pathlib import Path

import pytest
import torch
from tests.models.tiny_decoders import DECODERS
from tests.models.tiny_language_models import FAMILIES
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch.testing import assert_close
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from dreamllm.checkpoint.pretrained import load_model
from dreamllm.cli import main
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.generate.pipeline import DreamLLM
from dreamllm.models.trainable import Trainable
from dreamllm.runtime.seeding import make_generator, seed_everything
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.optim import build_optimizer
from dreamllm.train.run_config import OptimConfig
from dreamllm.train.step import optimizer_step

BODY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
EYES = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**BODY, image_size=16, patch_size=8)),
    "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**BODY, num_patches=4, patch_size=8)),
}
BRUSHES = ("sd-v", "sana")
WITHOUT_BOS = ("qwen2", "qwen3", "qwen3_moe")
PADDED_VOCABULARY = 300


def stock_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Bytes, and what a tokenizer of the family has besides; it knows nothing of pictures."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = (
        {"eos_token": "<|im_end|>"} if family in WITHOUT_BOS else {"bos_token": "<s>", "eos_token": "</s>"}
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stock parts, as their own libraries write them."""
    folder = tmp_path_factory.mktemp("parts")
    for name, make in FAMILIES.items():
        make(vocab_size=PADDED_VOCABULARY).save_pretrained(folder / name)
        stock_tokenizer(name).save_pretrained(folder / name)
    for name, make in EYES.items():
        torch.manual_seed(2)
        make().save_pretrained(folder / name)
    for name in BRUSHES:
        for part, stock in DECODERS[name]().parts().items():
            stock.save_pretrained(folder / name / part)
    return folder


def two_steps(model: Path, out: Path) -> DreamLLMObjective:
    """Stage II at its smallest: everything but eye and brush moves, then the model is saved."""
    source = WorldSourceConfig(documents={"read_pair": 1.0, "draw_pair": 1.0, "story": 1.0}, num_objects=(1,))
    config = DreamLLMObjectiveConfig(
        model=model,
        train=Trainable(language_model=True),
        phases=(PhaseConfig(sources=(source,)),),
        documents_per_step=3,
        row_length=1400,
        rows_per_micro_batch=1,
    )
    seed_everything(0)
    objective = DreamLLMObjective(config, steps=2, seed=0)
    optimizer = build_optimizer(objective.module, objective.parameter_groups(), OptimConfig(lr=1e-3))
    for step in range(2):
        optimizer_step(
            objective,
            optimizer,
            objective.data[step],
            step=step,
            seed=0,
            device=torch.device("cpu"),
            clip_norm=1.0,
        )
    objective.export(out)
    return objective


@pytest.mark.parametrize("brush", BRUSHES)
@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_become_a_model_that_learns_is_saved_and_draws(
    family: str, eye: str, brush: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compose", str(tmp_path / "new"), "--num-dream-queries", "3", "--connector", "transformer"]
    for option, name in (("language-model", family), ("vision-encoder", eye), ("image-decoder", brush)):
        arguments += [f"--{option}", str(parts / name)]

    status = main([*arguments, "--num-connector-layers", "1"])
    printed = capsys.readouterr().out
    before = load_model(tmp_path / "new")
    trained = two_steps(tmp_path / "new", tmp_path / "trained")
    loaded = load_model(tmp_path / "trained")

    assert status == 0
    assert all(name in printed for name in (family, eye, brush, "condition_projector", "not stated"))
    module, [batch, *_] = trained.module.eval(), trained.data[1]
    with torch.no_grad():
        terms, again, first = (model(batch, make_generator(0)) for model in (module, loaded, before))
    for name, term in terms.items():
        assert term.count > 0
        assert_close(again[name].sum, term.sum, rtol=0, atol=0)
        assert (first[name].sum - term.sum).abs() > 1e-3 * term.sum.abs()

    document = DreamLLM.from_pretrained(tmp_path / "trained", device="cpu").generate(
        "Draw a circle.", mode="image", num_inference_steps=2
    )

    [drawn] = document.images
    assert drawn.load().size == (16, 16)
