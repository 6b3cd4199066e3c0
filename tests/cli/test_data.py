"""`dreamllm data`: what is said of documents on disk, what is written, and what happens when it cannot be."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from tests.data.byte_tokens import save_byte_tokenizer

from dreamllm.cli import main
from dreamllm.cli.data import VERBS, sample_indices
from dreamllm.data.archive import open_documents
from dreamllm.document.document import Document, Image, Text
from dreamllm.document.jsonl import write_documents
from dreamllm.errors import ConfigError


def picture(seed: int, side: int = 16) -> PILImage.Image:
    rng = np.random.default_rng(seed)
    return PILImage.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def documents(num: int) -> list[Document]:
    """Document n has n words, and a picture if n is even."""
    return [
        Document(
            id=f"d{number}",
            parts=(
                Text(text=" ".join(f"word{number}x{place}" for place in range(number))),
                *([Image(source=picture(number), learn=number % 4 == 0)] if number % 2 == 0 else []),
            ),
        )
        for number in range(1, num + 1)
    ]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_documents(documents(12), tmp_path / "sound.jsonl")


@pytest.fixture
def faulty(sound: Path) -> Path:
    """Twelve sound documents, a line that is none (index 3), a picture that is gone (index 7)."""
    lines = sound.read_text().splitlines()
    gone = json.loads(lines[1])
    gone["parts"][1]["path"] = "nowhere.png"
    lines[3:3] = ["not JSON"]
    lines[7:7] = [json.dumps(gone)]
    path = sound.parent / "faulty.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def ran(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    status = main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err.strip()


def texts(folder: Path) -> list[str]:
    archive = open_documents(folder)
    return [archive[index].text for index in range(len(archive))]


def only(names: Sequence[str], folder: Path) -> bool:
    """Whether a folder holds these entries, beside the index that may be added, and nothing else."""
    found = {name for name in os.listdir(folder) if name != ".dreamllm"}
    return found == set(names)


# ---- the group -------------------------------------------------------------------------------------------


def test_help_lists_every_verb_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, "--help")

    assert status == 0
    assert all(f"  {verb} " in out for verb in VERBS)


def test_no_verb_of_data_shows_the_help_as_a_mistake_and_a_wrong_one_offers_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ran(capsys)[0] == 2
    status, _, error = ran(capsys, "chekc")
    assert status == 2
    expected = (
        "error: unknown verb 'chekc'; did you mean 'check'? `dreamllm data --help` describes every verb"
    )
    assert error == expected


# ---- check -----------------------------------------------------------------------------------------------


def test_a_sound_file_is_summed_up_and_ends_with_0(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = sound.parent / "report.json"

    status, out, _ = ran(capsys, "check", sound, "--decode", "--json", report)

    counts = json.loads(report.read_text())
    assert status == 0
    assert "no faults" in out
    assert (counts["size"], counts["checked"], counts["documents"], counts["faults"]) == (12, 12, 12, {})
    assert counts["words"]["mean"] == 6.5  # 1 to 12
    assert (counts["pictures"]["count"], counts["pictures"]["drawn"]) == (6, 3)
    assert counts["pictures_per_document"]["bins"] == [
        {"from": 0, "to": 0, "count": 6},
        {"from": 1, "to": 1, "count": 6},
    ]


def test_faults_are_counted_shown_and_end_with_1(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = faulty.parent / "report.json"

    status, out, _ = ran(capsys, "check", faulty, "--json", report)

    counts = json.loads(report.read_text())
    assert status == 1
    assert "2 of 14 documents cannot be used" in out
    assert counts["faults"] == {"bad_json": 1, "missing_image": 1}
    assert [each["index"] for kind in counts["fault_examples"].values() for each in kind] == [3, 7]
    assert counts["documents"] == 12
    for words in ("bad_json", "missing_image", "nowhere.png"):
        assert words in out


def test_workers_change_nothing_in_the_report(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = faulty.parent / "one.json", faulty.parent / "two.json"

    ran(capsys, "check", faulty, "--json", one)
    ran(capsys, "check", faulty, "--json", two, "--workers", "1")

    assert one.read_text() == two.read_text()


def test_a_sample_is_checked_and_tokens_are_counted(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_byte_tokenizer(sound.parent / "model" / "tokenizer")
    report = sound.parent / "report.json"
    arguments = ("check", sound, "--json", report, "--tokenizer", sound.parent / "model")

    status, out, _ = ran(capsys, *arguments, "--limit", "3")

    counts = json.loads(report.read_text())
    assert status == 0
    assert "3 of 12 documents" in out
    # word1x0; word2x0 word2x1; word3x0 word3x1 word3x2: a token a byte
    assert (counts["checked"], counts["tokens"]["mean"]) == (3, (7 + 15 + 23) / 3)


def test_a_drawn_sample_is_a_function_of_its_seed() -> None:
    first, again, other = (sample_indices(1000, limit=20, seed=seed) for seed in (0, 0, 1))

    assert list(first) == list(again) == sorted(first)
    assert list(first) != list(other)
    assert len(set(first)) == 20
    assert list(sample_indices(5, limit=9, seed=0)) == [0, 1, 2, 3, 4]
    assert list(sample_indices(5, limit=2, seed=None)) == [0, 1]


@pytest.mark.parametrize(("limit", "seed"), [(0, None), (-3, 1), (None, 1)])
def test_a_sample_that_cannot_be_meant_is_refused(limit: int | None, seed: int | None) -> None:
    with pytest.raises(ConfigError, match="limit"):
        sample_indices(5, limit=limit, seed=seed)


# ---- preview ---------------------------------------------------------------------------------------------


def test_a_preview_shows_as_many_documents_as_asked_for(
    sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = sound.parent / "page.html"

    status, out, _ = ran(capsys, "preview", sound, "--out", page, "--num", "5", "--first")

    html = page.read_text()
    assert status == 0
    assert f"written to {page}" in out
    assert html.count("<article") == 5
    assert html.count("<img") == 2
    assert "2: d3" in html
    assert "5 of 12 documents" in html


def test_a_preview_of_faults_shows_nothing_else(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = faulty.parent / "page.html"

    status, _, _ = ran(capsys, "preview", faulty, "--out", page, "--faults")

    html = page.read_text()
    assert status == 0
    assert "<article" not in html  # neither can be read
    assert "<td>3</td><td>bad_json</td>" in html
    assert "<td>7</td><td>missing_image</td>" in html
    assert "nowhere.png" in html


# ---- shard and filter ------------------------------------------------------------------------------------


def test_shards_hold_the_documents_in_their_order(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sound.parent / "new" / "shards"

    status, told, _ = ran(capsys, "shard", sound, "--out", out, "--documents-per-shard", "5")

    archive = open_documents(out)
    originals = documents(12)
    assert status == 0
    assert "12 of 12 documents" in told
    assert len(archive) == 12
    for index, original in enumerate(originals):
        written = archive[index]
        assert (written.id, written.text) == (original.id, original.text)
        assert [image.learn for image in written.images] == [image.learn for image in original.images]
        for ours, theirs in zip(written.images, original.images, strict=True):
            assert ours.load().tobytes() == theirs.load().tobytes()
    assert os.listdir(out.parent) == ["shards"]


def test_faults_end_sharding_without_a_trace_or_are_left_out_and_told(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = faulty.parent / "new" / "shards"

    status, _, error = ran(capsys, "shard", faulty, "--out", out)
    assert status == 2
    assert "document 3" in error
    assert error.count("\n") == 0
    assert not out.parent.exists()

    status, told, _ = ran(capsys, "shard", faulty, "--out", out, "--on-fault", "skip")
    assert status == 0
    assert "fault: missing_image" in told
    assert texts(out) == [document.text for document in documents(12)]
    assert json.loads((out / "filter.json").read_text())["dropped"] == {
        "fault: bad_json": 1,
        "fault: missing_image": 1,
    }


def test_a_filter_writes_what_passes_and_reports_the_rest(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = faulty.parent / "kept"

    status, told, _ = ran(
        capsys, "filter", faulty, "--out", out, "--min-words", "3", "--min-pictures", "1", "--workers", "1"
    )

    report = json.loads((out / "filter.json").read_text())
    assert status == 0
    assert texts(out) == [document.text for document in documents(12)[3::2]]  # 4, 6, 8, 10, 12 words
    assert report["dropped"] == {
        "fault: bad_json": 1,
        "fault: missing_image": 1,
        "min_pictures": 6,
        "min_words": 1,
    }
    assert (report["documents"], report["kept"]) == (14, 5)
    assert report["rules"] == {"min_words": 3, "min_pictures": 1}
    assert "min_pictures" in told


def test_a_filter_that_keeps_nothing_writes_nothing(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sound.parent / "kept"

    status, _, error = ran(capsys, "filter", sound, "--out", out, "--min-words", "99")

    assert status == 2
    assert "none of 12 documents is kept: {'min_words': 12}" in error
    assert not out.exists()
    assert only(["sound.jsonl", "sound_images"], sound.parent)


# ---- what cannot be done ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("check", "nowhere.jsonl"), "nowhere.jsonl"),
        (("check", "sound.jsonl", "--format", "papyrus"), "papyrus"),
        (("check", "empty"), "empty"),
        (("check", "empty.jsonl"), "empty.jsonl"),
        (("check", "sound.jsonl", "--limit", "0"), "limit is 0"),
        (("check", "sound.jsonl", "--similarity", "7"), "similarity is 7"),
        (("check", "sound.jsonl", "--tokenizer", "empty"), "holds no tokenizer.json"),
        (("check", "sound.jsonl", "--json", "sound.jsonl/report.json"), "cannot write"),
        (("check", "sound.jsonl", "--workers", "-1"), "workers is -1"),
        (("preview", "sound.jsonl", "--out", "page.pdf"), "page.pdf"),
        (("preview", "sound.jsonl", "--out", "page.html", "--num", "0"), "num is 0"),
        (("preview", "sound.jsonl", "--out", "sound.jsonl/page.html"), "cannot write"),
        (("shard", "sound.jsonl", "--out", "empty"), "empty exists"),
        (("shard", "sound.jsonl", "--out", "sound.jsonl/shards"), "cannot write"),
        (("shard", "sound.jsonl", "--out", "shards", "--documents-per-shard", "0"), "documents_per_shard"),
        (("shard", "nowhere.jsonl", "--out", "shards"), "nowhere.jsonl"),
        (("filter", "sound.jsonl", "--out", "kept"), "no rule is given"),
        (("filter", "sound.jsonl", "--out", "kept", "--min-tokens", "3"), "there is no tokenizer"),
        (("filter", "sound.jsonl", "--out", "kept", "--ids", "nowhere.txt"), "nowhere.txt"),
        (("filter", "sound.jsonl", "--out", "empty", "--min-words", "3"), "empty exists"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: tuple[str, ...],
    told: str,
    sound: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(sound.parent)
    Path("empty").mkdir()
    Path("empty.jsonl").write_text("\n")

    status, out, error = ran(capsys, *arguments)

    assert status == 2
    assert out == "" or "--json" in arguments  # what was counted is shown before it is written
    assert told in error
    assert error.startswith("error: ")
    assert error.count("\n") == 0
    assert only(["sound.jsonl", "sound_images", "empty", "empty.jsonl"], sound.parent)
    assert os.listdir("empty") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("shard", "--out", "new/out"),
        ("filter", "--out", "new/out", "--min-words", "1"),
        ("preview", "--out", "new/out.html"),
        ("check", "--json", "new/out.json"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Files may have 512 bytes, which is how a disk is full for one process."""
    big = [
        Document(parts=(Text(text=f"a {number}" * 300), Image(source=picture(number, 40))))
        for number in (0, 1)
    ]
    path = write_documents(big, tmp_path / "big.jsonl")
    open_documents(path)  # an index that is written once may be there already
    verb, *rest = arguments

    done = subprocess.run(
        [sys.executable, "-m", "dreamllm", "data", verb, str(path), *rest],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512)),
        check=False,
    )

    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: cannot write")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "new").rglob("*")) == []
