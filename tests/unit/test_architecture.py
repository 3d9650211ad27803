"""Does the package keep its own rules: one-way imports, small files, silence, no machine-specific text?"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mist_interp"

# A folder imports only folders to its left, and its own files.
LAYERS = (
    "core",
    "models",
    "tracing",
    "libero",
    "data",
    "steering",
    "probing",  # below steering, because a probe hands out its direction
    "analysis",
    "evaluation",
    "report",
    "cli",
)
MAX_LINES = 400
# Assembled at run time, so that this file does not contain what it forbids.
FORBIDDEN_STRINGS = tuple("".join(parts) for parts in (("/wo", "rk/"), ("sha", "red/design"), ("sha", "red/golden")))
TEXT_SUFFIXES = {".py", ".sh", ".md", ".toml", ".yaml", ".yml", ".json", ".cfg", ".txt", ""}


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Absolute names of all modules that `source`, a file of `package`, imports; also inside functions and under if."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                anchor = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*anchor, *([node.module] if node.module else [])])
            else:
                module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def upward_imports(source: str, layer: str, package: str) -> list[str]:
    """Imports of `source` that point to a layer below its own `layer`."""
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    wrong = []
    for module in imported_modules(source, package):
        parts = module.split(".")
        if parts[0] == "mist_interp" and len(parts) > 1 and parts[1] in LAYERS and parts[1] not in allowed:
            wrong.append(module)
    return wrong


def library_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str | None:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return first if first in LAYERS else None


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parts[:-1])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_folder_is_a_known_layer() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= set(LAYERS), f"add {folders - set(LAYERS)} to LAYERS at its place"


def test_the_import_rule_sees_all_forms_of_import() -> None:
    for line in (
        "import mist_interp.report",
        "from mist_interp.report import table",
        "from mist_interp import report",
        "from .. import report",
        "from ..report.table import row",
        "def f():\n    from ..report import table",
    ):
        assert upward_imports(line, "data", "mist_interp.data"), line
    fine = "from ..core.files import x\nfrom . import store\nimport numpy"
    assert not upward_imports(fine, "data", "mist_interp.data")


@pytest.mark.parametrize("path", library_files(), ids=relative)
def test_a_folder_imports_only_folders_above_it(path: Path) -> None:
    layer = layer_of(path)
    if layer is None:  # mist_interp/__init__.py exports lazily from everywhere
        return
    assert upward_imports(path.read_text(), layer, package_of(path)) == []


@pytest.mark.parametrize("path", library_files(), ids=relative)
def test_only_tracing_imports_nnsight(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported_modules(path.read_text(), package_of(path))}
    assert "nnsight" not in roots or layer_of(path) == "tracing"


def test_nnsight_is_imported_in_one_file() -> None:
    files = [path for path in library_files() if "nnsight" in imported_modules(path.read_text(), package_of(path))]
    assert len(files) <= 1, files


@pytest.mark.parametrize("path", library_files(), ids=relative)
def test_files_stay_small_and_say_what_they_answer(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a module docstring states the question it answers"


@pytest.mark.parametrize("path", library_files(), ids=relative)
def test_the_library_does_not_print(path: Path) -> None:
    if layer_of(path) == "cli":
        return
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_no_file_names_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if not name or path.suffix not in TEXT_SUFFIXES or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [(name, string) for string in FORBIDDEN_STRINGS if string in text]
    assert found == []


def test_import_needs_neither_simulator_nor_datasets() -> None:
    code = (
        "import sys, mist_interp; "
        "print(sorted({'libero', 'mujoco', 'robosuite', 'datasets', 'nnsight', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name not in ("__init__.py", "conftest.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []  # pytest could not tell them apart
