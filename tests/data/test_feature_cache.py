"""Entries written and read back, whatever was between: a new process, a stop, damage, another writer."""

import hashlib
import io
import json
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file

from dreamllm.data.feature_cache import INDEX_FILE, CacheSpec, FeatureCache, shard_names
from dreamllm.data.feature_cache_writer import FeatureCacheWriter, write_index
from dreamllm.data.picture_digest import picture_digest
from dreamllm.document.document import Image
from dreamllm.errors import ConfigError, DocumentError, ImageError

KEY = {"what": "test", "encoder": {"weights": "abc", "select_layer": -2}}
SPEC = CacheSpec(key=KEY, shape=(2, 3), dtype="float32")


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:16]


def record(number: int, spec: CacheSpec = SPEC) -> torch.Tensor:
    draw = torch.Generator().manual_seed(number)
    return torch.randn(spec.shape, generator=draw).to(spec.torch_dtype)


def fill(folder: Path, numbers: range, spec: CacheSpec = SPEC, *, shard_bytes: int = 2**20) -> None:
    with FeatureCacheWriter(folder, spec, shard_bytes=shard_bytes) as writer:
        for number in numbers:
            writer.add(digest(number), record(number, spec))


def png(level: int, size: tuple[int, int] = (4, 6)) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", size, (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [1, 3 * 24, 2**20])
def test_what_is_written_reads_back_equal(tmp_path: Path, dtype: str, shard_bytes: int) -> None:
    spec = CacheSpec(key=KEY, shape=(2, 3), dtype=dtype)
    fill(tmp_path, range(20), spec, shard_bytes=shard_bytes)

    cache = FeatureCache(tmp_path, spec)

    assert len(cache) == 20
    for number in range(20):
        found = cache.get(digest(number))
        assert found is not None
        assert found.dtype is spec.torch_dtype
        assert torch.equal(found, record(number, spec))
    assert cache.get(digest(20)) is None
    assert digest(20) not in cache
    assert cache.empty().shape == (0, 2, 3)


@settings(max_examples=20)
@given(st.sets(st.binary(min_size=16, max_size=16), min_size=1, max_size=30), st.integers(1, 9))
def test_digests_are_found_whatever_they_are(
    tmp_path_factory: pytest.TempPathFactory, digests: set[bytes], per_shard: int
) -> None:
    """Equal halves too: zeros, and the largest number there is."""
    folder = tmp_path_factory.mktemp("cache")
    spec = CacheSpec(key=KEY, shape=(16,), dtype="float32")
    written = sorted(digests | {bytes(16), bytes([255] * 16), bytes(15) + b"\1"})
    with FeatureCacheWriter(folder, spec, shard_bytes=per_shard * spec.record_bytes) as writer:
        for each in written:
            writer.add(each, torch.tensor(list(each), dtype=torch.float32))

    cache = FeatureCache(folder)

    assert [bytes(cache.get(each).to(torch.uint8).tolist()) for each in written] == written


def test_a_cache_survives_pickling_and_holds_no_record_of_its_own(tmp_path: Path) -> None:
    fill(tmp_path, range(100))
    cache = FeatureCache(tmp_path)
    cache.get(digest(3))

    data = pickle.dumps(cache)

    assert len(data) < 1000
    assert torch.equal(pickle.loads(data).get(digest(3)), record(3))


