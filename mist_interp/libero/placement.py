"""Where do the fixtures stand in episode number i?

LIBERO's initial states hold joint positions, but cabinets, stoves and racks have no joints: every ``env.reset()``
draws their place anew from numpy's global generator, which the protocol seeds once per task (``env.seed(0)``).
Episode i therefore shows the i-th draw. This file replays those draws without reloading the model, and without
touching the caller's generator. LIBERO also appends its drawer and stove samplers once more at every reload, so the
number of draws grows with i; that is reproduced too.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np

from mist_interp.libero.packages import silenced


class FixturePlacement:
    """Replays LIBERO's successive resets.

    Args:
        libero: LIBERO's ``ControlEnv``, just built.
        seed: what the protocol seeds the placement with.
    """

    def __init__(self, libero: Any, seed: int) -> None:
        self._seed = seed
        self._libero = libero
        self._env = libero.env
        self._samplers = list(self._env.object_property_initializers)  # of the load by the constructor
        # Some draws are rejected by where the fixtures stand, so each draw starts from the model as it is loaded.
        pristine = mujoco.MjModel.from_xml_string(self._env.model.get_xml())
        self._pristine = pristine.body_pos.copy(), pristine.body_quat.copy()
        self._generators = [_seeded(seed)]

    def apply(self, episode: int) -> None:
        """Leave the environment as the reset before this episode (0 first) leaves it, solver warm start included."""
        for earlier in range(len(self._generators) - 1, episode):
            self._reset(earlier)
        self._reset(episode)

    def draws(self, number: int) -> Iterator[None]:
        """New scenes, objects included, one after the other, as LIBERO's initial states were drawn; never ends."""
        state = _seeded([number, self._seed] if self._seed else number)
        while True:
            state = self._draw(state, loads=1)
            yield

    def _reset(self, episode: int) -> None:
        after = self._draw(self._generators[episode], loads=episode + 2)
        if len(self._generators) == episode + 1:
            self._generators.append(after)

    def _draw(self, state: Any, loads: int) -> Any:
        """One reset from a state of numpy's generator; the state that it leaves."""
        with _own_generator(), silenced():
            np.random.set_state(state)  # noqa: NPY002 - LIBERO draws from the global generator
            self._reset_without_reloading(loads)
            return np.random.get_state()  # noqa: NPY002

    def _reset_without_reloading(self, loads: int) -> None:
        """What a hard reset does after it has compiled the model for the ``loads``-th time."""
        from robosuite.utils.errors import RandomizationError

        model = self._env.sim.model._model
        model.body_pos[:], model.body_quat[:] = self._pristine
        self._env.object_property_initializers[:] = self._samplers * loads
        while True:
            self._env.sim.reset()
            self._env.sim.forward()
            try:
                self._env._reset_internal()
            except RandomizationError:
                continue
            self._env.sim.forward()
            break
        self._env.visualize(vis_settings=dict.fromkeys(self._env._visualizations, False))
        gripper = self._env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)


def _seeded(seed: int | list[int]) -> Any:
    """What `np.random.seed` would make of numpy's global generator."""
    return np.random.RandomState(seed).get_state()


@contextlib.contextmanager
def _own_generator() -> Iterator[None]:
    """Leave numpy's global generator as the caller had it."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
