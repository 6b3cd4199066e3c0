"""The whole path on one-object scenes: ingredients, stages, Ctrl-C and on, a document, an evaluation."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from dreamllm.cli import main
from dreamllm.document.export import load_json
from dreamllm.train.family import RunRecord, read_records
from dreamllm.train.metrics import read_metrics

# numpy 2 warns of a call inside the stock DPM-Solver.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

RUNS = ["language_model", "clip", "vae", "stable_diffusion", "stage1", "stage2", "stage3"]


def press_ctrl_c_when_it_logs(run: Path, is_over: threading.Event) -> None:
    """Stands for a person who watches a run and stops it."""
    while not is_over.wait(0.05):
        metrics = run / "metrics.jsonl"
        if metrics.is_file() and metrics.stat().st_size > 0:
            os.kill(os.getpid(), signal.SIGINT)
            return


def first_and_last(run: Path, name: str) -> tuple[float, float]:
    """The means of the first and of the last three records."""
    values = [record[name] for record in read_metrics(run / "metrics.jsonl")]
    return sum(values[:3]) / 3, sum(values[-3:]) / 3


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained family, interrupted once in stage II."""
    folder = tmp_path_factory.mktemp("nano")
    is_over = threading.Event()
    person = threading.Thread(target=press_ctrl_c_when_it_logs, args=(folder / "stage2", is_over))
    person.start()
    try:
        assert main(["train", "nano", "--out", str(folder)]) == 130
    finally:
        is_over.set()
        person.join()
    return folder


def test_the_whole_path(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_records(out / "family.json")
    assert [(name, record.status) for name, record in before.items()] == [
        *[(name, "finished") for name in RUNS[:5]],
        ("stage2", "interrupted"),
    ]

    assert main(["train", "nano", "--out", str(out)]) == 0

    after = read_records(out / "family.json")
    assert list(after) == RUNS
    assert [after[name].status for name in RUNS] == ["skipped"] * 5 + ["finished"] * 2
    check_what_was_learned(out, after)

    model = str(out / "stage3" / "model")
    answer = tmp_path / "answer.json"
    assert main(["generate", "Show two different pictures.", "--model", model, "--out", str(answer)]) == 0
    assert load_json(answer).parts[-1].role == "assistant"
    assert main(["eval", model, "--tasks", "vqa", "--quick", "--num", "4", "--out", str(tmp_path / "e")]) == 0
    assert json.loads((tmp_path / "e" / "results.json").read_text())
    capsys.readouterr()


def check_what_was_learned(out: Path, records: dict[str, RunRecord]) -> None:
    """Bars that a run without learning cannot reach; measured values stand in the recipes."""
    assert all(record.may_go_on for record in records.values())
    first, last = first_and_last(out / "vae", "loss.reconstruction")
    assert last < first / 1.3
    first, last = first_and_last(out / "stable_diffusion", "loss.denoising")
    assert last < first
    # Eight documents a step: what noise levels they draw hides what stages I and III still learn of drawing.
    for stage, name in (
        ("stage1", "loss.next_token"),
        ("stage2", "loss.next_token"),
        ("stage2", "loss.denoising"),
        ("stage3", "loss.next_token"),
    ):
        first, last = first_and_last(out / stage, name)
        assert last < first
