"""How is a gate written in a file?

    risk: runs/predictor            folder of a fitted risk predictor, probe or deviation
    alarm: runs/alarm               folder of a conformal alarm; or  limit: 0.6  for one limit on all outputs
    benefit: runs/benefit           optional: folder of a fitted benefit, which is asked before each act
    release: 0.1                    optional, as are max_queries, max_interventions, longest, pause and name

Paths are those of the machine that reads the file, from where it is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mist_interp.core.errors import UnknownName
from mist_interp.evaluation.gate import FittedRisk, Gate, RiskSource
from mist_interp.probing.benefit import Benefit
from mist_interp.probing.conformal import ConformalAlarm
from mist_interp.probing.deviation import Deviation
from mist_interp.probing.predictor import RiskPredictor
from mist_interp.probing.probe import Probe

RULES = ("release", "max_queries", "max_interventions", "longest", "pause", "name")
KEYS = ("risk", "alarm", "limit", "benefit", *RULES)


def read_gate(path: str | Path) -> Gate:
    """The gate that a YAML file describes.

    Raises:
        FileNotFoundError: the file, or a folder that it names, does not exist.
        UnknownName: a key that a gate does not have.
        ValueError: `risk` is missing, or there is not exactly one of `alarm` and `limit`.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the keys of a gate: {', '.join(KEYS)}")
    return make_gate(content)


def make_gate(given: Mapping[str, Any]) -> Gate:
    """The gate that a mapping describes; errors as in `read_gate`."""
    for key in given:
        if key not in KEYS:
            raise UnknownName("key of a gate", key, KEYS)
    if "risk" not in given or ("alarm" in given) == ("limit" in given):
        raise ValueError(f"a gate needs risk=FOLDER and one of alarm=FOLDER and limit=NUMBER; given {dict(given)}")
    alarm = ConformalAlarm.load(given["alarm"]) if "alarm" in given else float(given["limit"])
    rules = {key: given[key] for key in RULES if key in given}
    benefit = Benefit.load(given["benefit"]) if "benefit" in given else None
    return Gate(_source(Path(given["risk"])), alarm, benefit=benefit, **rules)


def _source(folder: Path) -> RiskSource:
    if (folder / "deviation.json").exists():
        return Deviation.load(folder)
    if (folder / "predictor.json").exists():
        return FittedRisk(RiskPredictor.load(folder))
    if (folder / "probe.json").exists():
        return FittedRisk(Probe.load(folder))
    raise FileNotFoundError(f"{folder} holds no predictor.json, probe.json or deviation.json")
