"""Exports on first use are what their module defines, whatever was imported before; a wrong name is answered."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mist_interp.core.lazy import lazy_exports

PACKAGE = Path(__file__).resolve().parents[3] / "mist_interp"
LAZY = sorted(path for path in PACKAGE.rglob("__init__.py") if "lazy_exports(" in path.read_text())


def package_of(path: Path) -> str:
    return ".".join(path.parent.relative_to(PACKAGE.parent).parts)


def defined(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_all_packages_that_export_lazily_are_seen() -> None:
    assert {package_of(path) for path in LAZY} >= {"mist_interp", "mist_interp.data", "mist_interp.tracing"}
    assert not [path for path in PACKAGE.rglob("__init__.py") if "def __getattr__" in path.read_text()]


@pytest.mark.parametrize("path", LAZY, ids=package_of)
def test_an_export_is_defined_where_it_is_said_and_no_module_takes_its_place(path: Path) -> None:
    package = import_module(package_of(path))
    for name, home in package._HOMES.items():
        place = path.parent / home.replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        assert name in defined(file), (name, home)
        assert not (path.parent / f"{name}.py").exists() and not (path.parent / name / "__init__.py").exists(), name
    assert set(package.__all__) == set(package._HOMES) <= set(dir(package))


def test_names_are_found_on_first_use_and_wrong_ones_answered() -> None:
    code = (
        "import sys, mist_interp.data as data; before = 'mist_interp.data.store' in sys.modules; "
        "from mist_interp.data import TokenGroup; print(before, TokenGroup.__name__, 'TokenGroup' in dir(data))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "TokenGroup", "True"]
    get, names = lazy_exports("mist_interp.core", {"suggest": "errors", "Site": "names"})
    assert get("suggest")("sugest", ["suggest"]) == "did you mean 'suggest'?" and {"suggest", "Site"} <= set(names())
    with pytest.raises(AttributeError, match=r"module 'mist_interp.core' has no attribute 'sugest'; did you mean"):
        get("sugest")
    with pytest.raises(AttributeError, match=r"'__path_of__'$"):
        get("__path_of__")
