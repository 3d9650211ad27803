"""The README's way from rollouts to the Hub and back, on the sample of rollouts that ships with the package.

What it collects is collected by the tests of the simulator; here it stands for those episodes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import LocalHub

import mist_interp.data
from mist_interp.data import RolloutStore, load_rollouts
from mist_interp.data.perturbation import parse_perturbation
from mist_interp.probing import Risk

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "experiments" / "sample"


def data_block() -> str:
    blocks = re.findall(
        r"^```py\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return next(block for block in blocks if "push_dataset" in block)


def test_rollouts_labels_probes_and_the_hub_in_few_lines(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Any] = {}

    def collect(policy: str, suite: str, *, out: str, **settings: Any) -> RolloutStore:
        asked.update(settings, policy=policy, suite=suite, out=out)
        return load_rollouts(SAMPLE)

    monkeypatch.setattr(mist_interp.data, "collect_rollouts", collect)
    block = data_block()
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, "README.md, data", "exec", dont_inherit=True), names)

    assert (asked["policy"], asked["suite"]) == ("mini", "libero_spatial")
    assert all(parse_perturbation(text) is not None for text in asked["perturbations"])
    assert len([line for line in block.splitlines() if line and not line.startswith(("from ", "import "))]) <= 10
    assert names["again"].keys == names["store"].keys
    for layer in range(4):
        np.testing.assert_array_equal(*(names[n].load(("resid_post", layer))[0] for n in ("again", "store")))
    rows = names["store"].load(names["probe"].site_)[0]
    np.testing.assert_allclose(names["same"].predict_proba(rows), names["probe"].predict_proba(rows))
    assert names["direction"].site == names["probe"].site_


def test_the_sample_is_what_its_card_says() -> None:
    sample = load_rollouts(SAMPLE)
    episodes = sample.episodes()
    assert len(sample) == 40 and sorted(set(episodes["task"])) == list(range(10))
    assert sample.manifest.selection == "iid" and sample.manifest.settings["model"] == "mini"
    labels = Risk().labels(sample)
    assert (labels.values == 1).any(0)[2], "no event along dz"
    x, rows = sample.load(("resid_post", 3))
    assert x.shape == (len(rows), 192) and len(labels) == len(rows) == len(sample.queries(["query"]))
    size = sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file())
    assert size < 10e6
