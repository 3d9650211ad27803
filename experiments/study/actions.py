"""Where in the network do the actions stand, and which dimensions?

A ridge regression from the hidden states of one place (layer and token group) to each action dimension, averaged over
the chunk; every task is predicted by a regression that saw the nine others. The correlation of prediction and action is
given beside what proprioception, the clock and the task alone allow. Being readable is not being used: the heads read
the last layer's action tokens only.

    python experiments/study/actions.py --rollouts runs/study/mini
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
import xarray as xr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mist_interp.analysis.result import Result
from mist_interp.core.actions import ACTION_NAMES
from mist_interp.data import RolloutStore
from mist_interp.probing.controls import control_features

ALPHAS = np.logspace(-1, 5, 7)
SITES = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class Settings:
    """Correlate hidden states with actions."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    out: Path = Path("results/study")
    """Folder for the numbers and the figure."""


def main(settings: Settings) -> None:
    """Predict the actions from every place, and show how well."""
    store = RolloutStore.open(settings.rollouts)
    queries = store.queries(["episode", "chunk"])
    tasks = store.episodes().set_index("episode")["task"].loc[queries["episode"]].to_numpy()
    actions = np.stack([np.mean(list(chunk), axis=0) for chunk in queries["chunk"]])
    places, rows = [], []
    for group in store.manifest.groups:
        for site in group.sites:
            if not site.endswith(SITES):
                continue
            x, _ = store.load(site, group.tokens, group.pool)
            places.append((f"{'embedding' if site.endswith('pre') else 'block ' + site.split('.')[1]}", group.tokens))
            rows.append(correlations(x, actions, tasks))
    layers, tokens = (list(dict.fromkeys(names)) for names in zip(*places, strict=True))
    values = np.full((len(tokens), len(layers), len(ACTION_NAMES)), np.nan)
    for (layer, token), row in zip(places, rows, strict=True):
        values[tokens.index(token), layers.index(layer)] = row
    result = Result(
        xr.DataArray(values, {"tokens": tokens, "layer": layers, "dim": list(ACTION_NAMES)}),
        unit="r",
        what="Correlation of a ridge prediction with the action, tasks left out in turn",
        source={"rollouts": dict(store.manifest.settings), "episodes": len(store), "queries": len(queries)},
    )
    result.save(settings.out / "actions")
    result.plot(x="dim", y="layer", columns=2).savefig(settings.out / "actions.png", dpi=150)
    print(f"{len(queries)} queries of {len(store)} episodes; r with the action, tasks left out in turn\n")
    print(result.sel(tokens="action_read").values.to_pandas().round(2).to_string())
    print("\nwithout looking into the network")
    for name, x in control_features(store).items():
        if name != "action only":  # the action itself
            print(f"{name:14s}", *(f"{value:6.2f}" for value in correlations(x, actions, tasks)))


def correlations(x: np.ndarray, actions: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """(7,) mean over the tasks of the correlation within the task; what a task does on average does not count."""
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
    guess = cross_val_predict(model, np.asarray(x, dtype=np.float64), actions, groups=tasks, cv=LeaveOneGroupOut())
    by_task = [
        [_correlation(guess[tasks == task, d], actions[tasks == task, d]) for d in range(len(ACTION_NAMES))]
        for task in np.unique(tasks)
    ]
    return np.mean(by_task, axis=0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    constant = min(a.std(), b.std()) < 1e-9  # rows that are all equal are guessed by a constant
    return 0.0 if constant else float(np.corrcoef(a, b)[0, 1])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
