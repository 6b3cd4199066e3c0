"""What every verb shares: help, mistakes, interruption, a reader that goes away."""

import importlib
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import dreamllm.cli
from dreamllm.cli import MODULES, VERBS, data, main


def module_of(verb: str) -> str:
    return f"dreamllm.cli.{MODULES.get(verb, verb.replace('-', '_'))}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_listed_verb_has_a_module_with_a_documented_run(verb: str) -> None:
    assert importlib.import_module(module_of(verb)).run.__doc__


def test_every_module_of_the_folder_is_a_listed_verb() -> None:
    folder = Path(dreamllm.cli.__file__).parent
    names = [f"dreamllm.cli.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__"]
    modules = {name for name in names if hasattr(importlib.import_module(name), "run")}

    assert modules == {module_of(verb) for verb in VERBS} | {
        f"dreamllm.cli.data_{verb}" for verb in data.VERBS
    }


@pytest.mark.parametrize("verb", VERBS)
def test_the_module_of_a_verb_does_not_load_torch(verb: str) -> None:
    program = f"import sys, {module_of(verb)}; print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--help"])

    shown = capsys.readouterr().out
    assert status == 0
    assert all(f"  {verb} " in shown for verb in VERBS)


def test_help_appears_within_a_second() -> None:
    command = [sys.executable, "-m", "dreamllm", "--help"]

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1.0  # the best of three: the machine may be busy


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dreamllm {dreamllm.__version__}\n"


def test_no_verb_at_all_shows_the_help_as_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    status = main([])

    assert status == 2
    assert capsys.readouterr().err.startswith("usage: dreamllm")


def test_an_unknown_verb_offers_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["docter"])

    assert status == 2
    expected = "error: unknown verb 'docter'; did you mean 'doctor'? `dreamllm --help` describes every verb\n"
    assert capsys.readouterr().err == expected


def test_an_unknown_option_of_a_verb_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--colour"])

    assert stop.value.code == 2
    assert "--colour" in capsys.readouterr().err


def test_a_users_mistake_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["show-config", "no/such/recipe.yaml"])

    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "no/such/recipe.yaml" in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_traceback_shows_where_the_error_was_raised(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["show-config", "no/such/recipe.yaml"]
    arguments.insert(place, "--traceback")

    status = main(arguments)

    shown = capsys.readouterr().err
    assert status == 2
    assert shown.startswith("Traceback")
    assert "ConfigError" in shown


def test_an_interrupt_ends_with_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        """Wait until somebody presses Ctrl-C."""
        raise KeyboardInterrupt

    verb = types.ModuleType("dreamllm.cli.wait")
    monkeypatch.setattr(verb, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, verb.__name__, verb)
    monkeypatch.setitem(VERBS, "wait", "wait")

    assert main(["wait"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dreamllm", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # before anything was written: `dreamllm --help | true`
    status = process.wait(timeout=60)

    assert status == 141
    assert process.stderr.read() == b""
    process.stderr.close()
