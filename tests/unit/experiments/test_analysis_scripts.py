"""Do the scripts of the analyses start, and do they say what they showed?"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from threadpoolctl import threadpool_info, threadpool_limits

pytest.importorskip("libero")  # their scenes are those of the simulator

SCRIPTS = Path(__file__).resolve().parents[3] / "experiments" / "analysis"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
# Imported by the others; everything else is run by hand.
SHARED = ("sae_rollouts", "scenes")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder is searched first, as for a script in it, and nothing of it is left behind."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which they set
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in NAMES:
        sys.modules.pop(name, None)


def script(name: str) -> Any:
    module = import_module(name)
    assert Path(str(module.__file__)).parent == SCRIPTS, "the folder's own file is imported"
    return module


def test_the_scripts_are_found() -> None:
    assert {"attention", "lens", "patching", *SHARED} <= set(NAMES)


def test_a_script_begins_with_one_thread_a_folder_and_the_policy(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2):
            vla = script("scenes").begin("mini", tmp_path / "a" / "b", attn_implementation="eager")
            assert torch.get_num_threads() == 1 == max(pool["num_threads"] for pool in threadpool_info())
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "a" / "b").is_dir() and vla.cfg.model_id.startswith("mini")
    shot = SimpleNamespace(obs=observation(), instruction="pick up the bowl")
    assert script("scenes").asked(vla, [shot, shot]).batch_size == 2


def observation() -> dict[str, np.ndarray]:
    pictures = {name: np.zeros((256, 256, 3), np.uint8) for name in ("agentview_image", "robot0_eye_in_hand_image")}
    state = {"robot0_eef_pos": np.zeros(3), "robot0_eef_quat": np.eye(4)[3], "robot0_gripper_qpos": np.zeros(2)}
    return pictures | state


@pytest.mark.parametrize("name", NAMES)
def test_a_script_imports_and_says_what_it_asks(name: str) -> None:
    assert (script(name).__doc__ or "").split("\n")[0].endswith(("?", "."))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHARED])
def test_the_options_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = script(name)
    with pytest.raises(SystemExit) as stop:
        tyro.cli(module.Settings, args=["--help"])
    assert stop.value.code == 0 and "--" in capsys.readouterr().out
    assert isinstance(tyro.cli(module.Settings, args=[]), module.Settings)
    assert callable(module.main)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHARED])
def test_a_docstring_holds_the_numbers(name: str) -> None:
    text = script(name).__doc__ or ""
    assert len(re.findall(r"\d\.\d+|\d+ %", text)) >= 3
    assert not re.search(r"(?i:\b(pending|todo|tbd|placeholder)\b)|\bRESULTS\b", text)


def test_the_scripts_do_not_hide_installed_packages() -> None:
    """A script's folder comes first in its search path, so its files must not be named like what is imported there."""
    assert not set(NAMES) & (set(sys.stdlib_module_names) | {"datasets", "tokenizers", "torch", "rich", "tyro"})
