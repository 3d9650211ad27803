"""Is an episode of LiberoEnv LIBERO's own, to the last bit, and does a fork replay?"""

import numpy as np
import pytest

from mist_interp.libero.env import LiberoEnv
from mist_interp.libero.expert import Expert
from mist_interp.libero.packages import silenced
from mist_interp.libero.suite import LiberoSuite

pytestmark = pytest.mark.sim

SETTLE = [0, 0, 0, 0, 0, 0, -1]


def random_action(rng):
    return np.append(rng.uniform(-1, 1, 6) * (1, 1, 1, 0.3, 0.3, 0.3) - (0, 0, 0.2, 0, 0, 0), rng.choice([-1, 1]))


@pytest.fixture(scope="module")
def task():
    return LiberoSuite("libero_spatial").tasks[4]  # a drawer: fixtures, joints and samplers that pile up


@pytest.fixture(scope="module")
def env(task):
    env = LiberoEnv(task, profile="faithful")
    yield env
    env.close()


def test_two_episodes_equal_liberos_own(task, env):
    from libero.libero.envs import OffScreenRenderEnv

    with silenced():
        reference = OffScreenRenderEnv(bddl_file_name=str(task.bddl), camera_heights=256, camera_widths=256)

    def current():
        reference.sim._render_context_offscreen.gl_ctx.make_current()

    reference.seed(0)
    resets = 0
    for init_state in (0, 2):
        while resets <= init_state:
            with silenced():
                reference.reset()
            resets += 1
        current()
        seen = reference.set_init_state(task.init_states[init_state])
        for _ in range(10):
            current()
            seen = reference.step(SETTLE)[0]
        env.reset(init_state)
        rng = np.random.default_rng(init_state)
        for step in range(16):
            ours = env.observe() if step % 8 == 0 else env.proprioception()
            assert {"robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "plate_1_pos"} <= set(ours)
            for name, value in ours.items():
                np.testing.assert_array_equal(value, seen[name], err_msg=f"{name}, episode {init_state}, step {step}")
            action = random_action(rng)
            current()
            seen, _, done, _ = reference.step(action)
            assert env.step(action).success == bool(done)
            np.testing.assert_array_equal(env.data.qpos, reference.sim.data.qpos)
            np.testing.assert_array_equal(env.data.qvel, reference.sim.data.qvel)
    reference.close()


def test_a_fork_replays_bit_for_bit(env):
    env.reset(1)
    rng = np.random.default_rng(0)
    actions = [random_action(rng) for _ in range(24)]
    for action in actions[:8]:
        env.step(action)
    fork, start = env.save(), env.state_hash()
    futures = []
    for _ in range(2):
        env.restore(fork)
        assert env.state_hash() == start
        futures.append([(env.step(action), env.state_hash())[1] for action in actions[8:]])
    assert futures[0] == futures[1]
    assert len(set(futures[0])) == len(actions) - 8
    env.restore(fork)
    env.step(-actions[8])
    assert env.state_hash() != futures[0][0]


def test_drawn_start_states_are_fixed_by_their_number(task, env):
    env.reset(2)
    env.reset(1003)
    drawn = env.state_hash()
    env.reset(1004)
    assert env.state_hash() != drawn
    env.reset(1003)
    assert env.state_hash() == drawn and env.init_state == 1003
    other = LiberoEnv(task, seed=1)
    other.reset(1003)
    assert other.state_hash() != drawn
    other.close()


def test_drawn_start_states_stand_where_the_published_ones_stand_and_are_none_of_them(task, env):
    def places(joints):  # x and y of the objects; (..., state) -> (..., object, 2)
        return np.stack([joints[..., at : at + 2] for at in range(9, 9 + 7 * len(task_objects), 7)], axis=-2)

    task_objects = list(env._objects)
    published = places(task.init_states[:, 1 : 1 + env.model.nq])
    drawn = []
    for number in range(1000, 1020):
        env.reset(number)
        drawn.append(places(env.data.qpos))
    drawn = np.array(drawn)
    assert (drawn > published.min(axis=0) - 0.01).all() and (drawn < published.max(axis=0) + 0.01).all()
    spread = drawn.std(axis=0) / published.std(axis=0)
    assert (spread > 0.5).all() and (spread < 2).all()
    nearest = np.abs(drawn[:, None] - published[None]).max(axis=(2, 3)).min(axis=1)
    assert nearest.min() > 0.001  # m


@pytest.mark.parametrize(("index", "number"), [(0, 1034), (2, 1024), (8, 1031)])
def test_a_draw_that_throws_an_object_is_drawn_again(index, number):
    env = LiberoEnv(LiberoSuite("libero_spatial").tasks[index])
    next(env._placement.draws(number))
    assert thrown(env), "the first draw puts one object into another"
    env.reset(number)
    once, places = env.state_hash(), objects(env)
    published = []
    for init_state in (0, 1, 2):
        env.reset(init_state)
        published.append(objects(env))
    assert np.abs(places - np.mean(published, axis=0)).max() < 0.15
    env.reset(number)
    assert env.state_hash() == once
    env.close()


def objects(env):
    return env.data.xpos[list(env._objects.values())]


def thrown(env):
    before = objects(env).copy()
    env._settle(0)
    return np.abs(objects(env) - before)[:, :2].max() > 0.07


def test_bad_input_is_refused(env):
    for nowhere in (-1, 50, 999):
        with pytest.raises(ValueError, match="has 0 to 49, and from 1000 on drawn ones"):
            env.reset(nowhere)
    env.reset(0)
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.zeros(6))
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(np.full(7, np.nan))


@pytest.mark.parametrize("index", [0, 5, 9])
def test_the_expert_puts_the_bowl_on_the_plate(index):
    task = LiberoSuite("libero_spatial").tasks[index]
    env = LiberoEnv(task)
    env.reset(7)
    expert = Expert(env)
    assert any(env.step(expert.act()).success for _ in range(task.max_steps))
    env.close()


@pytest.mark.parametrize("name", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_task_of_a_suite_has_its_states(name):
    suite = LiberoSuite(name)
    assert len(suite) == 10
    for task in suite.tasks:
        assert task.n_init_states == 50 and task.bddl.exists() and task.instruction


SCENES = [("libero_spatial", index) for index in range(10)]
SCENES += [(suite, index) for suite in ("libero_object", "libero_goal", "libero_10") for index in (0, 9)]


@pytest.mark.parametrize(("suite", "index"), SCENES)
def test_a_task_loads_and_steps(suite, index):
    env = LiberoEnv(LiberoSuite(suite).tasks[index])
    env.reset(1000)
    assert env.init_state == 1000
    env.reset(49)
    before = env.proprioception()["robot0_eef_pos"]
    for _ in range(4):
        assert not env.step(np.array([0.5, 0, 0, 0, 0, 0, -1])).success
    assert env.proprioception()["robot0_eef_pos"][0] - before[0] > 0.01
    assert env.observe()["agentview_image"].std() > 10
    env.close()
