"""A fitted object comes back as it was kept; half of one, or one of another format, does not come back at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mist_interp.core import kept as module
from mist_interp.core.kept import keep, kept, triples


def test_facts_and_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    weights = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T  # not contiguous
    keep(tmp_path / "new", "probe", {"site": "x", "sigma": [1.5, None]}, {"weights": weights})
    facts, tensors = kept(tmp_path / "new", "probe", "probe")
    assert (facts["site"], facts["sigma"]) == ("x", [1.5, None])
    assert torch.equal(tensors["weights"], weights) and tensors["weights"].dtype == torch.float64


def test_an_object_without_numbers_is_one_file(tmp_path: Path) -> None:
    keep(tmp_path, "alarm", {"alpha": 0.1})
    assert [path.name for path in tmp_path.iterdir()] == ["alarm.json"]
    assert kept(tmp_path, "alarm", "conformal alarm")[1] == {}


def test_numbers_without_their_facts_are_no_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        keep(tmp_path, "probe", {"sigma": float("nan")}, {"weights": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []
    keep(tmp_path, "probe", {}, {"weights": torch.ones(1)})
    (tmp_path / "probe.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no linear probe in .*: probe\.json is missing"):
        kept(tmp_path, "probe", "linear probe")


def test_a_cut_while_one_is_replaced_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "probe", {"limit": 1}, {"weights": torch.ones(1)})
    plain = module.write_atomic

    def cut(path: Path, content: bytes | str) -> None:
        if path.suffix == ".json":
            raise OSError("the disk is full")
        plain(path, content)

    monkeypatch.setattr(module, "write_atomic", cut)
    with pytest.raises(OSError, match="full"):
        keep(tmp_path, "probe", {"limit": 2}, {"weights": torch.zeros(1)})
    with pytest.raises(FileNotFoundError):
        kept(tmp_path, "probe", "probe")


def test_numbers_belong_to_the_object_that_was_kept_last(tmp_path: Path) -> None:
    keep(tmp_path, "probe", {}, {"weights": torch.ones(1)})
    keep(tmp_path, "probe", {})
    assert kept(tmp_path, "probe", "probe")[1] == {} and not (tmp_path / "probe.safetensors").exists()
    keep(tmp_path, "probe", {}, {"weights": torch.ones(1)})
    (tmp_path / "probe.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"probe\.safetensors"):
        kept(tmp_path, "probe", "probe")


def test_another_format_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, "probe", {})
    (tmp_path / "probe.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"probe\.json has format 99; this package reads 1"):
        kept(tmp_path, "probe", "probe")


def test_start_states_survive_json() -> None:
    states = {("libero_spatial", 3, 7), ("libero_goal", 0, 1)}
    assert triples(json.loads(json.dumps(sorted(states)))) == states
