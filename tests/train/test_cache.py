"""Caches filled by a recipe's own model, and the run that reads them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from tests.checkpoint.tiny_jam import save_tiny_jam
from tests.cli.small_model import save_small_model
from torch.testing import assert_close

from dreamllm.cli import main
from dreamllm.data.feature_cache import FeatureCache
from dreamllm.data.picture_digest import picture_digest
from dreamllm.data.sources import JsonlSourceConfig, PhaseConfig
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import read_documents, write_documents
from dreamllm.errors import CheckpointError, ConfigError, DocumentError
from dreamllm.runtime.seeding import make_generator
from dreamllm.sequence.batch import Batch
from dreamllm.train.cache import CacheFiller, CacheOptions, Filled
from dreamllm.train.cache_with_ray import StepBatches, fill_with_ray, filled
from dreamllm.train.objectives.build import build_objective
from dreamllm.train.objectives.configs import (
    DreamLLMObjectiveConfig,
    JamObjectiveConfig,
    ScenePhase,
    VaeObjectiveConfig,
)
from dreamllm.train.run_config import OptimConfig, RunConfig

NUM_PICTURES = 12
EXACT = CacheOptions(dtype="float32", batch_size=5, device="cpu", shard_bytes=4000)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and six documents with a given and a drawn picture each."""
    folder = tmp_path_factory.mktemp("data")
    save_small_model(folder / "model")
    draw = np.random.default_rng(0)
    pictures = [
        Image(
            source=PILImage.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)), learn=bool(i % 2)
        )
        for i in range(NUM_PICTURES)
    ]
    documents = [
        Document(parts=(pictures[i], Text(text="a"), pictures[i + 1]), id=str(i))
        for i in range(0, NUM_PICTURES, 2)
    ]
    write_documents(documents, folder / "documents.jsonl")
    return folder


def recipe(data: Path, **changes: object) -> RunConfig:
    objective = DreamLLMObjectiveConfig(
        model=data / "model",
        phases=(PhaseConfig(sources=(JsonlSourceConfig(path=data / "documents.jsonl"),)),),
        documents_per_step=2,
        row_length=200,
    )
    return RunConfig(
        name="small", objective=replace(objective, **changes), steps=3, optim=OptimConfig(lr=1e-3)
    )


def fill(data: Path, out: Path, steps: range = range(3), options: CacheOptions = EXACT, **kwargs) -> Filled:
    return CacheFiller(recipe(data), data, out=out, options=options).fill(steps, **kwargs)


def losses(config: RunConfig, data: Path) -> list[torch.Tensor]:
    objective = build_objective(config, data)
    batches: list[Batch] = [batch for step in range(3) for batch in objective.data[step]]
    return [term.sum for batch in batches for term in objective.losses(batch, make_generator(0)).values()]


