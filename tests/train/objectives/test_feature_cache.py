"""Training from caches is the same training; a cache of another model is refused."""

import io
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from tests.models.tiny import clip, decoder
from tests.models.tiny_decoders import DECODERS
from torch.testing import assert_close

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.feature_cache import FeatureCache
from dreamllm.data.feature_cache_writer import FeatureCacheWriter
from dreamllm.data.sources import PhaseConfig, WorldSourceConfig
from dreamllm.data.transforms import TargetTransform, VisionTransform
from dreamllm.document.document import Image
from dreamllm.errors import ConfigError, DocumentError
from dreamllm.losses.total import DREAMLLM_WEIGHTS, total
from dreamllm.models.trainable import Trainable
from dreamllm.models.vision_encoder import VisionEncoder
from dreamllm.runtime.seeding import make_generator, seed_everything
from dreamllm.train.objectives import dreamllm
from dreamllm.train.objectives.configs import DreamLLMObjectiveConfig
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.objectives.feature_cache import (
    PictureFunction,
    latent_function,
    latent_spec,
    vision_function,
    vision_spec,
    weights_digest,
)
from dreamllm.world.render import render
from dreamllm.world.splits import sample_scene

DOCUMENTS = {"read_pair": 1.0, "draw_pair": 1.0, "story": 1.0}


def build(parts: PartsConfig, **changes: object) -> DreamLLMObjective:
    source = WorldSourceConfig(documents=DOCUMENTS, num_objects=(1,))
    config = DreamLLMObjectiveConfig(
        parts=parts,
        train=Trainable(language_model=True),
        phases=(PhaseConfig(sources=(source,)),),
        documents_per_step=6,
        row_length=640,
        rows_per_micro_batch=8,
        condition_dropout=0.3,
    )
    seed_everything(8)
    return DreamLLMObjective(replace(config, **changes), steps=10, seed=8)


def write(folder: Path, function: PictureFunction, pictures: list[Image]) -> Path:
    with FeatureCacheWriter(folder, function.spec) as writer:
        for digest, record in function(pictures):
            writer.add(digest, record)
    return folder


def caches(stage: DreamLLMObjective, folder: Path, *, dtype: str, steps: int = 2) -> dict[str, Path]:
    model, encoder = stage.module, stage.encoder
    documents = [d for step in range(steps) for d in stage.data._mixture.documents(step)]
    read, drawn = zip(*(encoder.pictures(document) for document in documents), strict=True)
    vision = vision_function(model.vision_encoder, encoder.vision_transform, dtype=dtype)
    latents = latent_function(model.image_decoder, encoder.target_transform, dtype=dtype)
    return {
        "vision_cache": write(folder / "vision", vision, list(chain(*read))),
        "latent_cache": write(folder / "latents", latents, list(chain(*drawn))),
    }


