"""Does a simulator that was just installed start without a question, a stray line, or a file outside of the run?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.sim

EPISODE = """
import numpy as np
from mist_interp.libero import LiberoEnv, LiberoSuite
env = LiberoEnv(LiberoSuite("libero_spatial").tasks[0], resolution=64)
env.reset(0)
env.step(np.zeros(7))
env.observe()
env.close()
"""


def test_an_episode_says_nothing_and_writes_nothing(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("home", "temporary", "work")}
    for folder in folders.values():
        folder.mkdir()
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith(("LIBERO", "XDG"))}
    surroundings |= {"HOME": str(folders["home"]), "TMPDIR": str(folders["temporary"])}
    run = subprocess.run(
        [sys.executable, "-c", EPISODE],
        cwd=folders["work"],
        env=surroundings,
        stdin=subprocess.DEVNULL,  # whoever asks a question gets no answer
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == []
