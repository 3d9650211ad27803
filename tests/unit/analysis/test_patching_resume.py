"""Does a killed sweep go on where it was, to the same numbers, and never into another one's folder?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from patching_policies import make, pairs

from mist_interp.analysis.head import source_of
from mist_interp.analysis.metrics import Metric, action_delta
from mist_interp.analysis.patching import OtherSweep, patch
from mist_interp.core.files import read_json_lines
from mist_interp.tracing import add, scale

OPTIONS = {"segments": ["agentview", "wrist", "text", "proprio", "stop"], "batch_size": 3}

SWEEP = """
import sys, time
from patching_policies import make, pairs
from mist_interp.analysis.patching import patch
vla = make()
patch(vla, *pairs(vla), segments=["agentview", "wrist", "text", "proprio", "stop"], batch_size=3, out=sys.argv[1],
      progress=lambda done, total: time.sleep(0.5 if done > 9 else 0))
"""


def test_kill_9_and_resume(tmp_path) -> None:
    folder = tmp_path / "sweep"
    child = subprocess.Popen([sys.executable, "-c", SWEEP, str(folder)], cwd=Path(__file__).parent)
    rows = folder / "cells.jsonl"
    deadline = time.monotonic() + 60
    while len(read_json_lines(rows)) < 4 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = sum(len(row["cells"]) for row in read_json_lines(rows))
    assert 10 <= kept < 30, "the sweep was cut in the middle"
    with rows.open("ab") as file:  # as a kill during a write leaves it
        file.write(b'{"site": "blocks.2.hook_res')

    vla, done = make(), []
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean, corrupt, **OPTIONS, out=folder, progress=lambda k, total: done.append(k))
    assert done[0] > kept and done[-1] == 30, "finished cells were run again"
    np.testing.assert_allclose(grid.values, patch(vla, clean, corrupt, **OPTIONS).values, atol=1e-5)
    done.clear()
    again = patch(
        vla, clean, corrupt, **{**OPTIONS, "batch_size": 32}, out=folder, progress=lambda k, _: done.append(k)
    )
    assert done == [] and again.values.equals(grid.values)


def test_other_settings_are_named(tmp_path) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    patch(vla, clean[0], corrupt[0], segments=["text"], out=tmp_path)
    for options, field in (
        ({"segments": ["wrist"]}, "places"),
        ({"site": "attn_out"}, "sites"),
        ({"direction": "noise"}, "direction"),
        ({"metric": action_delta("dz")}, "metric"),
    ):
        with pytest.raises(OtherSweep, match=f"(?s)other settings.*{field}: there "):
            patch(vla, clean[0], corrupt[0], **{"segments": ["text"], "out": tmp_path, **options})
    with pytest.raises(OtherSweep, match="values from: there") as error:
        patch(vla, corrupt[0], corrupt[0], segments=["text"], out=tmp_path)
    assert "direction" not in str(error.value)
    with pytest.raises(OtherSweep, match="live edits"), vla.hooks(scale(("attn_out", 0), 2.0)):
        patch(vla, clean[0], corrupt[0], segments=["text"], out=tmp_path)
    twin = make(seed=1)
    twin.policy.model_id = vla.policy.model_id
    with pytest.raises(OtherSweep, match=r"policy: there|other weights|unnorm_key: there"):
        patch(twin, clean[0], corrupt[0], segments=["text"], out=tmp_path)


def test_edits_that_read_alike_are_other_edits(tmp_path) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    one, two = (add(("resid_post", 0), sign * torch.ones(vla.cfg.d_model)) for sign in (1, -1))
    assert str(one) == str(two)
    for edit in (one, one):
        with vla.hooks(edit):
            grid = patch(vla, clean[0], corrupt[0], segments=["text"], out=tmp_path)
    assert one.fingerprint in grid.source["live edits"][0]
    with pytest.raises(OtherSweep, match="live edits"), vla.hooks(two):
        patch(vla, clean[0], corrupt[0], segments=["text"], out=tmp_path)
    found = []
    for edit in (one, two):
        with vla.hooks(edit):
            found.append(source_of(vla)["edits"])
    assert found[0] != found[1]
    keep = (("attn_out", 0), lambda values, site: values)
    with vla.hooks(keep):
        patch(vla, clean[0], corrupt[0], segments=["text"])
        with pytest.raises(ValueError, match=r"is a function.*edit that is data"):
            patch(vla, clean[0], corrupt[0], segments=["text"], out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_numbers_that_are_not_finite_are_not_kept(tmp_path) -> None:
    vla = make()
    bad = Metric("nan", "", lambda chunk: chunk.values[:, 0, 0] / 0)
    with pytest.raises(ValueError, match="not finite"):
        patch(vla, *pairs(vla), metric=bad, out=tmp_path)
    assert read_json_lines(tmp_path / "cells.jsonl") == []
