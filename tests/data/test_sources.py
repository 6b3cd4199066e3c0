import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dreamllm.config import load_config
from dreamllm.data.shards import write_shards
from dreamllm.data.sources import (
    ArchiveSource,
    ArchiveSourceConfig,
    JsonlSource,
    JsonlSourceConfig,
    PhaseConfig,
    WorldSource,
    WorldSourceConfig,
    build_source,
)
from dreamllm.document.document import Document, Text
from dreamllm.document.jsonl import FaultError, write_documents
from dreamllm.errors import ConfigError
from dreamllm.world.nouns import UNTAUGHT
from dreamllm.world.scene import Scene
from dreamllm.world.splits import Split, split_of

WORDS_ONLY = {"facts": 3.0, "text_vqa": 1.0}


@pytest.fixture
def twelve(tmp_path: Path) -> Path:
    path = tmp_path / "twelve.jsonl"
    write_documents([Document(parts=(Text(text=f"word {i}"),), id=f"d{i}") for i in range(12)], path)
    return path


def ids(source: JsonlSource, start: int, stop: int) -> list[str]:
    return [source[index].id for index in range(start, stop)]


def test_a_world_document_is_a_pure_function_of_seed_and_index() -> None:
    config = WorldSourceConfig(documents=WORDS_ONLY)
    source, same, other = WorldSource(config, 3), WorldSource(config, 3), WorldSource(config, 4)

    backwards = [same[index].text for index in reversed(range(20))]

    texts = [source[index].text for index in range(20)]
    assert texts == backwards[::-1]
    assert len(set(texts)) == 20
    assert texts != [other[index].text for index in range(20)]


def test_kinds_come_in_the_shares_asked_for_and_stand_in_the_ids() -> None:
    source = WorldSource(WorldSourceConfig(documents=WORDS_ONLY), 0)

    documents = [source[index] for index in range(400)]

    kinds = Counter(document.metadata["kind"] for document in documents)
    assert kinds.keys() == WORDS_ONLY.keys()
    assert 260 < kinds["facts"] < 340  # 300 expected, one deviation is 8.7
    assert [d.id for d in documents] == [f"{d.metadata['kind']}-{i}" for i, d in enumerate(documents)]


@pytest.mark.parametrize("split", ["train", "test", "held_out"])
def test_documents_hold_scenes_of_their_split_object_count_and_questions(split: Split) -> None:
    config = WorldSourceConfig(
        documents={"text_vqa": 1.0}, split=split, num_objects=(2,), questions_per_image=4
    )
    source = WorldSource(config, 0)

    documents = [source[index] for index in range(15)]

    scenes = [Scene.from_json(document.metadata["scenes"][0]) for document in documents]
    assert {split_of(scene) for scene in scenes} == {split}
    assert {len(scene.objects) for scene in scenes} == {2}
    assert {len(document.metadata["answers"]) for document in documents} == {4}


def test_documents_ask_questions_of_the_kinds_they_may() -> None:
    config = WorldSourceConfig(documents={"text_vqa": 1.0}, question_kinds=("color", "place"))

    asked = [answer[0] for index in range(20) for answer in WorldSource(config, 3)[index].metadata["answers"]]

    assert set(asked) == {"color", "place"}


