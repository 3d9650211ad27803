"""Is a picture the same whether or not shapes outside of it are left out, and whoever else draws in this process?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mist_interp.libero import LiberoEnv, LiberoSuite
from mist_interp.libero import render as rendering
from mist_interp.libero.env import CAMERAS

pytestmark = pytest.mark.sim


def wandering_scene(env: LiberoEnv, seed: int) -> np.ndarray:
    """Joint positions with the arm somewhere in its range and the objects moved about."""
    rng = np.random.default_rng(seed)
    qpos = env.data.qpos.copy()
    qpos[:7] += rng.uniform(-0.5, 0.5, 7)
    for name in ("akita_black_bowl_1", "plate_1"):
        place = env.model.jnt_qposadr[env.model.body_jntadr[env.body_of(name)]]
        qpos[place : place + 3] += rng.uniform(-0.15, 0.15, 3)
    return qpos


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = LiberoEnv(LiberoSuite("libero_spatial").tasks[4])
    env.reset(1)
    yield env
    env.close()


@pytest.mark.parametrize("profile", ["faithful", "fast"])
def test_culling_changes_no_pixel(env: LiberoEnv, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = rendering.Renderer(env.model, rendering.find_profile(profile))
    left_out = []
    real = rendering.invisible_geoms

    def counted(*arguments: Any) -> np.ndarray:
        found = real(*arguments)
        left_out.append(int(found.sum()))
        return found

    for seed in range(4):
        qpos = wandering_scene(env, seed)
        for camera in CAMERAS:
            monkeypatch.setattr(rendering, "invisible_geoms", counted)
            culled = renderer.draw(qpos, camera, 128, 128)
            monkeypatch.setattr(rendering, "invisible_geoms", lambda model, *rest: np.zeros(model.ngeom, dtype=bool))
            np.testing.assert_array_equal(culled, renderer.draw(qpos, camera, 128, 128))
    assert max(left_out) > 40  # the wrist camera does not see most of the robot
    renderer.close()


def test_renderers_of_both_profiles_do_not_disturb_each_other(env: LiberoEnv) -> None:
    qpos = env.data.qpos.copy()

    def draw(renderer: rendering.Renderer) -> list[np.ndarray]:
        return [renderer.draw(qpos, camera, 96, 96) for camera in CAMERAS]

    alone = {}
    for name in rendering.PROFILES:
        renderer = rendering.Renderer(env.model, rendering.find_profile(name))
        alone[name] = draw(renderer)
        renderer.close()
    together = {name: rendering.Renderer(env.model, profile) for name, profile in rendering.PROFILES.items()}
    for _ in range(2):
        for name, renderer in together.items():
            np.testing.assert_array_equal(draw(renderer), alone[name])
    together.pop("fast").close()
    np.testing.assert_array_equal(draw(together["faithful"]), alone["faithful"])
    assert not np.array_equal(alone["fast"], alone["faithful"])


def test_a_renderer_grows_with_the_pictures_that_are_asked_for(env: LiberoEnv) -> None:
    small = env.frame("agentview", 48)
    assert env.frame("agentview", 320).shape == (320, 320, 3)
    np.testing.assert_array_equal(env.frame("agentview", 48), small)
