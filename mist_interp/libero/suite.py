"""Which tasks does a LIBERO suite hold, and how long may a policy try?

Step limits are those of the OpenVLA-OFT evaluation protocol (10 settling steps excluded).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mist_interp.core.errors import UnknownName
from mist_interp.libero.packages import load_simulator, silenced

MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
SETTLING_STEPS = 10
# Start states of this number and above are drawn, see `Task.check_init_state`: no object may slide by so much (m), and
# so often it is tried.
DRAWN_FROM = 1000
THROWN = 0.07
DRAWS = 50


@dataclass(frozen=True)
class Task:
    """One LIBERO task: a scene, an instruction, and its initial simulator states."""

    suite: str
    index: int
    name: str
    instruction: str
    bddl: Path

    @property
    def max_steps(self) -> int:
        """Control steps that a policy has, settling excluded."""
        return MAX_STEPS[self.suite]

    @cached_property
    def to_move(self) -> tuple[str, ...]:
        """Names of the objects that the goal wants somewhere; empty where it only wants something opened or turned."""
        load_simulator()
        from libero.libero.envs.bddl_utils import robosuite_parse_problem

        goal = robosuite_parse_problem(str(self.bddl))["goal_state"]
        return tuple(dict.fromkeys(condition[1] for condition in goal if len(condition) == 3))

    @cached_property
    def init_states(self) -> Float[np.ndarray, "init state"]:
        """Flattened simulator states (time, qpos, qvel), one row per initial state (50 in most suites)."""
        return np.asarray(_benchmark(self.suite).get_task_init_states(self.index))

    @property
    def n_init_states(self) -> int:
        """Number of initial states."""
        return len(self.init_states)

    def check_init_state(self, init_state: int) -> None:
        """Refuse a start state that there is not.

        LIBERO publishes 50 of each task, numbered from 0. Those from 1000 on are drawn anew as these were, with the
        number as the seed, so a study that has looked at all 50 has fresh ones. A draw that puts one object into
        another, so that one of them slides by 7 cm or more while the scene settles, is drawn again; in those of
        libero_spatial they slide by 6 at most. Tasks of the same layout draw alike from the same number. `mini` and
        `mini-base` were trained on numbers from 10,000 to 39,999.

        Raises:
            ValueError: the number is neither; says which there are.
        """
        if not (0 <= init_state < self.n_init_states or init_state >= DRAWN_FROM):
            raise ValueError(
                f"start state {init_state}: task {self.index} of {self.suite} has 0 to {self.n_init_states - 1}, and "
                f"from {DRAWN_FROM} on drawn ones"
            )


@dataclass(frozen=True)
class LiberoSuite:
    """A named LIBERO suite.

    Args:
        name: one of ``libero_spatial``, ``libero_object``, ``libero_goal``, ``libero_10``, ``libero_90``.

    Raises:
        UnknownName: no such suite; the nearest name is suggested.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in MAX_STEPS:
            raise UnknownName("suite", self.name, MAX_STEPS)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks in LIBERO's own order."""
        benchmark = _benchmark(self.name)
        return tuple(
            Task(
                suite=self.name,
                index=index,
                name=entry.name,
                instruction=entry.language,
                bddl=Path(_bddl_root()) / entry.problem_folder / entry.bddl_file,
            )
            for index, entry in enumerate(benchmark.get_task(i) for i in range(benchmark.get_num_tasks()))
        )

    @property
    def max_steps(self) -> int:
        """Control steps that a policy has, settling excluded."""
        return MAX_STEPS[self.name]

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __len__(self) -> int:
        return len(self.tasks)


def _benchmark(name: str) -> Any:
    load_simulator()
    from libero.libero import benchmark

    with silenced():
        return benchmark.get_benchmark(name)()


def _bddl_root() -> str:
    from libero.libero import get_libero_path

    return get_libero_path("bddl_files")
