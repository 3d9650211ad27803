"""A policy is loaded as it was asked for, everywhere, with the statistics of the suite in which it acts."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from mist_interp import PolicySource
from mist_interp.core.errors import UnknownName
from mist_interp.data.collect import collect_rollouts
from mist_interp.data.plan import check_workers, policy_settings, whole_numbers
from mist_interp.data.policy_source import named_policy, resolve_policy
from mist_interp.models.folder import SHIPPED
from mist_interp.tracing.hooked import HookedVLA


@pytest.fixture
def joint(tmp_path: Path) -> Path:
    """`mini` with statistics of three suites, as the published joint checkpoint has them of four."""
    folder = tmp_path / "joint"
    shutil.copytree(SHIPPED["mini"], folder)
    file = folder / "dataset_statistics.json"
    (statistics,) = json.loads(file.read_text()).values()
    keys = ("libero_spatial_no_noops", "libero_goal_no_noops", "libero_10")
    file.write_text(json.dumps(dict.fromkeys(keys, statistics)))
    return folder


@pytest.mark.parametrize(
    ("suite", "key"), [("libero_goal", "libero_goal_no_noops"), ("libero_10", "libero_10"), ("libero_object", None)]
)
def test_of_several_statistics_those_of_the_suite_are_taken(joint: Path, suite: str, key: str | None) -> None:
    if key is not None:
        assert resolve_policy(str(joint), suite).policy.unnorm_key == key
        return
    with pytest.raises(
        ValueError, match=r"3 data sets, none of which is that of libero_object.*'libero_goal_no_noops'"
    ):
        PolicySource(str(joint)).load(suite)


def test_a_key_that_is_given_wins(joint: Path) -> None:
    source = PolicySource(str(joint), unnorm_key="libero_goal")
    vla = source.load("libero_spatial")
    assert vla.policy.unnorm_key == "libero_goal_no_noops"
    assert policy_settings(vla)["unnorm_key"] == "libero_goal_no_noops", "rollouts of two keys share no store"
    with pytest.raises(UnknownName, match="libero_spatail"):
        PolicySource(str(joint), unnorm_key="libero_spatail").load("libero_spatial")


def test_the_only_statistics_serve_every_suite() -> None:
    vla = resolve_policy(SHIPPED["mini"], "libero_goal")
    assert vla.policy.unnorm_key == "libero_spatial_no_noops" and "unnorm_key" not in policy_settings(vla)


def test_every_option_arrives_also_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        HookedVLA, "from_pretrained", staticmethod(lambda *given, **options: seen.append((given, options)))
    )
    source = PolicySource("mini", "cuda", "bfloat16", "eager", "libero_spatial")
    pickle.loads(pickle.dumps(source)).load("libero_goal")
    options = {"device": "cuda", "dtype": "bfloat16", "attn_implementation": "eager", "unnorm_key": "libero_spatial"}
    assert seen == [(("mini",), options)]


def test_names_are_checked_without_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HookedVLA, "from_pretrained", lambda *_, **__: pytest.fail("nothing may be loaded"))
    assert named_policy("mini") == named_policy(PolicySource("mini")) == PolicySource("mini")
    assert named_policy("owner/name") == PolicySource("owner/name")
    for wrong in ("nope", "no/such/folder", Path("nope")):
        with pytest.raises(UnknownName, match="'mini'"):
            named_policy(wrong)


def test_what_is_a_policy_already_is_left_alone() -> None:
    vla = HookedVLA.tiny()
    assert resolve_policy(vla) is vla and resolve_policy(lambda: vla) is vla and named_policy(vla) is vla


def test_whole_numbers() -> None:
    assert whole_numbers("inits", range(3)) == [0, 1, 2]
    for wrong in (0.5, "1", None, -1):
        with pytest.raises(ValueError, match="inits: "):
            whole_numbers("inits", [0, wrong])
    with pytest.raises(ValueError, match="workers: 0 is not a whole number of at least 1"):
        check_workers(0)


@pytest.mark.parametrize(("settings", "match"), [({"workers": 0}, "workers: 0"), ({"inits": (0.5,)}, r"inits: 0\.5")])
def test_a_collection_that_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        collect_rollouts("mini", Suite(), out=tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


class Suite:
    name, max_steps, tasks = "libero_spatial", 20, ()
