"""Do metrics read what they say they read?"""

from __future__ import annotations

import pytest
import torch

from mist_interp.analysis.metrics import Metric, action_delta, l1_to
from mist_interp.core.actions import ACTION_NAMES, ActionChunk
from mist_interp.core.errors import UnknownName

VALUES = torch.arange(2 * 3 * 7, dtype=torch.float64).reshape(2, 3, 7)
CHUNK = ActionChunk((VALUES / 100).float(), VALUES)


@pytest.mark.parametrize(
    ("metric", "expected", "axes"),
    [
        (action_delta(), VALUES.mean(1), {"dim": list(ACTION_NAMES)}),
        (action_delta("dz"), VALUES[..., 2].mean(1), {}),
        (action_delta(["gripper", "dx"], step=-1), VALUES[:, -1][:, [6, 0]], {"dim": ["gripper", "dx"]}),
        (action_delta("dy", step="all"), VALUES[..., 1], {"step": ["t0", "t1", "t2"]}),
        (action_delta(step="all"), VALUES, {"step": ["t0", "t1", "t2"], "dim": list(ACTION_NAMES)}),
        (action_delta("dx", step=1, normalized=True), (VALUES[:, 1, 0] / 100).float(), {}),
    ],
)
def test_components_of_the_action(metric, expected, axes) -> None:
    assert torch.equal(metric(CHUNK), expected.double())
    assert metric.labels(CHUNK) == axes


def test_names_tell_metrics_apart() -> None:
    given = [(None, "mean"), ("dz", "mean"), ("dz", 0), ("dz", "all"), (["dz", "dx"], "mean")]
    assert len({action_delta(dims, step=step).name for dims, step in given}) == len(given)
    assert action_delta("dz").unit != action_delta("dz", normalized=True).unit


def test_distance_to_a_demonstration() -> None:
    actions = VALUES[0] - torch.tensor([[1.0], [-2.0], [0.0]])
    metric = l1_to(actions.numpy())
    torch.testing.assert_close(metric(CHUNK)[0], torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(metric(CHUNK)[1], (VALUES[1] - actions).abs().mean(0))
    assert metric.labels(CHUNK) == {"dim": list(ACTION_NAMES)} and metric.unit == "robot units"
    assert metric.name != l1_to(actions + 1).name and metric.name == l1_to(actions).name
    with pytest.raises(ValueError, match=r"\(2, 7\).*\(3, 7\)"):
        l1_to(actions[:2])(CHUNK)
    for bad in (VALUES, actions * float("nan")):
        with pytest.raises(ValueError, match="finite and"):
            l1_to(bad)


def test_wrong_metrics() -> None:
    with pytest.raises(ValueError, match="empty"):
        action_delta([])
    with pytest.raises(ValueError, match="mean"):
        action_delta(step="median")
    with pytest.raises(UnknownName, match="dz"):
        action_delta("z")(CHUNK)
    with pytest.raises(UnknownName, match="chunk step"):
        action_delta(step=3)(CHUNK)
    with pytest.raises(ValueError, match=r"gave \(2, 3\).*must give \(2,\)"):
        Metric("two axes", "", lambda chunk: chunk.values[..., 0])(CHUNK)
    with pytest.raises(ValueError, match="gave float"):
        Metric("a number", "", lambda chunk: 1.0)(CHUNK)
