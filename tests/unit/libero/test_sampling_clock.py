"""Is an observation of the moment that robosuite's own Observable would have sampled?"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mist_interp.libero.observation import SamplingClock
from mist_interp.libero.packages import load_simulator

pytestmark = pytest.mark.sim
load_simulator()


def samples_of_robosuite(rate: float, timestep: float, plan: list[int]) -> list[list[int]]:
    """For each run of the plan, the sub-steps at which an Observable asks its sensor; 0 stands for a forced sample."""
    from robosuite.utils.observables import Observable

    asked: list[int] = []
    now = [-1]

    def sensor(cache: dict[str, Any]) -> np.ndarray:
        asked.append(now[0])
        return np.zeros(3)

    sensor.__modality__ = "object"  # type: ignore[attr-defined]  # what robosuite's decorator adds
    observable = Observable("thing", sensor, sampling_rate=rate)
    found = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints when the rate is too low
        for substeps in plan:
            asked.clear()
            for now[0] in range(max(substeps, 1)):
                observable.update(timestep, {}, force=substeps == 0)
            found.append(sorted(set(asked)) if substeps else [])
    return found


@settings(max_examples=150, deadline=None)
@given(
    rate=st.integers(5, 60),
    timestep=st.floats(0.0005, 0.02),
    plan=st.lists(st.integers(0, 40), min_size=1, max_size=12),
)
@example(rate=20, timestep=0.002, plan=[0, 0, *[25] * 40])  # LIBERO
def test_the_clock_is_robosuites(rate: int, timestep: float, plan: list[int]) -> None:
    clock, ours = SamplingClock(1.0 / rate, timestep), []
    for substeps in plan:
        taken: tuple[int, ...] = ()
        clock, taken = (clock.forced(), ()) if substeps == 0 else clock.run(substeps)
        ours.append(list(taken))
    assert ours == samples_of_robosuite(rate, timestep, plan)


def test_in_libero_an_observation_is_older_than_its_control_step() -> None:
    clock = SamplingClock(0.05, 0.002).forced().forced()
    for _ in range(200):
        clock, taken = clock.run(25)
        assert len(taken) == 1 and taken[0] < 24
