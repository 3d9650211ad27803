"""What does the policy see, and of which moment?

LIBERO samples every observable once per control step, on a clock of its own: floating-point time is added up sub-step
by sub-step and an observable is read at the first sub-step of a new sampling period. Depending on the phase left by the
reset, the "observation after step t" shows the kinematics of one sub-step up to a whole control step earlier. A policy
trained on LIBERO's data has only ever seen such observations, so the clock is reproduced to the last bit here instead
of being tidied away. Images are rendered only when somebody looks, from the sampled joint positions.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Sample:
    """The moment an observation shows.

    Attributes:
        qpos: generalised positions at the *start* of the sampled sub-step; link poses and images follow from them.
        gripper_qpos: finger joint positions in m at the *end* of that sub-step.
        site_alpha: opacity of each site; LIBERO shows a burner that is on, and the goal's region, as sites.
    """

    qpos: Float[np.ndarray, " nq"]
    gripper_qpos: Float[np.ndarray, "2"]
    site_alpha: Float[np.ndarray, " nsite"]


@dataclass(frozen=True)
class SamplingClock:
    """State of robosuite's ``Observable`` sampling (no delay): time since the last sample, and whether one was taken.

    Attributes:
        period: sampling period in s (one control step).
        timestep: physics sub-step in s.
    """

    period: float
    timestep: float
    elapsed: float = 0.0
    sampled: bool = False

    def forced(self) -> "SamplingClock":
        """The clock after a sub-step in which a sample is taken in any case, as at a reset."""
        elapsed, sampled, _ = self._tick(self.elapsed, self.sampled, force=True)
        return replace(self, elapsed=elapsed, sampled=sampled)

    def run(self, substeps: int) -> "tuple[SamplingClock, tuple[int, ...]]":
        """Advance by a number of sub-steps; returns the new clock and the sub-steps in which samples are taken."""
        elapsed, sampled, taken = self.elapsed, self.sampled, []
        for substep in range(substeps):
            elapsed, sampled, take = self._tick(elapsed, sampled)
            if take:
                taken.append(substep)
        return replace(self, elapsed=elapsed, sampled=sampled), tuple(taken)

    def _tick(self, elapsed: float, sampled: bool, force: bool = False) -> tuple[float, bool, bool]:
        elapsed += self.timestep
        take = (not sampled and self.period >= elapsed) or force
        sampled = sampled or take
        if elapsed >= self.period:
            take = take or not sampled
            elapsed, sampled = elapsed % self.period, False
        return elapsed, sampled, take
