"""Which simulator does the next episode run in?

Building a LIBERO environment costs seconds, resetting it a fraction of one; so one environment is kept and
reused for all init states and arms of a task, and replaced when the plan moves on or when an episode crashed
inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mist_interp.data.records import Unit

MakeEnv = Callable[[Any, Unit, dict[str, Any]], Any]


def make_libero_env(task: Any, unit: Unit, render: dict[str, Any]) -> Any:
    """The LIBERO environment of a unit.

    Args:
        task: the suite's task.
        unit: what is to be run in it.
        render: `profile` and `resolution`.
    """
    from mist_interp.libero.env import LiberoEnv

    return LiberoEnv(task, profile=render["profile"], resolution=render["resolution"], seed=unit.simulator_seed)


class EnvironmentPool:
    """Keeps the environment of the current task.

    Args:
        tasks: the suite's tasks, by index.
        render: settings of rendering, passed on.
        make: builds an environment.
    """

    def __init__(self, tasks: Any, render: dict[str, Any], make: MakeEnv = make_libero_env) -> None:
        self._tasks, self._render, self._make = tasks, render, make
        self._key: tuple[Any, ...] | None = None
        self._env: Any = None

    def get(self, unit: Unit) -> Any:
        """The environment of the unit's task and simulator seed, not yet reset."""
        key = (unit.suite, unit.task, unit.simulator_seed)
        if key != self._key:
            self.close()
            self._env = self._make(self._tasks[unit.task], unit, self._render)
            self._key = key
        return self._env

    def close(self) -> None:
        """Give the environment back; the next `get` builds a new one."""
        env, self._env, self._key = self._env, None, None
        if env is not None:
            env.close()
