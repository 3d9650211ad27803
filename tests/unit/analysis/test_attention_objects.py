"""Are patches where the picture says, and does a head that follows an object come out first?"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mist_interp.analysis.attention.objects import clustered_interval, track
from mist_interp.analysis.attention.pictures import frames, overlay, patch_shares, policy_pictures
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA

torch.set_num_threads(1)
SIZE = 128


@cache
def make() -> HookedVLA:
    return HookedVLA(random_policy(layers=1).requires_grad_(False))


def observation(square: tuple[int, int] | None = None, camera: str = "agentview_image", side: int = 26) -> dict:
    """A dark LIBERO observation, with a bright square whose corner stands at a row and column of the stored array."""
    obs = {name: np.full((SIZE, SIZE, 3), 20, np.uint8) for name in ("agentview_image", "robot0_eye_in_hand_image")}
    if square is not None:
        row, col = square
        obs[camera][row : row + side, col : col + side] = 240
    state = {"robot0_eef_pos": np.zeros(3), "robot0_eef_quat": np.array([0, 0, 0, 1.0])}
    return {**obs, **state, "robot0_gripper_qpos": np.zeros(2)}


# Stored rows run from the bottom up, and the policy mirrors columns as well: a square near the start of the stored
# array is at the lower right of what the policy sees.
@pytest.mark.parametrize(
    ("corner", "patch"), [((8, 8), (3, 3)), ((8, 94), (3, 0)), ((94, 8), (0, 3)), ((94, 94), (0, 0))]
)
def test_picture_mask_and_patch_lie_on_each_other(corner: tuple[int, int], patch: tuple[int, int]) -> None:
    vla, obs = make(), observation(corner, "robot0_eye_in_hand_image")
    inputs = vla.prepare(obs, "pick up the black bowl")
    pictures = policy_pictures(vla, inputs)
    bright = pictures["wrist"][0].mean(-1).reshape(4, 14, 4, 14).mean((1, 3))
    assert np.unravel_index(bright.argmax(), bright.shape) == patch
    assert pictures["agentview"][0].max() < 60
    mask = obs["robot0_eye_in_hand_image"][..., 0] > 100
    shares = patch_shares(vla, {"square": [{"wrist": mask}]})
    of_wrist = shares.sel(sample=0, object="square", camera="wrist").values.values
    assert np.unravel_index(of_wrist.argmax(), of_wrist.shape) == patch
    # The same share of every patch is bright and masked, so sizes and edges agree as well.
    np.testing.assert_allclose((bright - 20) / 220, of_wrist, atol=0.03)
    # And the network's own patch of that place is the one that changes.
    dark = vla.prepare(observation(), "pick up the black bowl")
    with torch.no_grad():
        seen = [vla.policy.vision_backbone.featurizer.patch_embed(x.pixel_values[:, 6:9]) for x in (inputs, dark)]
    change = (seen[0] - seen[1]).norm(dim=-1).flatten()
    assert divmod(int(change.argmax()), 4) == patch


def test_a_full_mask_covers_everything_and_without_crop_more_is_seen() -> None:
    vla, full = make(), np.ones((SIZE, SIZE), bool)
    edge = np.zeros((SIZE, SIZE), bool)
    edge[:2] = True
    result = patch_shares(vla, {"all": [{"agentview": full, "wrist": full}], "edge": [{"agentview": edge}]})
    assert (result.sel(object="all").values == 1).all()
    assert result.sel(object="edge").values.sum() == 0
    assert patch_shares(vla, {"edge": [{"agentview": edge}]}, center_crop=False).values.sum() > 0


def test_wrong_masks_are_refused() -> None:
    vla, mask = make(), np.zeros((SIZE, SIZE), bool)
    with pytest.raises(UnknownName, match="wrist"):
        patch_shares(vla, {"x": [{"robot0_eye_in_hand": mask}]})
    with pytest.raises(ValueError, match="boolean"):
        patch_shares(vla, {"x": [{"wrist": mask.astype(int)}]})
    with pytest.raises(ValueError, match="per sample"):
        patch_shares(vla, {"x": [{"wrist": mask}], "y": []})


# -- tracking ---------------------------------------------------------------------------------------------------------


def scenes(count: int = 12, seed: int = 0) -> tuple[Result, Result]:
    """Head 0 follows the object, head 1 always looks at one place, head 2 looks everywhere."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 8, (count, 2))
    shares = np.zeros((count, 1, 2, 8, 8))
    shares[np.arange(count), 0, 0, places[:, 0], places[:, 1]] = 1
    attention = np.full((count, 1, 3, 1, 2, 8, 8), 0.5 / 128)
    attention[:, 0, 0, 0] += 0.4 * shares[:, 0]
    attention[:, 0, 1, 0, 0, 4, 4] += 0.4
    grid = {"camera": ["agentview", "wrist"], "row": range(8), "col": range(8)}
    axes = {"sample": range(count), "layer": [3], "head": range(3), "from": ["action_read"]}
    return (
        Result(labelled(attention, **axes, **grid), "share"),
        Result(labelled(shares, sample=range(count), object=["bowl"], **grid), "share"),
    )


