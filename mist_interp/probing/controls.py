"""What could be foreseen without looking into the network?

A probe has found something *in the model* only as far as it beats what the same estimator reads from the step
counter, from the action that the policy is about to send, from proprioception, and from the task's number; and the
same probe fitted on shuffled labels shows what the procedure gives for nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mist_interp.data.store import RolloutStore

SHUFFLED = "shuffled labels"
CONTROLS = ("step counter", "action only", "proprio only", "task id", SHUFFLED)

# One fit on shuffled labels is one random direction, which may order well or badly by luck; several show the luck.
SHUFFLES = 5
SHUFFLED_FITS = tuple(f"{SHUFFLED} {number}" for number in range(1, SHUFFLES + 1))

STEP_BIN = 16
MAX_STEPS = 520
MAX_TASKS = 100


def control_features(store: RolloutStore) -> dict[str, Float[np.ndarray, "queries width"]]:
    """Inputs of every control but the shuffled labels, in the order of `store.queries()`.

    The clock is given as bins of 16 control steps besides its value, so that a linear estimator can learn any course
    over time; the task as one column each.

    Raises:
        ValueError: a query has no action chunk.
    """
    queries = store.queries(["episode", "query", "step", "chunk", "robot_state"])
    task_of = store.episodes().set_index("episode")["task"]
    step = queries["step"].to_numpy()
    action = np.stack([np.concatenate(list(chunk)) for chunk in queries["chunk"]]).astype(np.float64)
    if np.isnan(action).any():
        raise ValueError("some queries have no action chunk, so the action control cannot be computed")
    bins = np.minimum(step // STEP_BIN, MAX_STEPS // STEP_BIN)
    return {
        "step counter": np.hstack([step[:, None] / MAX_STEPS, np.eye(MAX_STEPS // STEP_BIN + 1)[bins]]),
        "action only": action,
        "proprio only": np.stack(list(queries["robot_state"])).astype(np.float64),
        "task id": np.eye(MAX_TASKS)[task_of.loc[queries["episode"]].to_numpy() % MAX_TASKS],
    }
