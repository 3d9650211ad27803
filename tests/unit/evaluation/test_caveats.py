"""A reader is told what the settings and rows of a run cast doubt on."""

from typing import Any

import pytest

from mist_interp.evaluation.caveats import (
    mixed_software,
    partial_reasons,
    placebo_arms,
    published_rate,
    statistics_warning,
    warnings_of,
)


def settings(**changes: Any) -> dict[str, Any]:
    model = {"unnorm_key": "libero_spatial_no_noops"}
    return {"suite": "libero_spatial", "model": model, "max_steps": 220, "suite_max_steps": 220, "arms": {}} | changes


@pytest.mark.parametrize(("limit", "told"), [(220, False), (219, True), (300, True)])
def test_any_other_step_limit_is_told(limit: int, told: bool) -> None:
    assert bool(partial_reasons(settings(max_steps=limit))) == told


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"unnorm_key": "libero_spatial"}, False),
        ({"unnorm_key": "libero_spatial_no_noops"}, False),
        ({}, False),  # a scripted stand-in has none
        ({"unnorm_key": "libero_goal_no_noops"}, True),
    ],
)
def test_statistics_of_another_suite_are_told(model: dict[str, str], told: bool) -> None:
    assert bool(statistics_warning(settings(model=model))) == told
    assert len(warnings_of(settings(model=model), [])) == told


def test_placebos_are_known_by_how_they_were_made_not_by_their_name() -> None:
    arms = {
        "none": {"kind": "none"},
        "control": {"method": "random, equal norm"},
        "random-walk": {"method": "contrast"},
        "sham": {"kind": "steer", "placebo": True},
    }
    assert placebo_arms(settings(arms=arms)) == ("control", "sham")


@pytest.mark.parametrize(
    ("model", "suite", "rate"),
    [
        ("moojink/openvla-7b-oft-finetuned-libero-spatial", "libero_spatial", 0.976),
        ("moojink/openvla-7b-oft-finetuned-libero-10", "libero_10", 0.945),
        ("checkpoints/openvla-7b-finetuned-libero-goal/", "libero_goal", 0.792),
        ("moojink/openvla-7b-oft-finetuned-libero-spatial", "libero_goal", None),
        ("moojink/openvla-7b-oft-finetuned-libero-spatial-object-goal-10", "libero_10", None),
        ("mini", "libero_spatial", None),
    ],
)
def test_published_rates_are_of_a_checkpoint_on_its_suite(model: str, suite: str, rate: float | None) -> None:
    assert published_rate(settings(model={"model_id": model}, suite=suite)) == rate


def test_mixed_software_counts_valid_episodes() -> None:
    def row(status: str = "ok", **facts: str) -> dict[str, Any]:
        return {"status": status, "provenance": facts}

    same = [row(torch="2", cpu="a")] * 3
    assert mixed_software([*same, row("error", torch="1", cpu="a")]) == []
    (told,) = mixed_software([*same, row(torch="3", cpu="a")])
    assert told == "episodes were run with different torch: 2 (3), 3 (1)"
    assert mixed_software([]) == []
