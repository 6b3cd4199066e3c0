import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.train.objectives.test_dreamllm import build

from dreamllm.checkpoint.parts_config import PartsConfig
from dreamllm.data.sources import ArchiveSourceConfig, JsonlSourceConfig, OnFault, PhaseConfig
from dreamllm.document.jsonl import read_documents
from dreamllm.errors import DocumentError, TrainingError
from dreamllm.runtime.seeding import make_generator
from dreamllm.sequence.batch import Batch
from dreamllm.sequence.packing import collate
from dreamllm.train.objectives.document_steps import DocumentSteps
from dreamllm.train.objectives.dreamllm import DreamLLMObjective
from dreamllm.train.optim import build_optimizer
from dreamllm.train.run_config import OptimConfig
from dreamllm.train.step import optimizer_step


def objective(parts: PartsConfig, **changes: object) -> DreamLLMObjective:
    """Half of the pictures are moved to a sequence of their own: which, is random."""
    return build(parts=parts, documents_per_step=8, condition_dropout=0.5, **changes)


def sums(stage: DreamLLMObjective, batches: list[Batch]) -> dict[str, float]:
    """Both terms of a step; the generator of every batch is another one, so that it cannot matter."""
    total: Counter[str] = Counter()
    with torch.no_grad():
        for index, batch in enumerate(batches):
            for name, term in stage.losses(batch, make_generator(100 + index)).items():
                total[name] += float(term.sum)
    return dict(total)


def counts(stage: DreamLLMObjective, batches: list[Batch]) -> Counter[str]:
    total: Counter[str] = Counter()
    for batch in batches:
        total.update(stage.counts(batch))
    return total


@pytest.mark.parametrize("changes", [{"rows_per_micro_batch": 8}, {"packing": False}, {"row_length": 640}])
def test_the_losses_of_a_step_do_not_depend_on_how_it_is_cut(
    parts: PartsConfig, changes: dict[str, object]
) -> None:
    stage = objective(parts, rows_per_micro_batch=1)
    other = objective(parts, **changes)

    losses = sums(stage, stage.data[3])

    assert counts(stage, stage.data[3]) == counts(other, other.data[3])
    assert len(stage.data[3]) != len(other.data[3])
    assert sums(other, other.data[3]) == pytest.approx(losses, rel=1e-5)
    assert sums(stage, stage.data[4])["denoising"] != pytest.approx(losses["denoising"], rel=1e-3)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_together_see_what_one_would_see(parts: PartsConfig, num_ranks: int) -> None:
    stage = objective(parts)
    data = stage.data
    assert isinstance(data, DocumentSteps)

    shares = [data.part(rank, num_ranks=num_ranks)[2] for rank in range(num_ranks)]

    batches = [batch for share in shares for batch in share]
    assert counts(stage, batches) == counts(stage, data[2])
    assert Counter(seed for batch in batches for seed in batch.noise_seeds) == Counter(
        seed for batch in data[2] for seed in batch.noise_seeds
    )
    assert sums(stage, batches) == pytest.approx(sums(stage, data[2]), rel=1e-5)


def test_every_drawn_picture_has_a_seed_of_its_own(parts: PartsConfig) -> None:
    stage = objective(parts)

    seeds = [seed for step in range(4) for batch in stage.data[step] for seed in batch.noise_seeds]

    targets = sum(batch.num_targets for step in range(4) for batch in stage.data[step])
    assert len(seeds) == len(set(seeds)) == targets > 8