def test_a_head_that_follows_the_object_comes_first() -> None:
    tracking = track(*scenes(), groups=[k // 2 for k in range(12)])
    ranking = tracking.ranking("bowl")
    assert ranking["head"].tolist()[0] == 0 and ranking.loc[0, "gain"] == pytest.approx(0.4, abs=0.05)
    assert ranking.loc[0, "low"] > 0.3
    even = ranking[ranking["head"] == 2].iloc[0]
    assert even["gain"] == pytest.approx(0, abs=1e-12) and even["mass"] == pytest.approx(even["even"])
    assert float(tracking.gain("bowl").sel(layer=3, head=0).values) == pytest.approx(ranking.loc[0, "gain"])
    with pytest.raises(UnknownName, match="bowl"):
        tracking.ranking("bwol")


def test_a_habit_is_no_tracking() -> None:
    attention, shares = scenes()
    tracking = track(attention, shares)
    habit = tracking.ranking("bowl").set_index("head").loc[1]
    assert habit["low"] <= 0 <= habit["high"]
    # The same head, when the object stands there in every scene: much mass, no gain.
    fixed = shares.values.copy()
    fixed[:] = 0
    fixed[:, :, 0, 4, 4] = 1
    still = track(attention, Result(fixed, "share")).ranking("bowl").set_index("head").loc[1]
    assert still["mass"] > 0.4 and still["gain"] == pytest.approx(0)


def test_elsewhere_is_the_mean_over_the_other_samples() -> None:
    attention, shares = scenes(4)
    tracking = track(attention, shares)
    expected = np.mean(
        [(attention.values[0] * shares.values[j, 0]).sum(["camera", "row", "col"]) for j in (1, 2, 3)], 0
    )
    np.testing.assert_allclose(tracking.elsewhere.sel(sample=0, object="bowl").values, expected)


def test_other_samples_are_refused() -> None:
    attention, shares = scenes(4)
    with pytest.raises(ValueError, match="sample"):
        track(attention, Result(shares.values[:3], "share"))
    with pytest.raises(ValueError, match="at least two"):
        track(Result(attention.values[:1]), Result(shares.values[:1]))
    with pytest.raises(ValueError, match="3 groups"):
        track(attention, shares, groups=[1, 2, 3])


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=30))
@settings(max_examples=25, deadline=None)
def test_an_interval_holds_the_mean_when_groups_are_alike(values: list[float]) -> None:
    column = np.array(values)[:, None]
    low, high = clustered_interval(column, [0] * len(values))
    assert np.isnan(low).all() and np.isnan(high).all()
    low, high = clustered_interval(np.concatenate([column, column]), [0] * len(values) + [1] * len(values))
    np.testing.assert_allclose([low, high], [column.mean(0)] * 2, atol=1e-9)


def test_an_interval_counts_groups_and_not_rows() -> None:
    groups = np.repeat(np.arange(8), 20)
    values = np.random.default_rng(0).normal(size=8)[groups][:, None]
    clustered = np.ptp(clustered_interval(values, groups))
    single = np.ptp(clustered_interval(values, np.arange(160)))
    assert clustered > 3 * single


# -- figures ----------------------------------------------------------------------------------------------------------


def test_overlays_show_the_map_over_the_picture_unflipped() -> None:
    attention, shares = scenes(2)
    picture = {"agentview": np.zeros((56, 56, 3), np.uint8), "wrist": np.zeros((56, 56, 3), np.uint8)}
    one = attention.sel(sample=0, layer=3, **{"from": "action_read"})
    outlines = {"agentview": shares.sel(sample=0, object="bowl", camera="agentview").values.values}
    figure = overlay(one, picture, outlines)
    first_map = figure.axes[1].images[1]  # images: the picture, then the map
    np.testing.assert_array_equal(first_map.get_array(), one.sel(head=0, camera="agentview").values)
    assert first_map.get_extent() == figure.axes[1].images[0].get_extent() == [0, 56, 56, 0]
    frame = figure.axes[1].patches[0]
    row, col = np.argwhere(outlines["agentview"])[0]
    assert frame.get_xy() == (col * 7, row * 7)
    with pytest.raises(ValueError, match="camera, row, col"):
        overlay(attention, picture)


def test_frames_make_a_table() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    figure = frames([[picture, picture], [picture]], ["a", "b"], [["1", "2"], ["3"]])
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 0]
