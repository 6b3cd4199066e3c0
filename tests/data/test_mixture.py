from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from dreamllm.data.mixture import BLOCK, Mixture, deal
from dreamllm.data.shards import write_shards
from dreamllm.data.sources import (
    ArchiveSourceConfig,
    JsonlSourceConfig,
    PhaseConfig,
    SourceConfig,
    WorldSourceConfig,
)
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


def mixture(*sources: SourceConfig, size: int = 16, seed: int = 0) -> Mixture:
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


def test_documents_are_dealt_there_and_back_by_hand() -> None:
    keys = [(9,), (1,), (5,), (3,), (7,), (2,), (8,)]  # in order: places 1 5 3, then 2 4 6 dealt back, then 0

    assert deal(keys, 3) == [[0, 1, 6], [4, 5], [2, 3]]


@pytest.mark.parametrize("num_ranks", [1, 3, 4])
def test_every_rank_gets_its_part_of_every_source(make_file: MakeFile, num_ranks: int) -> None:
    mixed = mixture(make_file("a", 50), make_file("b", 50, weight=3.0), size=24)

    for step in range(5):
        hands = mixed.dealt(step, num_ranks=num_ranks)
        names = [mixed.find(step, position)[0].name for position in range(24)]

        assert sorted(position for hand in hands for position in hand) == list(range(24))
        assert all(hand == sorted(hand) for hand in hands)
        parts = [Counter(names[position] for position in hand) for hand in hands]
        assert all(max(p[name] for p in parts) - min(p[name] for p in parts) <= 1 for name in "ab")


def test_ranks_have_about_as_much_to_read_where_sizes_are_known(tmp_path: Path) -> None:
    lengths = [2**number for number in range(10)] * 8
    written = [Document(parts=(Text(text="w" * length),), id=f"{n}") for n, length in enumerate(lengths)]
    write_shards(written, tmp_path / "shards", documents_per_shard=7)
    mixed = mixture(ArchiveSourceConfig(path=tmp_path / "shards"), size=80)  # a step is an epoch

    documents = mixed.documents(0)
    loads = [sum(len(documents[position].text) for position in hand) for hand in mixed.dealt(0, num_ranks=4)]

    assert sum(loads) == 8 * 1023
    assert max(loads) == min(loads)  # eight documents of every length, two for each rank


def test_a_damaged_table_does_not_keep_a_step_from_being_dealt(tmp_path: Path) -> None:
    write_shards([Document(parts=(Text(text="w"),), id=f"{n}") for n in range(8)], tmp_path)
    (tmp_path / "shard-000000.npy").write_bytes(b"cut")
    mixed = mixture(ArchiveSourceConfig(path=tmp_path), size=8)

    assert sorted(position for hand in mixed.dealt(0, num_ranks=2) for position in hand) == list(range(8))