def test_nothing_is_a_batch_that_supervises_nothing_and_reaches_all_that_trains(parts: PartsConfig) -> None:
    stage = objective(parts)
    data = stage.data
    assert isinstance(data, DocumentSteps)
    batch = data.nothing()

    sum(term.sum for term in stage.losses(batch, make_generator(0)).values()).backward()

    assert set(stage.counts(batch).values()) == {0}
    trained = [p for group in stage.parameter_groups() for p in group.parameters]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_a_document_that_cannot_be_used_is_left_out_or_ends_the_run(
    parts: PartsConfig, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    lines = [
        {
            "id": name,
            "parts": [{"type": "image", "path": f"{name}.png"}, {"type": "text", "text": "A square."}],
        }
        for name in ("whole", "cut")
    ]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def stage(on_fault: OnFault) -> DreamLLMObjective:
        source = ArchiveSourceConfig(path=tmp_path / "documents.jsonl", on_fault=on_fault)
        return build(parts=parts, documents_per_step=4, phases=(PhaseConfig(sources=(source,)),))

    batches = stage("skip").data[0]

    assert [name for batch in batches for name in batch.document_ids] == ["whole", "whole"]  # two epochs
    assert ["cut.png" in fault for batch in batches for fault in batch.left_out] == [True, True]
    assert batches[0].sources == ("documents", "documents")
    with pytest.raises(DocumentError, match=r"cut\.png"):
        stage("raise").data[0]


def test_a_step_of_which_nothing_is_left_says_why(parts: PartsConfig, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"no picture")
    line = {"id": "cut", "parts": [{"type": "image", "path": "cut.png"}, {"type": "text", "text": "A star."}]}
    (tmp_path / "documents.jsonl").write_text(json.dumps(line) + "\n")
    source = ArchiveSourceConfig(path=tmp_path / "documents.jsonl", on_fault="skip")
    stage = build(parts=parts, documents_per_step=2, phases=(PhaseConfig(sources=(source,)),))

    [batch] = stage.data[0]

    assert len(batch.left_out) == 2
    assert set(stage.counts(batch).values()) == {0}


def write_texts(path: Path, *texts: str) -> Path:
    parts = [[{"type": "text", "text": text}] for text in texts]
    lines = [json.dumps({"id": f"{path.stem}-{n}", "parts": part}) + "\n" for n, part in enumerate(parts)]
    path.write_text("".join(lines))
    return path


def two_sources(parts: PartsConfig, folder: Path) -> DreamLLMObjective:
    sources = (
        JsonlSourceConfig(path=write_texts(folder / "short.jsonl", "A red star.", "A blue star.")),
        JsonlSourceConfig(path=write_texts(folder / "long.jsonl", "A star and a circle."), name="rest"),
    )
    return build(parts=parts, documents_per_step=6, phases=(PhaseConfig(sources=sources),))


def test_a_step_knows_the_loss_of_every_source(parts: PartsConfig, tmp_path: Path) -> None:
    stage = two_sources(parts, tmp_path)
    batches = stage.data[0]
    texts = [
        sequence for batch in batches for sequence in zip(batch.document_ids, batch.sources, strict=True)
    ]
    expected: Counter[str] = Counter()
    for name, source in texts:  # each document alone
        [path] = tmp_path.glob(f"{name[:-2]}.jsonl")
        document = read_documents(path)[int(name[-1])]
        alone = collate([stage.encoder.encode(document, rng=np.random.default_rng(0))], 0)
        with torch.no_grad():
            expected[source] += float(stage.losses(alone, make_generator(0))["next_token"].sum)

    optimizer = build_optimizer(stage.module, stage.parameter_groups(), OptimConfig(lr=1e-9))
    result = optimizer_step(
        stage, optimizer, batches, step=0, seed=0, device=torch.device("cpu"), clip_norm=1.0
    )

    sums = {source: total for (term, source), (total, _) in result.by_source.items() if term == "next_token"}
    assert set(sums) == {"short", "rest"}
    assert sums == pytest.approx(dict(expected), rel=1e-5)
    assert sum(count for _, count in result.by_source.values()) == sum(batch.num_labels for batch in batches)


def test_a_loss_that_is_not_a_number_names_its_own_document_alone(parts: PartsConfig, tmp_path: Path) -> None:
    stage = two_sources(parts, tmp_path)
    encode = stage.encoder.tokenizer.encode
    own = set(encode("A blue star.")) - set(encode("A red star.")) - set(encode("A star and a circle."))
    with torch.no_grad():
        stage.module.language_model.get_input_embeddings().weight[list(own)] = torch.nan
    optimizer = build_optimizer(stage.module, stage.parameter_groups(), OptimConfig(lr=1e-9))

    with pytest.raises(TrainingError, match=r"not finite: sums .* for documents short-1, expected"):
        optimizer_step(
            stage, optimizer, stage.data[0], step=0, seed=0, device=torch.device("cpu"), clip_norm=1.0
        )
