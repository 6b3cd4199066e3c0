from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from dreamllm.data.mixture import BLOCK, Mixture
from dreamllm.data.sources import JsonlSourceConfig, PhaseConfig, WorldSourceConfig
from dreamllm.document.document import Document, Text
from dreamllm.document.jsonl import write_documents
from dreamllm.errors import ConfigError

MakeFile = Callable[..., JsonlSourceConfig]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """A file of documents named a0, a1 ..."""

    def make(name: str, size: int, *, weight: float = 1.0) -> JsonlSourceConfig:
        path = tmp_path / f"{name}.jsonl"
        write_documents([Document(parts=(Text(text="word"),), id=f"{name}{i}") for i in range(size)], path)
        return JsonlSourceConfig(path=path, weight=weight)

    return make


def mixture(*sources: JsonlSourceConfig | WorldSourceConfig, size: int = 16, seed: int = 0) -> Mixture:
    return Mixture((PhaseConfig(sources=sources),), steps=100, documents_per_step=size, seed=seed)


def ids(mixed: Mixture, steps: range) -> list[str]:
    return [document.id for step in steps for document in mixed.documents(step)]


def test_documents_of_a_step_are_a_pure_function_of_seed_and_step(make_file: MakeFile) -> None:
    sources = make_file("a", 9), WorldSourceConfig(documents={"facts": 1.0})
    mixed, same, other = mixture(*sources), mixture(*sources), mixture(*sources, seed=1)

    backwards = {step: same.documents(step) for step in (40, 7, 3, 0)}

    for step, documents in backwards.items():
        assert [d.text for d in mixed.documents(step)] == [d.text for d in documents]
        assert len(documents) == 16
        assert ids(other, range(step, step + 1)) != [d.id for d in documents]


def test_a_run_resumed_at_any_step_reads_what_it_would_have_read(make_file: MakeFile) -> None:
    sources = make_file("a", 9), make_file("b", 4, weight=2.0)
    whole = ids(mixture(*sources), range(40))

    for start in (1, 31, 39):
        assert ids(mixture(*sources), range(start, 40)) == whole[16 * start :]


def test_the_stream_does_not_depend_on_how_it_is_cut_into_steps(make_file: MakeFile) -> None:
    sources = make_file("a", 9), make_file("b", 4, weight=2.0)

    assert ids(mixture(*sources, size=35), range(16)) == ids(mixture(*sources, size=5), range(112))


def test_shares_are_exact_in_every_block_and_the_order_is_not_the_same(make_file: MakeFile) -> None:
    mixed = mixture(make_file("a", 1, weight=3.0), make_file("b", 1, weight=1.0), size=BLOCK)

    blocks = [ids(mixed, range(step, step + 1)) for step in range(3)]

    assert BLOCK == 512
    assert [Counter(block) for block in blocks] == [Counter(a0=384, b0=128)] * 3
    assert all(one != two for one, two in pairwise(blocks))


def test_every_document_of_a_file_comes_once_an_epoch_whatever_it_is_mixed_with(make_file: MakeFile) -> None:
    mixed = mixture(make_file("a", 7, weight=0.3), make_file("b", 3, weight=0.7))

    read = [name for name in ids(mixed, range(100)) if name.startswith("a")]

    assert len(read) > 400
    epochs = [read[start : start + 7] for start in range(0, len(read) - 6, 7)]
    assert all(sorted(epoch) == [f"a{i}" for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_phases_take_turns_at_their_share_of_the_run_and_start_at_the_beginning(make_file: MakeFile) -> None:
    phases = (
        PhaseConfig(until=0.3, sources=(make_file("a", 5),)),
        PhaseConfig(until=0.8, sources=(make_file("b", 4),)),
        PhaseConfig(until=1.0, sources=(make_file("c", 5),)),
    )
    mixed = Mixture(phases, steps=10, documents_per_step=2, seed=0)

    names = [{name[0] for name in ids(mixed, range(step, step + 1))} for step in range(10)]

    assert names == [{"a"}] * 3 + [{"b"}] * 5 + [{"c"}] * 2
    assert sorted(ids(mixed, range(3, 5))) == ["b0", "b1", "b2", "b3"]


def test_phases_that_do_not_cover_the_run_are_refused(make_file: MakeFile) -> None:
    source = make_file("a", 1)

    for ends in ([], [0.5], [0.6, 0.3, 1.0], [0.5, 1.5]):
        phases = tuple(PhaseConfig(until=end, sources=(source,)) for end in ends)
        with pytest.raises(ConfigError, match=r"phases end at .*expected .*the last until 1\.0"):
            Mixture(phases, steps=10, documents_per_step=2, seed=0)


def test_phases_without_a_source_that_weighs_something_are_refused(make_file: MakeFile) -> None:
    with pytest.raises(ConfigError, match="phases with sources"):
        Mixture((PhaseConfig(),), steps=10, documents_per_step=2, seed=0)
    with pytest.raises(ConfigError, match=r"sources weigh \[\[1\.0, 0\.0\]\]"):
        mixture(make_file("a", 1), make_file("b", 1, weight=0.0))