def test_a_record_may_be_changed_without_changing_the_cache(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    cache = FeatureCache(tmp_path)

    cache.get(digest(1)).zero_()

    assert torch.equal(cache.get(digest(1)), record(1))


def test_a_view_is_the_record_where_it_lies(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    cache = FeatureCache(tmp_path)

    assert torch.equal(cache.view(digest(1)), record(1))
    places = [
        found.data_ptr() for found in (cache.view(digest(1)), cache.view(digest(1)), cache.get(digest(1)))
    ]
    assert places[0] == places[1] != places[2]
    assert cache.view(digest(20)) is None


def _fill_and_raise(folder: Path, error: BaseException) -> None:
    with FeatureCacheWriter(folder, SPEC, shard_bytes=3 * 24) as writer:
        for number in range(8):
            writer.add(digest(number), record(number))
        raise error


def test_a_stopped_writer_keeps_its_whole_shards_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the machine goes away"):
        _fill_and_raise(tmp_path, OSError("the machine goes away"))
    assert len(FeatureCache(tmp_path)) == 6

    with FeatureCacheWriter(tmp_path, SPEC, shard_bytes=3 * 24) as writer:
        missing = [number for number in range(10) if digest(number) not in writer]
        for number in range(10):
            writer.add(digest(number), record(number))

    assert missing == [6, 7, 8, 9]
    assert writer.num_written == 4
    assert len(FeatureCache(tmp_path)) == 10


def test_ctrl_c_keeps_what_was_computed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fill_and_raise(tmp_path, KeyboardInterrupt())

    assert len(FeatureCache(tmp_path)) == 8


def test_a_picture_added_twice_is_one_entry(tmp_path: Path) -> None:
    with FeatureCacheWriter(tmp_path, SPEC, shard_bytes=1) as writer:
        writer.add(digest(0), record(0))
        writer.add(digest(0), record(1))

    assert writer.num_written == 1
    assert torch.equal(FeatureCache(tmp_path).get(digest(0)), record(0))


def test_shards_younger_than_the_index_are_found(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    other = FeatureCacheWriter(tmp_path, SPEC)
    other.add(digest(7), record(7))
    other.flush()  # and no index

    cache = FeatureCache(tmp_path)

    assert len(cache) == 6
    assert torch.equal(cache.get(digest(7)), record(7))
    assert torch.equal(cache.get(digest(4)), record(4))


def _fill_many(folder: Path, numbers: range) -> None:
    fill(folder, numbers, shard_bytes=4 * 24)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_write_one_cache(tmp_path: Path) -> None:
    """They overlap in the middle; those pictures count once."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_fill_many, args=(tmp_path, r)) for r in (range(25), range(20, 40))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert write_index(tmp_path) == 40
    cache = FeatureCache(tmp_path)
    assert all(torch.equal(cache.get(digest(number)), record(number)) for number in range(40))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({**KEY, "what": "else"}, "what is 'test', not 'else'"),
        ({**KEY, "encoder": {"weights": "abc", "select_layer": -1}}, "encoder.select_layer is -2, not -1"),
        ({"what": "test", "encoder": {"weights": "abc"}}, "encoder.select_layer is -2, not None"),
        ({**KEY, "more": [1]}, "more is None, not [1]"),
    ],
)
def test_a_cache_of_something_else_is_refused_by_one_line_that_names_it(
    tmp_path: Path, other: dict, named: str
) -> None:
    fill(tmp_path, range(1))
    wanted = CacheSpec(key=other, shape=(2, 3))

    for attempt in (FeatureCache, FeatureCacheWriter):
        with pytest.raises(ConfigError) as caught:
            attempt(tmp_path, wanted)
        assert f"something else: {named}; expected" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_shape_belongs_to_the_key_and_type_does_not(tmp_path: Path) -> None:
    fill(tmp_path, range(1))

    FeatureCache(tmp_path, CacheSpec(key=KEY, shape=(2, 3), dtype="float16"))
    with pytest.raises(ConfigError, match=r"shape is \[2, 3\], not \[3, 2\]"):
        FeatureCache(tmp_path, CacheSpec(key=KEY, shape=(3, 2)))
    with pytest.raises(ConfigError, match="holds float32 records, not float16"):
        FeatureCacheWriter(tmp_path, CacheSpec(key=KEY, shape=(2, 3), dtype="float16"))


def test_a_folder_without_a_cache_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"holds no cache: there is no cache\.json; .* `dreamllm data cache`"
    ):
        FeatureCache(tmp_path)
    (tmp_path / "cache.json").write_text('{"format": 1}')
    with pytest.raises(DocumentError, match=r"cache\.json cannot be read: KeyError"):
        FeatureCache(tmp_path)
    (tmp_path / "cache.json").write_text(json.dumps({**SPEC.to_dict(), "format": 2}))
    with pytest.raises(DocumentError, match="has format 2; expected 1"):
        FeatureCache(tmp_path)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def _flip(file: Path) -> None:
    data = load_file(file)
    data["records"][0, 0, 0] += 1
    save_file(data, file)


def _of_another_shape(file: Path) -> None:
    data = load_file(file)
    save_file({**data, "records": data["records"].flatten(1)}, file)


def _without_checksums(file: Path) -> None:
    data = load_file(file)
    del data["checksums"]
    save_file(data, file)


@pytest.mark.parametrize("harm", [_truncate, _flip, _of_another_shape, _without_checksums])
@pytest.mark.parametrize("has_index", [True, False])
def test_a_damaged_shard_is_refused_by_name_and_computed_again(
    tmp_path: Path, harm: object, has_index: bool
) -> None:
    fill(tmp_path, range(6), shard_bytes=3 * 24)
    if not has_index:
        (tmp_path / INDEX_FILE).unlink()
    name = shard_names(tmp_path)[0]
    harm(tmp_path / name)

    with pytest.raises(DocumentError, match=f"{name} is damaged") as caught:
        [FeatureCache(tmp_path).get(digest(number)) for number in range(6)]

    assert "delete it and run `dreamllm data cache` again" in str(caught.value)
    (tmp_path / name).unlink()  # as the message says
    fill(tmp_path, range(6))
    cache = FeatureCache(tmp_path)
    assert all(torch.equal(cache.get(digest(number)), record(number)) for number in range(6))


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    fill(tmp_path, range(6), shard_bytes=3 * 24)
    name = shard_names(tmp_path)[1]
    (tmp_path / name).unlink()

    with pytest.raises(DocumentError, match=f"names 1 shards that are not there, first {name}"):
        FeatureCache(tmp_path)


@pytest.mark.parametrize("bad", [torch.full((2, 3), 1e6), torch.full((2, 3), torch.nan), torch.zeros(3, 2)])
def test_a_record_that_its_type_cannot_hold_is_refused(tmp_path: Path, bad: torch.Tensor) -> None:
    writer = FeatureCacheWriter(tmp_path, CacheSpec(key=KEY, shape=(2, 3), dtype="float16"))

    with pytest.raises(DocumentError, match=f"picture {digest(1).hex()} has shape"):
        writer.add(digest(1), bad)


def test_a_picture_is_known_by_its_file_wherever_it_lies(tmp_path: Path) -> None:
    data = png(7)
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(data)

    digests = {
        picture_digest(Image(source=source)) for source in (data, tmp_path / "a.png", tmp_path / "b.png")
    }

    assert digests == {hashlib.sha256(data).digest()[:16]}
    assert picture_digest(Image(source=png(8))) not in digests


def test_no_picture_is_decoded_to_know_it(tmp_path: Path) -> None:
    (tmp_path / "no_picture").write_bytes(b"not a picture")

    assert picture_digest(Image(source=tmp_path / "no_picture")) == picture_digest(
        Image(source=b"not a picture")
    )
    with pytest.raises(ImageError, match=r"missing\.png cannot be read"):
        picture_digest(Image(source=tmp_path / "missing.png"))


def test_an_open_picture_is_known_by_its_pixels_and_size() -> None:
    def of(size: tuple[int, int], level: int = 7, mode: str = "RGB") -> bytes:
        return picture_digest(Image(source=PILImage.new("RGB", size, (level,) * 3).convert(mode)))

    assert of((4, 6)) == of((4, 6)) == of((4, 6), mode="L")
    assert len({of((4, 6)), of((6, 4)), of((4, 6), level=8)}) == 3
