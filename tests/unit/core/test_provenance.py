"""Provenance names the software in force without importing it."""

import json
import subprocess
import sys

import pytest

from mist_interp.core.provenance import provenance


def test_facts_are_strings_and_json() -> None:
    facts = provenance()
    assert {"python", "platform", "torch"} <= facts.keys()
    assert all(isinstance(value, str) and value for value in facts.values())
    json.dumps(facts)


def test_gl_backend_is_the_one_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert provenance()["gl_backend"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    assert "gl_backend" not in provenance()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from mist_interp.core.provenance import provenance; provenance();"
        "print([m for m in ('torch', 'mujoco', 'robosuite', 'libero', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
