import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from tests.checkpoint.tiny_hub import TOKEN, point_to, tiny_hub

from dreamllm.checkpoint.hub import push_folder, resolve_source, split_hub_id
from dreamllm.errors import CheckpointError

COMMIT, OLDER = "a" * 40, "b" * 40
NOWHERE = "http://127.0.0.1:9"
REPOSITORY = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b"{}",
    "tokenizer.model": b"pieces",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "modeling.py": b"import os",
    "model.safetensors": b"whole",
    "model.fp16.safetensors": b"a twin",
    "consolidated.safetensors": b"another",
    "pytorch_model.bin": b"pickled",
    "training_args.bin": b"pickled",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"u",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model-00001-of-00002.safetensors": b"1",
    "vae/diffusion_pytorch_model-00002-of-00002.safetensors": b"2",
    "vae/diffusion_pytorch_model.bin": b"pickled",
    "text_encoder/model.safetensors": b"t",
}


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with tiny_hub(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub at a port where nothing listens."""
    point_to(NOWHERE, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cache(tmp_path):
    """What huggingface_hub leaves behind: `main` at one commit, and an older one."""
    repository = tmp_path / "cache" / "models--owner--name"
    for commit, text in ((COMMIT, "new"), (OLDER, "old")):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(text)
        (snapshot / "model.safetensors").write_text(text)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    return tmp_path / "cache"


def test_a_local_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert resolve_source(tmp_path) == tmp_path
    assert resolve_source("owner/name") == Path("owner/name")
    assert resolve_source("~/owner") == tmp_path / "owner"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("Qwen/Qwen3-0.6B@v1.0", ("Qwen/Qwen3-0.6B", "v1.0")),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3")),
        *(
            (text, None)
            for text in ("name", "./name", "../name", "/a/b", "~/name", "a/b/c", "a/", "a/b@", "a b/c")
        ),
    ],
)
def test_a_hub_id_is_an_owner_and_a_name(text, expected):
    assert split_hub_id(text) == expected


def test_what_is_neither_folder_nor_hub_id_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(
        CheckpointError, match=r"^'\./runs/x' is neither a local folder nor a hub id; check.*$"
    ):
        resolve_source("./runs/x")
    with pytest.raises(CheckpointError, match="'owner/name' is neither"):
        resolve_source(Path("owner/name"))
    with pytest.raises(CheckpointError, match="is a local folder, which has no revision 'v1'"):
        resolve_source(tmp_path, revision="v1")
    with pytest.raises(CheckpointError, match="is pinned to 'v1', but revision 'v2' is asked for"):
        resolve_source("owner/name@v1", revision="v2")


def test_data_is_fetched_and_nothing_else(hub):
    hub.repositories["owner/name"] = {"main": REPOSITORY}

    folder = resolve_source("owner/name")

    assert files_in(folder) == {
        "README.md",
        "config.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors",
    }
    assert (folder / "model.safetensors").read_bytes() == b"whole"


def test_only_the_named_folders_are_fetched_with_the_card(hub):
    hub.repositories["owner/name"] = {"main": REPOSITORY}

    folder = resolve_source("owner/name", folders=("unet", "scheduler"))

    assert files_in(folder) == {"README.md", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"}


def test_pickled_tensors_are_fetched_only_where_there_are_no_others(hub):
    pickled = {path: data for path, data in REPOSITORY.items() if not path.endswith(".safetensors")}
    hub.repositories["owner/old"] = {"main": pickled}
    hub.repositories["owner/mixed"] = {"main": {**pickled, "unet/diffusion_pytorch_model.safetensors": b"u"}}

    old = {path for path in files_in(resolve_source("owner/old")) if path.endswith((".bin", ".py"))}
    vae = files_in(resolve_source("owner/mixed", folders=("vae",)))

    assert old == {"pytorch_model.bin", "vae/diffusion_pytorch_model.bin"}
    assert "vae/diffusion_pytorch_model.bin" in vae
    assert not [path for path in files_in(resolve_source("owner/mixed")) if path == "pytorch_model.bin"]


def test_a_revision_is_a_branch_or_a_commit(hub):
    hub.repositories["owner/name"] = {"main": REPOSITORY, "small": {"config.json": b"small"}}

    by_branch = resolve_source("owner/name@small")
    by_commit = resolve_source("owner/name", revision=by_branch.name)

    assert by_branch == by_commit
    assert (by_branch / "config.json").read_bytes() == b"small"


def test_what_the_hub_does_not_have_is_one_line(hub):
    hub.repositories["owner/name"] = {"main": REPOSITORY}

    with pytest.raises(CheckpointError, match=r"^'owner/other' cannot be fetched.*; check the name; for.*$"):
        resolve_source("owner/other")
    with pytest.raises(CheckpointError, match=r"^'owner/name@v9' cannot be fetched.*; check the branch.*$"):
        resolve_source("owner/name@v9")
    with pytest.raises(CheckpointError, match=r"^'owner/a--b' cannot be fetched.*HFValidationError.*$"):
        resolve_source("owner/a--b")


def test_what_was_fetched_once_is_found_when_the_hub_is_gone(hub, monkeypatch):
    hub.repositories["owner/name"] = {"main": REPOSITORY}
    folder = resolve_source("owner/name", folders=("unet",))
    point_to(NOWHERE, monkeypatch)

    start = time.perf_counter()
    again = resolve_source("owner/name", folders=("unet",))
    pinned = resolve_source(f"owner/name@{folder.name}", folders=("unet",))

    assert folder == again == pinned
    assert time.perf_counter() - start < 5
    with pytest.raises(CheckpointError, match="the cache holds no whole snapshot"):
        resolve_source("owner/name")


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_without_network_there_is_one_line_within_seconds(unreachable, revision):
    start = time.perf_counter()

    with pytest.raises(
        CheckpointError,
        match=r"^cannot reach the hub for 'owner/name.*': ConnectError: .*; connect, or give a .*$",
    ):
        resolve_source("owner/name", revision=revision)

    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("source", "expected"),
    [("owner/name", "new"), ("owner/name@v1", "old"), (f"owner/name@{OLDER}", "old")],
)
def test_a_cached_snapshot_is_found_without_network(unreachable, cache, source, expected):
    assert (resolve_source(source) / "config.json").read_text() == expected
    assert (resolve_source(source, local_files_only=True) / "config.json").read_text() == expected


def test_local_files_only_asks_no_hub(hub, cache):
    hub.repositories["owner/other"] = {"main": REPOSITORY}

    with pytest.raises(CheckpointError, match="'owner/other': local_files_only is set; the cache holds no"):
        resolve_source("owner/other", local_files_only=True)

    assert hub.asked == []


def test_offline_mode_and_the_cache_are_those_of_the_environment(cache):
    program = (
        "import sys; from dreamllm.errors import CheckpointError\n"
        "from dreamllm.checkpoint.hub import resolve_source\n"
        "print(resolve_source('owner/name@v1').name)\n"
        "try: resolve_source('owner/other')\n"
        "except CheckpointError as error: print(error)\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )

    name, refusal, heavy = done.stdout.splitlines()
    assert name == OLDER
    assert refusal.startswith(
        "cannot reach the hub for 'owner/other': HF_HUB_OFFLINE is set; the cache holds no"
    )
    assert heavy == "[]"


@pytest.fixture
def folder(tmp_path):
    for path, data in {**REPOSITORY, "notes.pt": b"pickled", ".git/config": b"", "weights.npz": b""}.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(data)
    return tmp_path / "model"


def test_no_code_and_no_pickled_tensors_are_pushed(hub, folder):
    address = push_folder(folder, "owner/new", private=True, commit_message="first", token=TOKEN)

    pushed = hub.repositories["owner/new"]["main"]
    assert pushed == {path: data for path, data in REPOSITORY.items() if not path.endswith((".py", ".bin"))}
    assert hub.private == {"owner/new"}
    assert hub.messages == ["first"]
    assert "/owner/new/commit/" in address


def test_a_push_to_a_branch_leaves_no_shard_of_an_earlier_model_there(hub, folder):
    before = {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"mine", ".gitattributes": b""}
    hub.repositories["owner/name"] = {"main": dict(before)}

    push_folder(folder, "owner/name", revision="v2", token=TOKEN)

    assert hub.repositories["owner/name"]["main"] == before
    branch = hub.repositories["owner/name"]["v2"]
    assert "model-00001-of-00002.safetensors" not in branch
    assert branch["model.safetensors"] == b"whole"
    assert branch["LICENSE"] == b"mine"


def test_a_push_that_is_refused_or_cannot_reach_the_hub_is_one_line(hub, folder, monkeypatch):
    with pytest.raises(CheckpointError, match=r"^'owner/new@v1' is not the id of a repository; expected.*$"):
        push_folder(folder, "owner/new@v1")
    with pytest.raises(
        CheckpointError, match=r"^the hub refuses 'owner/new': .*Invalid username.*; log in.*$"
    ):
        push_folder(folder, "owner/new", token="hf_reads")
    point_to(NOWHERE, monkeypatch)
    start = time.perf_counter()
    with pytest.raises(
        CheckpointError, match=r"^cannot push 'owner/new' to the hub: ConnectError: .*; save to.*$"
    ):
        push_folder(folder, "owner/new", token=TOKEN)

    assert time.perf_counter() - start < 5
    assert hub.repositories == {}
