"""Does a worker end with the process that started it, even if that one was killed?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import multiprocessing, sys, time
from mist_interp.core.processes import end_with_parent

def work(follow):
    if follow:
        end_with_parent()
    time.sleep(60)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1] == "follow",), daemon=True)
    child.start()
    print(child.pid, flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("follow", [True, False])
def test_a_worker_ends_when_its_parent_was_killed(tmp_path: Path, follow: bool) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    word = "follow" if follow else "stay"
    parent = subprocess.Popen([sys.executable, str(script), word], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(2.0)  # until the child is through its imports
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 8.0
    while follow and alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    survived = alive(child)
    if survived:
        os.kill(child, signal.SIGKILL)
    assert survived == (not follow)  # without the guard it does survive, so the test can fail