def test_a_run_reads_the_caches_of_its_recipe_and_computes_the_same_losses(
    data: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    done = fill(data, tmp_path, on_step=lambda progress: seen.append(progress.documents))

    assert (done.documents, done.pictures) == (6, NUM_PICTURES)
    assert done.written == {"vision": NUM_PICTURES, "latents": NUM_PICTURES // 2}
    assert done.num_bytes == NUM_PICTURES * 4 * 16 * 4 + NUM_PICTURES // 2 * 8 * 8 * 8 * 4
    assert seen == [2, 4, 6]
    cached = recipe(data, vision_cache=tmp_path / "vision", latent_cache=tmp_path / "latents")
    assert_close(losses(cached, data), losses(recipe(data), data), rtol=1e-6, atol=1e-6)


def test_what_is_there_is_neither_decoded_nor_computed_again(data: Path, tmp_path: Path) -> None:
    first = fill(data, tmp_path, range(2))

    rest = fill(data, tmp_path)
    again = fill(data, tmp_path)

    assert first.written + rest.written == {"vision": NUM_PICTURES, "latents": NUM_PICTURES // 2}
    assert first.written["vision"] == 8
    assert again.written == {"vision": 0, "latents": 0}
    assert again.num_bytes == 0


def test_workers_parts_and_batches_change_no_entry(data: Path, tmp_path: Path) -> None:
    fill(data, tmp_path / "one")
    for part in range(2):
        fill(data, tmp_path / "parts", range(part, 3, 2), replace(EXACT, num_workers=1, batch_size=1))

    one, parts = (FeatureCache(tmp_path / name / "vision") for name in ("one", "parts"))
    digests = [picture_digest(image) for d in read_documents(data / "documents.jsonl") for image in d.images]
    assert len(one) == len(parts) == len(digests) == NUM_PICTURES
    for digest in digests:
        assert_close(one.get(digest), parts.get(digest), rtol=1e-5, atol=1e-6)


def test_pictures_that_cannot_be_read_are_counted_and_left_out(data: Path, tmp_path: Path) -> None:
    given = [Image(source=p, learn=False) for p in sorted((data / "documents_images").iterdir())[:2]]
    write_documents(
        [Document(parts=(image, Text(text="a")), id=str(i)) for i, image in enumerate(given)],
        tmp_path / "damaged.jsonl",
    )
    harmed = sorted((tmp_path / "damaged_images").iterdir())[0]
    harmed.write_bytes(harmed.read_bytes()[:60])
    phases = (PhaseConfig(sources=(JsonlSourceConfig(path=tmp_path / "damaged.jsonl"),)),)

    config = replace(recipe(data, phases=phases), steps=1)
    done = CacheFiller(config, data, out=tmp_path / "out", options=EXACT).fill(range(1))

    assert done.faults == {"ImageError": 1}
    assert str(harmed) in done.examples[0]
    assert done.written == {"vision": 1, "latents": 0}
    assert done.documents == 2


def test_a_recipe_without_frozen_encoders_has_nothing_to_cache(data: Path, tmp_path: Path) -> None:
    vae = VaeObjectiveConfig(phases=(ScenePhase(until=1.0, num_objects=(1,)),))

    with pytest.raises(ConfigError, match="objective of 'small' is 'vae', which has nothing to cache"):
        CacheFiller(replace(recipe(data), objective=vae), data, out=tmp_path, options=EXACT)
    with pytest.raises(ConfigError, match="caches is codes; the objective 'dreamllm' has vision, latents"):
        fill(data, tmp_path, options=CacheOptions(caches=("codes",)))
    with pytest.raises(ConfigError, match="batch_size=0"):
        CacheOptions(batch_size=0)


def jam_recipe(data: Path, **changes: object) -> RunConfig:
    """The same documents for a JAM; its model is written on first use."""
    if not (data / "jam").exists():
        save_tiny_jam(data / "jam")
    small = recipe(data)
    objective = JamObjectiveConfig(
        model=data / "jam", phases=small.objective.phases, documents_per_step=2, row_length=64
    )
    return replace(small, objective=replace(objective, **changes))


def test_a_jam_reads_its_codes_from_a_cache_and_its_batches_are_the_same(data: Path, tmp_path: Path) -> None:
    done = CacheFiller(jam_recipe(data), data, out=tmp_path, options=EXACT).fill(range(3))

    assert (done.documents, done.pictures, done.written) == (6, NUM_PICTURES, {"codes": NUM_PICTURES})
    assert FeatureCache(tmp_path / "codes").spec.dtype == "int32"
    plain = build_objective(jam_recipe(data), data)
    cached = build_objective(jam_recipe(data, code_cache=tmp_path / "codes"), data)
    for step in range(3):
        for one, other in zip(plain.data[step], cached.data[step], strict=True):
            assert torch.equal(one.input_ids, other.input_ids)


def test_a_cache_of_codes_is_that_of_its_image_tokenizer_and_holds_every_picture(
    data: Path, tmp_path: Path
) -> None:
    part = replace(EXACT, num_workers=1)
    CacheFiller(jam_recipe(data), data, out=tmp_path, options=part).fill(range(1))
    lacking = jam_recipe(data, code_cache=tmp_path / "codes")
    assert isinstance(lacking.objective, JamObjectiveConfig)

    with pytest.raises(DocumentError, match="is not in the cache"):
        [build_objective(lacking, data).data[step] for step in range(3)]
    computing = replace(lacking, objective=replace(lacking.objective, on_cache_miss="compute"))
    assert torch.equal(
        build_objective(computing, data).data[2][0].input_ids,
        build_objective(jam_recipe(data), data).data[2][0].input_ids,
    )
    other = Path(shutil.copytree(data / "jam", tmp_path / "other"))
    weights = load_file(other / "image_tokenizer" / "diffusion_pytorch_model.safetensors")
    save_file(
        {n: t + 1 for n, t in weights.items()},
        other / "image_tokenizer" / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(ConfigError, match=r"computed for something else: image_tokenizer\.weights"):
        build_objective(replace(lacking, objective=replace(lacking.objective, model=other)), data)


def test_a_jam_without_an_image_tokenizer_has_no_codes_to_cache(data: Path, tmp_path: Path) -> None:
    save_tiny_jam(tmp_path / "words", has_pictures=False)
    words = jam_recipe(data, model=tmp_path / "words")

    with pytest.raises(ConfigError, match="has no image tokenizer"):
        CacheFiller(words, data, out=tmp_path / "out", options=EXACT)
    assert isinstance(words.objective, JamObjectiveConfig)
    with pytest.raises(ConfigError, match=r"code_cache is .*but the model has no image tokenizer"):
        build_objective(replace(words, objective=replace(words.objective, code_cache=tmp_path)), data)


def write_recipe(data: Path, path: Path) -> Path:
    path.write_text(
        f"""
name: small
steps: 3
optim: {{lr: 1.0e-3}}
objective:
  kind: dreamllm
  model: {data / "model"}
  documents_per_step: 2
  row_length: 200
  phases: [{{sources: [{{kind: jsonl, path: {data / "documents.jsonl"}}}]}}]
"""
    )
    return path


def test_the_verb_fills_both_caches_and_says_how_to_train_with_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(data, tmp_path / "small.yaml")
    command = ["data", "cache", str(path), "--out", str(tmp_path / "caches"), "--device", "cpu"]

    assert main([*command, "--part", "1/2", "--caches", "vision"]) == 0
    assert f"4 new entries in {tmp_path / 'caches' / 'vision'}" in capsys.readouterr().out
    assert main([*command, "steps=2"]) == 0

    told = capsys.readouterr().out
    assert "4 documents with 8 pictures" in told
    assert f"4 new entries in {tmp_path / 'caches' / 'vision'}\n" in told
    assert f"4 new entries in {tmp_path / 'caches' / 'latents'}\n" in told
    assert f"train with objective.vision_cache={tmp_path / 'caches' / 'vision'} objective.lat" in told
    assert FeatureCache(tmp_path / "caches" / "vision").spec.dtype == "float16"


def test_the_verb_refuses_what_cannot_be_meant(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(data, tmp_path / "small.yaml")

    for arguments, told in (
        ([str(path), "--part", "2/2"], "part is '2/2'; expected K/N"),
        ([str(path), "--part", "0/2", "--ray-workers", "2"], "one way to share the work"),
        (["tiny"], "tiny is a family of recipes"),
    ):
        assert main(["data", "cache", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert told in capsys.readouterr().err.replace("\n", " ")


def test_a_batch_of_steps_is_computed_by_a_plain_callable(data: Path, tmp_path: Path) -> None:
    batches = StepBatches(recipe(data), data, tmp_path, EXACT)

    row = batches({"id": np.asarray([0, 2])})

    assert row["steps"] == [2]
    assert filled({"result": row["result"][0]}).pictures == 8
    assert len(FeatureCache(tmp_path / "vision")) == 8
    assert not (tmp_path / "vision" / "index.safetensors").exists()


def test_what_stops_a_worker_is_said_in_its_row(data: Path, tmp_path: Path) -> None:
    row = StepBatches(recipe(data, model=tmp_path / "nowhere"), data, tmp_path, EXACT)(
        {"id": np.asarray([0])}
    )

    with pytest.raises(CheckpointError, match="nowhere is no model folder"):
        filled({"result": row["result"][0]})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_ray_workers_fill_the_caches_of_one_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default: starved where other work is going on
    fill(data, tmp_path / "one")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    tasks: list[int] = []
    try:
        done = fill_with_ray(
            recipe(data),
            data,
            out=tmp_path / "ray",
            options=EXACT,
            num_workers=2,
            steps_per_task=2,
            on_task=lambda steps, _: tasks.append(steps),
        )
        path = str(write_recipe(data, tmp_path / "small.yaml"))
        command = ["data", "cache", path, "--device", "cpu", "--dtype", "float32", "--out"]
        assert main([*command, str(tmp_path / "verb"), "--ray-workers", "2"]) == 0
        assert "6 documents with 12 pictures" in capsys.readouterr().out
        assert main([*command, str(tmp_path / "none"), "--ray-workers", "3"]) == 2
        assert "3 Ray workers need 3 CPUs and the cluster has 2;" in capsys.readouterr().err
        lost = f"objective.model={tmp_path / 'nowhere'}"
        assert main([*command, str(tmp_path / "none"), "--ray-workers", "1", lost]) == 2
        assert "nowhere is no model folder" in capsys.readouterr().err
    finally:
        ray.shutdown()

    assert len(tasks) == 2
    assert tasks[-1] == 3
    assert done.pictures == NUM_PICTURES
    assert sum(done.written.values()) >= NUM_PICTURES + NUM_PICTURES // 2
    assert not (tmp_path / "none").exists()
    for name, number, size in (("latents", 1, NUM_PICTURES // 2), ("vision", 0, NUM_PICTURES)):
        one, *shared = (FeatureCache(tmp_path / by / name) for by in ("one", "ray", "verb"))
        assert [len(cache) for cache in (one, *shared)] == [size] * 3
        for document in read_documents(data / "documents.jsonl"):
            digest = picture_digest(document.images[number])
            for cache in shared:
                assert_close(one.get(digest), cache.get(digest), rtol=1e-5, atol=1e-6)
