"""The rules of docs/style.md that a machine can hold: rooms, files, print, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dreamllm"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
NAMELESS = {"utils.py", "util.py", "misc.py", "helpers.py", "common.py", "base.py"}
HEAVY = ("torch", "transformers", "diffusers", "torchvision", "tyro", "rich", "numpy", "PIL")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_rooms_import_only_the_rooms_before_them() -> None:
    # in a process of its own: import-linter sets up the log of its process and disables every logger there
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_is_named_for_what_it_holds() -> None:
    assert [relative(path) for path in SOURCES if path.name in NAMELESS] == []


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}

    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    too_long = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]

    assert too_long == []


def test_only_the_command_line_prints() -> None:
    printing = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        if PACKAGE / "cli" not in path.parents
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert printing == []


@pytest.mark.parametrize("module", ["dreamllm", "dreamllm.cli", "dreamllm.errors"])
def test_importing_the_package_or_its_command_line_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["dreamllm.config", "dreamllm.document.document", "dreamllm.world.scene"])
def test_documents_worlds_and_configs_need_no_torch(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY[:4]} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == []


def test_no_module_imports_torchvision() -> None:
    """A torchvision that cannot load breaks transformers; see `dreamllm doctor`."""
    importing = [
        relative(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(each.name.startswith("torchvision") for each in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchvision"))
    ]

    assert importing == []
