"""A gate is read from a file as it was written there, or refused with what is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.data import RolloutStore
from mist_interp.data.records import Unit
from mist_interp.evaluation.gate import FittedRisk
from mist_interp.evaluation.gate_files import KEYS, read_gate
from mist_interp.probing import Benefit, ConformalAlarm, Deviation, Probe
from mist_interp.probing.benefit import TwinGain

SAMPLE = Path(__file__).resolve().parents[3] / "experiments" / "sample"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe, a deviation, an alarm and a benefit, all fitted and kept."""
    made = tmp_path_factory.mktemp("gate")
    store = RolloutStore.open(SAMPLE)
    group = store.manifest.groups[0]
    Probe(group.sites[-1], tokens=group.tokens, pool=group.pool).fit(store).save(made / "probe")
    deviation = Deviation(("resid_post", 2))
    deviation.site_, deviation.source_, deviation.trained_on_ = Site("blocks.2.hook_resid_post"), {}, frozenset()
    deviation.mean_, deviation.scale_ = np.zeros(4), np.ones(4)
    deviation.weights_, deviation.intercept_ = np.zeros((14, 4)), np.zeros(14)
    deviation.save(made / "deviation")
    ConformalAlarm(0.1, 20, ("dz",), "max", (0.5,), np.zeros((1, 1)), np.ones((1, 1))).save(made / "alarm")
    twins = [TwinGain(Unit("libero_spatial", 0, k), np.full(3, float(k)), 1 - 2 * (k % 2)) for k in range(6)]
    Benefit(("resid_post", 2)).fit(twins, Site("blocks.2.hook_resid_post")).save(made / "benefit")
    return made


def written(tmp_path: Path, **content: Any) -> Path:
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump({key: str(v) if isinstance(v, Path) else v for key, v in content.items()}))
    return path


def test_every_key_arrives_in_the_gate(folder: Path, tmp_path: Path) -> None:
    rules = {"release": 0.2, "max_queries": 5, "max_interventions": 2, "longest": 3, "pause": 1, "name": "careful"}
    parts = {"risk": folder / "deviation", "alarm": folder / "alarm", "benefit": folder / "benefit"}
    gate = read_gate(written(tmp_path, **parts, **rules))
    assert {key: getattr(gate, key) for key in rules} == rules
    assert isinstance(gate.source, Deviation) and gate.outputs == ("dz",)
    assert isinstance(gate.benefit, Benefit) and not gate.benefit.allows(1e9)
    with pytest.raises(ValueError, match="task 0 init 3"):  # the benefit was taught by it
        gate.check_units([Unit("libero_spatial", 0, 3)])
    assert set(parts) | set(rules) | {"limit"} == set(KEYS)


def test_a_probe_with_one_limit(folder: Path, tmp_path: Path) -> None:
    gate = read_gate(written(tmp_path, risk=folder / "probe", limit=0.6))
    assert isinstance(gate.source, FittedRisk) and gate.alarm == 0.6 and gate.outputs == ("failure",)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="benefits"):
        read_gate(written(tmp_path, risk=folder / "probe", limit=0.6, benefits=folder / "benefit"))
    for wrong in ({"limit": 0.6, "alarm": folder / "alarm"}, {}):
        with pytest.raises(ValueError, match="one of alarm=FOLDER and limit=NUMBER"):
            read_gate(written(tmp_path, risk=folder / "probe", **wrong))
    with pytest.raises(FileNotFoundError, match=r"no predictor\.json, probe\.json or deviation\.json"):
        read_gate(written(tmp_path, risk=folder / "alarm", limit=0.6))
    with pytest.raises(FileNotFoundError, match=r"no benefit in .*: benefit\.json is missing"):
        read_gate(written(tmp_path, risk=folder / "probe", limit=0.6, benefit=folder / "alarm"))
    (tmp_path / "list.yaml").write_text("- risk")
    with pytest.raises(ValueError, match="must hold the keys of a gate"):
        read_gate(tmp_path / "list.yaml")
