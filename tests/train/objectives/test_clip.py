import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import CLIPModel

from dreamllm.data.transforms import VisionTransform
from dreamllm.runtime.seeding import make_generator
from dreamllm.train.objectives import clip
from dreamllm.train.objectives.clip import (
    ClipObjective,
    cell_classes,
    hard_negative,
    patch_cells,
    probe_accuracy,
)
from dreamllm.train.step import StepResult
from dreamllm.world.scene import Object, Scene
from dreamllm.world.splits import sample_scene

MakeClip = Callable[..., ClipObjective]


def scenes(num: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(num)]


def differences(a: Scene, b: Scene) -> list[tuple[str, str, str]]:
    """(attribute, before, after) of every object that changed, objects matched by place where they can be."""
    left = [thing for thing in a.objects if thing not in b.objects]
    right = [thing for thing in b.objects if thing not in a.objects]
    return [
        (name, before, asdict(new)[name])
        for old, new in zip(left, right, strict=True)
        for name, before in asdict(old).items()
        if before != asdict(new)[name]
    ]


def test_patches_of_16_px_lie_two_by_two_in_each_cell() -> None:
    assert patch_cells(16) == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert patch_cells(32) == [0, 1, 2, 3]


def test_classes_of_cells_are_places_in_the_lists_of_the_world_and_empty_is_one_more() -> None:
    scene = Scene(
        (Object("top right", "square", "blue", "large"), Object("bottom left", "circle", "red", "small")),
        "white",
    )

    assert cell_classes(scene).tolist() == [[5, 8, 2], [1, 5, 1], [0, 0, 0], [5, 8, 2]]


def test_a_hard_negative_changes_one_attribute_or_exchanges_two_colours() -> None:
    rng = np.random.default_rng(0)
    seen: set[str] = set()

    for scene in scenes(300, seed=1):
        changes = differences(scene, hard_negative(scene, rng))
        if len(changes) == 2:
            (first, a, b), (second, c, d) = changes
            assert first == second == "color"
            assert (a, b) == (d, c)
            seen.add("exchange")
        else:
            [(name, _, _)] = changes
            seen.add(name)

    assert seen == {"exchange", "shape", "color", "size", "place"}


def test_probes_read_every_attribute_off_one_hot_features() -> None:
    train, test = scenes(120, seed=2), scenes(60, seed=3)

    def one_hot(many: list[Scene]) -> torch.Tensor:
        cells = torch.from_numpy(np.stack([cell_classes(s) for s in many]))  # (n, 4, 3)
        hot = [F.one_hot(cells[..., i], size) for i, size in enumerate((6, 9, 3))]
        return torch.cat(hot, dim=-1)[:, patch_cells(16)].float()

    accuracy = probe_accuracy(one_hot(train), train, one_hot(test), test, patch_px=16)

    assert {name: accuracy[name] for name in ("shape", "color", "size")} == dict.fromkeys(
        ("shape", "color", "size"), 1.0
    )


def test_probes_read_nothing_off_noise() -> None:
    """Chance is a fifth, an eighth and a half; half of the cells are empty, so noise mostly says empty."""
    train, test = scenes(300, seed=2), scenes(200, seed=3)
    generator = torch.Generator().manual_seed(0)

    accuracy = probe_accuracy(
        torch.randn(300, 16, 8, generator=generator),
        train,
        torch.randn(200, 16, 8, generator=generator),
        test,
        patch_px=16,
    )

    assert accuracy["shape"] < 0.25
    assert accuracy["color"] < 0.2
    assert accuracy["size"] < 0.55


def test_the_contrast_is_that_of_the_stock_model_with_negatives_for_pictures_only(
    make_clip: MakeClip,
) -> None:
    objective = make_clip()
    [batch] = objective.data[0]

    term = objective.losses(batch, make_generator(0))["contrastive"]

    with torch.no_grad():
        logits = objective.clip(input_ids=batch.captions, pixel_values=batch.pixels).logits_per_image
    own = logits.log_softmax(1)[:, :3].diagonal()  # against 3 captions and 3 hard negatives
    told = logits[:, :3].log_softmax(0).diagonal()  # a true caption against 3 pictures
    assert logits.shape == (3, 6)
    assert term.count == 3
    assert_close(term.sum.detach(), -(own + told).sum() / 2)


def test_heads_that_know_nothing_cost_the_logarithm_of_their_classes(make_clip: MakeClip) -> None:
    objective = make_clip()
    [batch] = objective.data[0]
    with torch.no_grad():
        for heads in ("heads", "text_head"):
            for parameter in objective.module[heads].parameters():
                parameter.zero_()

    terms = objective.losses(batch, make_generator(0))

    seen, told = (terms[name].sum.detach().item() / terms[name].count for name in ("dense", "told"))
    assert seen == pytest.approx(np.log([6, 9, 3, 4, 4]).sum(), rel=1e-5)
    assert told == pytest.approx(np.log([6, 9, 3]).sum() + np.log(4) / 4, rel=1e-5)  # a cell's share


def test_two_steps_lower_the_loss_and_reach_both_towers(
    make_clip: MakeClip, take_steps: Callable[..., list[StepResult]]
) -> None:
    objective = make_clip()
    [batch] = objective.data[0]

    first, _ = take_steps(objective, lr=3e-3)

    assert first.counts == {"contrastive": 3, "dense": 3, "told": 3}
    with torch.no_grad():
        after = objective.losses(batch, make_generator(0))["dense"]
    assert after.sum.item() / after.count < first.terms["dense"]
    gradients = {n: p.grad for n, p in objective.module.named_parameters() if p.grad is not None}
    learned = {name.split(".")[1] for name, gradient in gradients.items() if gradient.abs().sum() > 0}
    assert {"vision_model", "text_model", "logit_scale", "shape", "background", "place"} <= learned
    assert gradients["text_head.weight"].abs().sum() > 0


def test_the_exported_pair_and_its_transform_load_with_their_own_libraries(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    objective = make_clip()
    [batch] = objective.data[0]

    objective.export(tmp_path)

    stock = CLIPModel.from_pretrained(tmp_path / "clip").vision_model
    ours = objective.clip.vision_model
    assert_close(stock(batch.pixels).last_hidden_state, ours(batch.pixels).last_hidden_state)
    transform = VisionTransform.from_preprocessor(
        json.loads((tmp_path / "clip" / "preprocessor_config.json").read_text())
    )
    assert (transform.image_px, transform.mean, transform.std) == (64, (0.5,) * 3, (0.5,) * 3)


def test_the_gate_holds_its_bar_against_the_worst_attribute(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "PROBE_SCENES", 24)

    with torch.no_grad():
        strict, lax = make_clip().gate(), make_clip(gate_accuracy=0.0).gate()

    probes = {"shape", "color", "size", "place"}
    heard = {"hears_shape", "hears_color", "hears_size", "hears_place", "hears_background"}
    assert strict.metrics.keys() == probes | heard | {f"held_out_{name}" for name in probes}
    assert strict.metrics == lax.metrics
    held_to_the_bar = [value for name, value in strict.metrics.items() if not name.startswith("held_out")]
    assert strict.passed == (min(held_to_the_bar) >= 0.97)
    assert lax.passed


def test_a_sample_tells_what_the_heads_read(make_clip: MakeClip, tmp_path: Path) -> None:
    with torch.no_grad():
        make_clip().sample(tmp_path, 0)

    assert (tmp_path / "dense.txt").read_text().count("Scene(") == 4
