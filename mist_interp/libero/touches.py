"""How do allowed contact points become one load per control step and pair of bodies?

Robot and held objects touch something rightly in most control steps, with a dozen points in each of 25 sub-steps, so
points are put aside as arrays (about 3 MB in an episode) and summed up when somebody asks: in the order and with the
sums of ``contact_load.Load``, hence with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Bool, Float, Int

from mist_interp.libero.contact_load import Load

_SUMMED, _NEEDED = ("points", "forces", "pairs"), ("turned", "gaps", "frames")


@dataclass(frozen=True, eq=False)
class TouchPoints:
    """Contact points of one physics sub-step.

    Attributes:
        step: control step, 0 = the first after settling.
        substep: index of the sub-step within it.
        pairs: code of the pair of body groups of each point, the robot or the held object first.
        turned: whether the frame of a point is that of the obstacle seen from the robot: its normal points away.
        gaps: distance of the bodies (m).
        forces: normal force (N).
        points: where they are (m, world).
        frames: contact frames, row by row; the first is the normal.
    """

    step: int
    substep: int
    pairs: Int[np.ndarray, " n"]
    turned: Bool[np.ndarray, " n"]
    gaps: Float[np.ndarray, " n"]
    forces: Float[np.ndarray, " n"]
    points: Float[np.ndarray, "n 3"]
    frames: Float[np.ndarray, "n 9"]

    @classmethod
    def of(
        cls,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        time: tuple[int, int],
        contacts: Int[np.ndarray, " n"],
        pairs: Int[np.ndarray, " n"],
        codes: Int[np.ndarray, " n"],
    ) -> TouchPoints:
        """Copy some of the contacts of a sub-step.

        Args:
            model: the raw MuJoCo model.
            data: simulation data after the sub-step.
            time: control step, and sub-step within it.
            contacts: which.
            pairs: code of the pair of each, the robot or the held object first.
            codes: code of the pair of each, the group of geom 1 first.
        """
        contact = data.contact
        # The frame's first row points from geom 1 to geom 2.
        return cls(
            *time,
            pairs,
            codes == pairs,
            contact.dist[contacts],
            normal_forces(model, data, contacts),
            contact.pos[contacts],
            contact.frame[contacts],
        )


def normal_forces(
    model: mujoco.MjModel, data: mujoco.MjData, contacts: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Normal forces (N) of some contacts, as ``mj_contactForce`` gives them; 0 where the solver has no constraint."""
    if model.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC:  # the first row of a contact is its normal force
        rows = data.contact.efc_address[contacts]
        return data.efc_force[rows] if rows.min(initial=0) >= 0 else _one_by_one(model, data, contacts)
    return _one_by_one(model, data, contacts)


def _one_by_one(model: mujoco.MjModel, data: mujoco.MjData, contacts: np.ndarray) -> np.ndarray:
    wrenches = np.zeros((len(contacts), 6))
    for contact, wrench in zip(contacts.tolist(), wrenches, strict=True):
        mujoco.mj_contactForce(model, data, contact, wrench)
    return wrenches[:, 0].copy()


def touch_loads(collected: Sequence[TouchPoints]) -> dict[tuple[int, int], Load]:
    """Sum up points at which the bodies touch and press.

    Args:
        collected: sub-steps, in order.

    Returns:
        (control step, code of the pair) -> its load, in order; pairs that carry no force are left out.
    """
    if not collected:
        return {}
    points, forces, pairs = (np.concatenate([getattr(e, name) for e in collected]) for name in _SUMMED)
    turned, gaps, frames = (np.concatenate([getattr(e, name) for e in collected]) for name in _NEEDED)
    lengths = [len(each.pairs) for each in collected]
    steps = np.repeat([each.step for each in collected], lengths)
    substeps = np.repeat([each.substep for each in collected], lengths)
    normals = np.where(turned, -1.0, 1.0)[:, None] * frames[:, :3]
    mine = ((forces > 0) & (gaps <= 0)).nonzero()[0]
    points, normals, forces, substeps = points[mine], normals[mine], forces[mine], substeps[mine]
    codes = int(pairs.max(initial=0)) + 1
    keys, first, which = np.unique(steps[mine] * codes + pairs[mine], return_index=True, return_inverse=True)
    count, width = len(keys), int(substeps.max(initial=0)) + 1
    peaks = np.bincount(which * width + substeps, forces, count * width).reshape(count, width).max(axis=1, initial=0)
    totals = np.bincount(which, forces, count)
    # Of each key the strongest point, the first of several: by key, then force, then from the last one to the first.
    order = np.lexsort((-np.arange(len(forces)), forces, which))
    strongest = order[np.cumsum(np.bincount(which, minlength=count)) - 1]

    def summed(values: np.ndarray) -> np.ndarray:
        """(keys, 3) sums of force times a vector; `bincount` adds one after the other, whatever the processor."""
        return np.stack([np.bincount(which, forces * column, count) for column in values.T], axis=1)

    columns = (substeps[first], peaks, totals, summed(points), summed(normals), forces[strongest], normals[strongest])
    return {
        divmod(int(key), codes): Load(int(substep), float(peak), float(total), point, normal, float(most), direction)
        for key, substep, peak, total, point, normal, most, direction in zip(keys, *columns, strict=True)
    }