@pytest.mark.parametrize("kinds", [(), ("relation",), ("place", "relation")])
def test_kinds_of_questions_that_some_scene_does_not_allow_are_not_enough(kinds: tuple[str, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"question_kinds is .* expected at least one kind that every scene"
    ):
        WorldSourceConfig(documents={"vqa": 1.0}, question_kinds=kinds)  # type: ignore[arg-type]


@pytest.mark.parametrize("documents", [{}, {"facts": 0.0}, {"facts": 1.0, "poem": 1.0}])
def test_unknown_kinds_and_weights_that_are_none_are_refused(documents: dict[str, float]) -> None:
    with pytest.raises(
        ConfigError, match=r"expected positive weights of kinds .*; correct (poem|the weights)"
    ):
        WorldSourceConfig(documents=documents)


def test_every_document_of_a_file_comes_once_an_epoch_in_an_order_of_its_own(twelve: Path) -> None:
    source = JsonlSource(JsonlSourceConfig(path=twelve), 5)

    epochs = [ids(source, 12 * epoch, 12 * epoch + 12) for epoch in range(6)]

    assert all(sorted(epoch) == sorted(f"d{i}" for i in range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_order_of_a_file_follows_from_the_seed_alone(twelve: Path) -> None:
    config = JsonlSourceConfig(path=twelve)

    first = ids(JsonlSource(config, 5), 30, 60)

    assert ids(JsonlSource(config, 5), 30, 60) == first
    assert ids(JsonlSource(config, 6), 30, 60) != first


def test_two_sources_that_read_the_same_file_do_not_read_it_in_the_same_order(twelve: Path) -> None:
    config = JsonlSourceConfig(path=twelve)
    first, second = build_source(config, 1), build_source(config, 2)

    assert [first[i].id for i in range(12)] != [second[i].id for i in range(12)]


def test_a_line_that_cannot_be_read_stops_a_run_or_is_left_out(twelve: Path) -> None:
    twelve.write_text(twelve.read_text() + "{not json\n")

    with pytest.raises(FaultError, match=r"twelve\.jsonl:13"):
        JsonlSource(JsonlSourceConfig(path=twelve), 0)
    source = JsonlSource(JsonlSourceConfig(path=twelve, on_fault="skip"), 0)

    assert sorted(ids(source, 0, 12)) == sorted(f"d{i}" for i in range(12))


def test_a_file_without_documents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")

    with pytest.raises(ConfigError, match=r"empty\.jsonl holds no documents"):
        JsonlSource(JsonlSourceConfig(path=path), 0)


def test_a_config_builds_the_source_of_its_kind(twelve: Path) -> None:
    world = build_source(WorldSourceConfig(documents=WORDS_ONLY), 0)
    file = build_source(JsonlSourceConfig(path=twelve), 0)

    assert isinstance(world, WorldSource)
    assert isinstance(file, JsonlSource)


def test_untaught_nouns_are_never_drawn_in_training_and_may_be_explained_alone() -> None:
    with pytest.raises(ConfigError, match=r"draw_noun with nouns 'untaught' and split 'train'; expected"):
        WorldSourceConfig(documents={"draw_noun": 1.0}, nouns="untaught")

    source = WorldSource(WorldSourceConfig(documents={"ask_noun": 1.0}, nouns="untaught"), 0)

    named = {name for index in range(20) for name in source[index].metadata["nouns"]}
    assert named == {noun.name for noun in UNTAUGHT}


def archive_of(folder: Path, num: int, *, per_shard: int = 4) -> Path:
    documents = [Document(parts=(Text(text=str(number)),)) for number in range(num)]
    write_shards(documents, folder, documents_per_shard=per_shard)
    return folder


def archive_source(path: Path, seed: int = 0, **options: Any) -> ArchiveSource:
    source = build_source(ArchiveSourceConfig(path=path, **options), seed)
    assert isinstance(source, ArchiveSource)
    return source


def test_every_epoch_of_an_archive_holds_every_document_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    source = archive_source(archive_of(tmp_path, 50), shuffle_window=3)

    epochs = [[source[50 * epoch + place].text for place in range(50)] for epoch in range(3)]

    assert len(source) == 50
    assert all(sorted(epoch, key=int) == [str(number) for number in range(50)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_document_of_an_archive_is_a_function_of_seed_and_index_alone(tmp_path: Path) -> None:
    path = archive_of(tmp_path, 20)
    source = archive_source(path)
    texts = [source[index].text for index in range(60)]

    again = pickle.loads(pickle.dumps(source))

    assert [again[index].text for index in (59, 0, 25, 40, 1)] == [texts[i] for i in (59, 0, 25, 40, 1)]
    other = archive_source(path, seed=1)
    assert [other[index].text for index in range(20)] != texts[:20]


def test_few_shards_are_read_at_a_time(tmp_path: Path) -> None:
    source = archive_source(archive_of(tmp_path, 60, per_shard=5), shuffle_window=2)

    shards = [int(source[index].text) // 5 for index in range(60)]

    assert all(len(set(shards[start : start + 10])) == 2 for start in range(0, 60, 10))


def test_an_archive_says_what_a_fault_does_and_raises_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"parts": []}\n{"parts": 3}\n')
    source = archive_source(tmp_path / "a.jsonl", on_fault="skip")

    kinds = []
    for index in range(4):
        try:
            source[index]
            kinds.append("ok")
        except FaultError as fault:
            kinds.append(fault.kind)

    assert source.on_fault == "skip"
    assert [sorted(kinds[:2]), sorted(kinds[2:])] == [["bad_document", "ok"]] * 2


def test_a_config_of_an_archive_reads_from_a_recipe(tmp_path: Path) -> None:
    phase = load_config(
        PhaseConfig,
        {"sources": [{"kind": "archive", "path": "x", "format": "mmc4", "options": {"images": "y"}}]},
    )

    assert phase.sources == (ArchiveSourceConfig(path=Path("x"), format="mmc4", options={"images": "y"}),)
    with pytest.raises(ConfigError, match="shuffle_window is 0"):
        ArchiveSourceConfig(path=tmp_path, shuffle_window=0)


def test_an_empty_archive_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no documents"):
        archive_source(archive_of(tmp_path, 0))