def loss_and_gradients(stage: DreamLLMObjective, step: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    [batch] = stage.data[step]
    terms = stage.losses(batch, make_generator(5))
    loss = total(terms, counts=stage.counts(batch), weights=DREAMLLM_WEIGHTS)
    learned = [p for p in stage.module.parameters() if p.requires_grad]
    return loss, list(torch.autograd.grad(loss, learned))


@pytest.mark.parametrize(
    ("dtype", "tolerance", "gradient_tolerance"),
    [("float32", 1e-6, 1e-5), ("float16", 1e-3, 1e-2), ("bfloat16", 1e-2, 5e-2)],
)
def test_losses_and_gradients_are_those_without_caches(
    parts: PartsConfig, tmp_path: Path, dtype: str, tolerance: float, gradient_tolerance: float
) -> None:
    plain = build(parts)
    cached = build(parts, **caches(plain, tmp_path, dtype=dtype))

    for step in range(2):
        expected, expected_gradients = loss_and_gradients(plain, step)
        loss, gradients = loss_and_gradients(cached, step)

        [batch] = cached.data[step]
        assert len(batch.vision_pixels) == len(batch.target_pixels) == 0
        assert len(batch.cached_images) > 0
        assert len(batch.cached_targets) > 0
        assert_close(loss, expected, rtol=tolerance, atol=0)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            assert (ours - theirs).norm() <= gradient_tolerance * theirs.norm() + 1e-8


def test_each_use_of_a_picture_draws_its_own_latents_from_the_moments(
    parts: PartsConfig, tmp_path: Path
) -> None:
    """The cache holds a posterior, not a sample: other noise gives other latents, the same noise the same."""
    plain = build(parts)
    [batch] = build(parts, **caches(plain, tmp_path, dtype="float32", steps=1)).data[0]
    image_decoder = plain.module.image_decoder
    empty = torch.empty(0, *image_decoder.moment_shape)

    moments = batch.cached_targets.fill(empty)
    first, second, again = (image_decoder.latents(moments, make_generator(seed)) for seed in (1, 2, 1))

    [whole] = plain.data[0]
    assert torch.equal(first, again)
    assert (first - second).abs().max() > 1e-3
    assert_close(first, image_decoder.encode(whole.target_pixels.scaled(), make_generator(1)))


def test_a_picture_beyond_the_cache_stops_the_run_or_is_computed(parts: PartsConfig, tmp_path: Path) -> None:
    plain = build(parts)
    folders = caches(plain, tmp_path, dtype="float32", steps=1)
    strict = build(parts, **folders)
    lenient = build(parts, **folders, on_cache_miss="compute")

    with pytest.raises(DocumentError, match=r"is not in the cache .*on_cache_miss to 'compute'"):
        strict.data[1]
    expected, _ = loss_and_gradients(plain, 1)
    assert_close(loss_and_gradients(lenient, 1)[0], expected, rtol=1e-6, atol=0)


def test_a_whitened_start_sees_the_features_of_the_cache(
    parts: PartsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dreamllm, "WHITENING_PICTURES", 4)
    settings = {"whiten": True, "condition_dropout": 0.0}
    plain = build(parts, **settings)
    folders = caches(plain, tmp_path, dtype="float32")

    cached = build(parts, **settings, **folders)

    assert_close(cached.module.visual_projector.weight, plain.module.visual_projector.weight)


def test_a_cache_of_other_weights_is_refused(parts: PartsConfig, tmp_path: Path) -> None:
    plain = build(parts)
    folders = caches(plain, tmp_path, dtype="float16", steps=1)
    with torch.no_grad():
        next(plain.module.vision_encoder.parameters()).add_(1e-3)
    function = vision_function(plain.module.vision_encoder, plain.encoder.vision_transform)
    other = write(tmp_path / "other", function, [])

    with pytest.raises(
        ConfigError, match=r"other was computed for something else: encoder\.weights is '\w+'"
    ):
        build(parts, vision_cache=other)
    with pytest.raises(ConfigError, match=r"what is 'vision features', not 'moments of latents'"):
        build(parts, latent_cache=folders["vision_cache"])
    with pytest.raises(ConfigError, match="holds no cache"):
        build(parts, latent_cache=tmp_path / "nothing")


def test_the_key_of_features_holds_all_that_decides_them() -> None:
    transform = VisionTransform(16)
    plain = vision_spec(VisionEncoder(clip()), transform)

    others = [
        vision_spec(VisionEncoder(clip(), select_layer=-1), transform),
        vision_spec(VisionEncoder(clip(), drop_cls=False), transform),
        vision_spec(VisionEncoder(clip(), select_layer=-1, post_layernorm=True), transform),
        vision_spec(VisionEncoder(clip()), replace(transform, fit="squash")),
        vision_spec(VisionEncoder(clip().half()), transform),
    ]

    assert vision_spec(VisionEncoder(clip(), select_layer=2), transform) == plain  # -2 of hidden states 0..3
    assert vision_spec(VisionEncoder(clip()), transform, dtype="bfloat16").key == plain.key
    assert len({str(spec.key) for spec in (plain, *others)}) == 6
    assert plain.shape == (4, 16)


def test_the_key_of_latents_holds_all_that_decides_them() -> None:
    plain = latent_spec(decoder(), TargetTransform(16))
    moved = decoder()
    with torch.no_grad():
        moved.vae.encoder.conv_in.bias[0] += 1e-3

    others = [
        latent_spec(decoder(shift_factor=0.1), TargetTransform(16)),
        latent_spec(moved, TargetTransform(16)),
        latent_spec(DECODERS["sana"](), TargetTransform(16)),
    ]

    assert latent_spec(decoder(prediction_type="v_prediction"), TargetTransform(16)) == plain
    assert all(other.key != plain.key for other in others)
    assert plain.shape == (8, 8, 8)


@pytest.mark.parametrize("kind", DECODERS)
def test_moments_of_every_kind_of_decoder_become_its_latents(kind: str, tmp_path: Path) -> None:
    image_decoder = DECODERS[kind]()
    function = latent_function(image_decoder, TargetTransform(16), dtype="float32")
    picture = Image(source=_png())
    cache = FeatureCache(write(tmp_path, function, [picture]))
    [(digest, _)] = function([picture])

    latents = image_decoder.latents(cache.get(digest)[None], make_generator(3))

    pixels = torch.from_numpy(TargetTransform(16)(picture.load()))[None]
    assert_close(latents, image_decoder.encode(pixels, make_generator(3)))
    assert function([]) == []


def test_the_digest_of_weights_follows_every_bit_and_name() -> None:
    layer = torch.nn.Linear(2, 2)
    other = torch.nn.Linear(2, 2)
    other.load_state_dict(layer.state_dict())
    same = weights_digest(other)
    with torch.no_grad():
        other.weight[1, 1] = torch.nextafter(other.weight[1, 1], torch.tensor(9.0))

    assert weights_digest(layer) == same
    assert len({same, weights_digest(other), weights_digest(torch.nn.Sequential(layer))}) == 3


def _png() -> bytes:
    import numpy as np
    from PIL import Image as PILImage

    buffer = io.BytesIO()
    pixels = render(sample_scene(np.random.default_rng(0), "train", num_objects=2))
    PILImage.fromarray(np.asarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
