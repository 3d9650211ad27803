"""What do two policies hold while they do the same task, and is it the same?

Own rollouts: per layer of each policy the spread of its hidden states at the action tokens, of how many directions it
is made (participation ratio), and which share of it is the task, the moment and the coming outcome. Same scenes: how
alike the layers of the two are (debiased CKA), with a random network of the same sizes as control.

    python experiments/study/policies.py --rollouts runs/study/mini runs/study/mini-base
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from mist_interp import HookedVLA
from mist_interp.analysis.figures import STYLE
from mist_interp.analysis.similarity import pooled, similarity
from mist_interp.data import RolloutStore
from mist_interp.models.random import random_policy
from mist_interp.probing import Failure

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from scenes import scenes

TOKENS = "action_read"
MOMENTS = 8


@dataclass(frozen=True)
class Settings:
    """Compare the hidden states of two policies."""

    rollouts: tuple[Path, Path] = (Path("runs/study/mini"), Path("runs/study/mini-base"))
    """Recorded rollouts of the two."""

    policies: tuple[str, str] = ("mini", "mini-base")
    """Their names or folders."""

    out: Path = Path("results/study")
    """Folder for tables and figures."""


def main(settings: Settings) -> None:
    """A table and a figure of each kind."""
    torch.set_num_threads(1)
    settings.out.mkdir(parents=True, exist_ok=True)
    stores = {name: RolloutStore.open(path) for name, path in zip(settings.policies, settings.rollouts, strict=True)}
    table = pd.concat({name: own_spread(store) for name, store in stores.items()}, names=["policy", "layer"])
    table.to_csv(settings.out / "policies.csv")
    print(f"own rollouts, {TOKENS}\n{table.round(3).to_string()}\n")
    clouds(stores).savefig(settings.out / "policies_clouds.png", dpi=150)
    one, other = settings.policies
    states = same_scenes(HookedVLA.from_pretrained(one))
    random = HookedVLA(random_policy(0).requires_grad_(False))
    for name, vla in ((other, HookedVLA.from_pretrained(other)), ("a random network", random)):
        alike = similarity(states, same_scenes(vla))
        figure = alike.plot(title=f"{one} (down) against {name}: debiased CKA")
        figure.savefig(settings.out / f"policies_cka_{name.replace(' ', '_')}.png", dpi=130)
        print(f"{one} (rows) against {name}, same scenes\n{alike.values.to_pandas().round(2).to_string()}\n")


def own_spread(store: RolloutStore) -> pd.DataFrame:
    """A row per layer: spread, directions, and shares of the spread that go with task, moment and outcome."""
    queries = store.queries(["episode", "step"])
    episodes = store.episodes().set_index("episode").loc[queries["episode"]]
    task = episodes["task"].to_numpy()
    moment = (MOMENTS * queries["step"].to_numpy() / episodes["steps"].to_numpy()).astype(int)
    fails = Failure(cut=True).labels(store).values[:, 0]
    rows = {}
    for site in store.group(TOKENS).sites:
        if not site.endswith("resid_post"):
            continue
        x = store.load(site, TOKENS)[0].astype(np.float64)
        inside = task * MOMENTS + moment
        variances = np.linalg.eigvalsh(np.cov(x.T))
        rows[site.split(".")[1]] = {
            "norm": np.linalg.norm(x, axis=1).mean(),
            "directions": variances.sum() ** 2 / (variances**2).sum(),
            "task": explained(x, task),
            "moment": explained(x, moment),
            "outcome, within task and moment": explained(residual(x, inside), fails, known=~np.isnan(fails)),
        }
    return pd.DataFrame(rows).T


def residual(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Rows minus the mean of their group."""
    out = x.copy()
    for each in np.unique(group):
        out[group == each] -= x[group == each].mean(0)
    return out


def explained(x: np.ndarray, group: np.ndarray, known: np.ndarray | None = None) -> float:
    """Share of the total variance that lies between groups; NaN where there is one group only."""
    if known is not None:
        x, group = x[known], group[known]
    if len(np.unique(group)) < 2:
        return float("nan")
    return 1 - float((residual(x, group) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def clouds(stores: Mapping[str, RolloutStore]) -> Figure:
    """The two directions of largest variance of the last layer of each policy: by task, and by outcome."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 7.4))
        axes = figure.subplots(len(stores), 2)
        for row, (name, store) in enumerate(stores.items()):
            queries = store.queries(["episode", "step"])
            episodes = store.episodes().set_index("episode").loc[queries["episode"]]
            last = [site for site in store.group(TOKENS).sites if site.endswith("resid_post")][-1]
            plane = PCA(2, random_state=0).fit(x := store.load(last, TOKENS)[0].astype(np.float64))
            places = plane.transform(x)
            shuffled = np.random.default_rng(0).permutation(len(x))[:4000]  # so that no kind hides another
            share = plane.explained_variance_ratio_.sum()
            ends = np.where(episodes["success"], "#4c78a8", "#c2504a")
            by_moment = queries["step"].to_numpy()
            left, right = axes[row]
            colours = left.scatter(*places[shuffled].T, s=4, c=by_moment[shuffled], cmap="viridis", alpha=0.6)
            figure.colorbar(colours, ax=left, label="control step")
            right.scatter(*places[shuffled].T, s=4, c=ends[shuffled], alpha=0.5)
            right.set_title("blue: the episode succeeds, red: it fails")
            left.set_title(f"{name}, block {last.split('.')[1]}: {share:.0%} of the variance")
    return figure


def same_scenes(vla: HookedVLA) -> dict[str, np.ndarray]:
    """Hidden states of every layer at the action tokens, for the same pictures and sentences."""
    shots = scenes(per_task=3)
    inputs = vla.prepare([shot.obs for shot in shots], [shot.instruction for shot in shots])
    with torch.no_grad():
        table = pooled(vla, inputs, ["resid_post"], [TOKENS])
    return {name.removesuffix(f" {TOKENS}"): x for name, x in table.items()}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
