"""Of which features are the activations of `mini` made, and does the policy act on them?

Two dictionaries of 384 features, 8 active per token: one for the 56 tokens that the action is read from, after block
2, one for the 128 picture patches, after block 1. Trained on 30 episodes of libero_spatial (432 queries), judged on 10
from other start states (107 queries). Units are standard deviations of the action over the 36 queries asked.

                                                   tokens of the action     patches
    variance explained, held out                   98.5 %                   94.9 %
      by 8 principal components                    90.1 %                   79.0 %
    features that never fire on held-out tokens    198 of 384               59 of 384
    change of the action, site replaced by its
      reconstruction                               0.10 sd, 92 % recovered  0.08 sd, 83 % recovered
      8 principal components                       0.34 sd, 72 %            0.17 sd, 61 %
      mean                                         1.23 sd                  0.43 sd
    of the 12 features that carry most, taken out
      change the action more than each of 3
      random directions of the same lengths        11, median 3.4 times     10, median 2.3 times

Features of the action tokens are phases of the movement, and the policy acts on them. Feature 268 fires while the open
hand is on its way to the bowl: taken out, dy falls by 0.61 sd, in all of the 11 held-out queries at which it fires;
five random directions of the same lengths change dy there by -0.04 to +0.07. Feature 11 fires when the bowl is lifted:
taken out, dx falls by 0.42 sd in all of 7 queries (random: -0.01 to +0.03). Feature 155 fires while the hand is low: dz
falls by 0.33 sd in all of 14 (random: -0.07 to 0). For each feature the dimension was chosen on training queries; 11 of
12 move theirs by more than all random directions.

Features of patches matter less, because the patches do: their mean in place of them changes the action by 0.43 sd. The
feature that carries most of all follows the wooden cabinet and not the bowl.

What this does not show: half of the features of the action tokens never fire on held-out tokens, so a smaller
dictionary would do; features are named after their strongest correlation over queries of few episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from sae_rollouts import Query, collect, facts_of, patch_cover, queries_of, seen
from scenes import begin

from mist_interp import HookedVLA, PolicyInputs
from mist_interp.analysis.figures import STYLE
from mist_interp.analysis.sae.autoencoder import SparseAutoencoder, site_of
from mist_interp.analysis.sae.effects import Ablation, ablation, dose_response, random_units
from mist_interp.analysis.sae.features import FeatureTable, feature_table
from mist_interp.analysis.sae.quality import SaeReport, report
from mist_interp.analysis.sae.rows import TokenRows, split_by_start_state
from mist_interp.analysis.sae.splicing import Splice, ablating, action_sd, actions, splice
from mist_interp.data import RolloutStore
from mist_interp.report.features import FeaturePage, write_feature_page

SITES = (("resid_post", 1), ("resid_post", 2))
ARM = ("right_gripper", "leftfinger", "rightfinger")
BODIES = {
    "bowl": ("akita_black_bowl_1", "akita_black_bowl_2"),
    "plate": ("plate_1",),
    "cookie box": ("cookies_1",),
    "ramekin": ("glazed_rim_porcelain_ramekin_1",),
    "cabinet": ("wooden_cabinet_1",),
    "stove": ("flat_stove_1",),
    "robot": (*(f"robot0_link{k}" for k in range(1, 8)), *(f"gripper0_{part}" for part in ARM)),
}
SEEN_FROM = 0.3  # a weaker correlation names no body


@dataclass(frozen=True)
class Settings:
    """Sparse autoencoders on the shipped policy: features, what splicing does, what the features do."""

    folder: Path = Path("runs/analysis/sae")
    """Rollouts, trainings and dictionaries; a run that was cut goes on from here."""

    out: Path = Path("results/analysis/sae")
    """Pages and figures."""

    inits: tuple[int, ...] = (30, 31, 32, 33)
    """Start states of each task of libero_spatial."""

    held_out: float = 0.25
    """Share of the start states on which everything is judged."""

    features: int = 384
    """Size of a dictionary: twice the width of the residual stream."""

    k: int = 8
    """Active features per token."""

    steps: int = 1500
    """Updates of 512 tokens."""

    every: int = 3
    """Of the held-out queries, which are used for splicing, ablating and steering: every third."""

    shown: int = 12
    """Features on each page: those that carry most on the training rows."""

    draws: int = 3
    """Random directions beside each ablated feature."""


@dataclass(frozen=True)
class Part:
    """One dictionary: its tokens, the layer of the residual stream, and how its tokens are drawn."""

    tokens: str
    layer: int
    grids: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        return f"{self.tokens}-{self.layer}"


PARTS = (
    Part("action_read", 2, {"action_read": (8, 7)}),
    Part("vision", 1, {"agentview": (8, 8), "wrist": (8, 8)}),
)


@dataclass(frozen=True)
class Halves:
    """What is fitted on, and what is judged on."""

    train: RolloutStore
    test: RolloutStore
    train_queries: list[Query]
    test_queries: list[Query]


def main(settings: Settings) -> None:
    """Collect, train, judge, splice, ablate, steer, draw."""
    vla = begin("mini", settings.folder)
    store = collect(settings.folder, settings.inits, SITES, [part.tokens for part in reversed(PARTS)], show)
    train, test = split_by_start_state(store, settings.held_out)
    halves = Halves(train, test, queries_of(train, settings.folder), queries_of(test, settings.folder))
    counts = f"{len(train)} episodes with {len(halves.train_queries)} queries to train on"
    print(f"{counts}, {len(test)} with {len(halves.test_queries)} held out")
    for part in PARTS:
        study(settings, vla, part, halves)


def study(settings: Settings, vla: HookedVLA, part: Part, halves: Halves) -> None:
    """Everything about one dictionary."""
    train = TokenRows.of_store(halves.train, ("resid_post", part.layer), part.tokens, width=vla.cfg.d_model)
    test = TokenRows.of_store(halves.test, ("resid_post", part.layer), part.tokens, width=vla.cfg.d_model)
    sae = trained(settings, part, train)
    judged = report(sae, test)
    print(f"\n{part}: {judged}")
    inputs = asked_of(vla, halves.test_queries[:: settings.every])
    spliced = splice(vla, inputs, sae)
    for arm, share in zip(spliced.recovered.axes["arm"], spliced.recovered.values.values.tolist(), strict=True):
        change = float(np.sqrt((spliced.change.sel(arm=arm).values.values ** 2).mean()))
        print(f"  {arm:12s} changes the action by {change:.3f} sd; {100 * share:.0f} % recovered")
    # Features are picked and named on the training rows, and judged on the others.
    known = feature_table(sae, train, facts=facts_of(halves.train_queries))
    picked = loudest(known, settings.shown)
    names = {feature: in_words(known, feature) for feature in picked}
    if part.tokens == "vision":
        names |= bodies_seen(sae, train, picked, halves.train_queries, vla)
    effects = ablation(vla, inputs, sae, picked, draws=settings.draws)
    ratio = effects.size.values.values / np.maximum(effects.random.values.values.max(1), 1e-12)
    print(
        f"  {int((ratio > 1).sum())} of {len(picked)} features, taken out, change the action more than each of "
        f"{settings.draws} random directions of the same lengths; median {np.median(ratio):.1f} times the largest"
    )
    dose = dose_response(vla, inputs, sae, picked, coefs=(-2.0, 2.0), draws=1)
    labels = vla.layout(inputs[0]).labels(part.tokens)
    table = feature_table(sae, test, features=picked, facts=facts_of(halves.test_queries), tokens=labels)
    size = vla.policy.config.image_size
    page = FeaturePage(
        table,
        lambda query: seen(halves.test_queries[query], size),
        part.grids,
        [str(query) for query in halves.test_queries],
        judged,
        spliced,
        dose,
        effects,
        names=names,
        notes=[
            f"{sae} of mini, trained on {sae.source_['rows']:,} tokens (repeats counted). Everything here is of "
            f"{len(halves.test)} episodes whose start states were not trained on. Features were picked by how much "
            "they carry on the training rows, and named after their strongest correlation there."
        ],
    )
    print(f"  page: {write_feature_page(settings.out / f'{part}.html', page, f'Features of mini: {part}')}")
    draw(settings.out / f"{part}.png", judged, spliced, effects, names)
    if part.tokens == "action_read":
        say_what_they_do(vla, sae, known, picked, asked_of(vla, halves.train_queries[::12]), inputs)


def asked_of(vla: HookedVLA, queries: list[Query]) -> PolicyInputs:
    """The queries as the policy gets them."""
    return vla.prepare([query.frame.obs for query in queries], [query.instruction for query in queries])


def trained(settings: Settings, part: Part, rows: TokenRows) -> SparseAutoencoder:
    """The dictionary of a part, trained if it is not there."""
    folder = settings.folder / str(part)
    if (folder / "sae.json").exists():
        return SparseAutoencoder.load(folder)
    recipe: dict[str, Any] = {"batch_size": 512, "learning_rate": 2e-3, "dead_after": 50_000}
    sae = SparseAutoencoder(settings.features, settings.k, steps=settings.steps, **recipe)
    sae.fit(rows, checkpoint=folder / "training.safetensors", on_progress=show_training)
    sae.save(folder)
    return sae


def loudest(table: FeatureTable, count: int) -> list[int]:
    """Features that carry most: frequency times mean code."""
    carried = (table.summary["frequency"] * table.summary["mean"]).sort_values(ascending=False)
    return [int(feature) for feature in carried.index[:count]]


def in_words(table: FeatureTable, feature: int) -> str:
    """The fact that a feature goes along with most on these rows."""
    row = table.correlation.sel(feature=feature)
    values = np.nan_to_num(row.values.values)
    place = int(np.abs(values).argmax())
    return f"{'low ' if values[place] < 0 else ''}{row.axes['fact'][place]} ({values[place]:+.2f})"


def bodies_seen(
    sae: SparseAutoencoder, rows: TokenRows, features: list[int], queries: list[Query], vla: HookedVLA
) -> dict[int, str]:
    """Which body a feature of patches answers to: correlation of its code with the share of the patch covered."""
    codes = np.concatenate([sae.transform(block)[:, features] for block in rows.in_order()])
    size, grid = vla.policy.config.image_size, vla.cfg.patch_grid[0]
    found: dict[int, tuple[float, str]] = {}
    for name, bodies in BODIES.items():
        cover = np.concatenate([patch_cover(query, size, grid, *bodies) for query in queries])
        for feature, column in zip(features, codes.T, strict=True):
            value = float(np.corrcoef(column, cover)[0, 1])
            found[feature] = max(found.get(feature, (SEEN_FROM, "")), (value, name))
    return {feature: f"patches of the {name} ({value:+.2f})" for feature, (value, name) in found.items() if name}


def say_what_they_do(
    vla: HookedVLA,
    sae: SparseAutoencoder,
    known: FeatureTable,
    features: list[int],
    train: PolicyInputs,
    test: PolicyInputs,
    draws: int = 5,
) -> None:
    """Signed effects of taking features out: the dimension is chosen on training queries, the effect is of the others.

    A query counts where the feature fires; the controls take the same lengths out along random directions there.
    """
    plain, sd = actions(vla, train, ()), action_sd(actions(vla, test, ()), vla)
    plain_test = actions(vla, test, ())
    outside = 0
    for feature in features:
        hook = (site_of(sae), ablating(sae, feature), sae.tokens_)
        before = (actions(vla, train, [hook]) - plain) / sd
        dim = int(before.mean((0, 1)).abs().argmax())
        change = ((actions(vla, test, [hook]) - plain_test) / sd)[:, :, dim].mean(1)
        fires = change != 0
        if not fires.any():
            print(f"  {feature:4d} {in_words(known, feature):28s} does not fire on these queries")
            continue
        units = random_units(draws, sae.width_, seed=feature)
        rows = [((actions(vla, test, [_along(sae, feature, unit)]) - plain_test) / sd)[:, :, dim] for unit in units]
        others = [float(row.mean(1)[fires].mean()) for row in rows]
        mean = float(change[fires].mean())
        beyond = abs(mean) > max(abs(other) for other in others)
        outside += beyond
        same = float((change[fires].sign() == np.sign(mean)).float().mean())
        print(
            f"  {feature:4d} {in_words(known, feature):28s} out: {vla.cfg.action_names[dim]:8s} {mean:+.2f} sd at "
            f"{int(fires.sum())} queries, same sign in {100 * same:.0f} %; random {min(others):+.2f} to "
            f"{max(others):+.2f}{'' if beyond else '   (no more than random)'}"
        )
    print(f"  {outside} of {len(features)} change their dimension by more than each of {draws} random directions")


def _along(sae: SparseAutoencoder, feature: int, unit: torch.Tensor) -> Any:
    def shift(x: torch.Tensor, site: Any) -> torch.Tensor:
        return x - sae.encode(x)[..., feature, None] * unit

    return site_of(sae), shift, sae.tokens_


def draw(path: Path, judged: SaeReport, spliced: Splice, effects: Ablation, names: dict[int, str]) -> None:
    """What splicing does per dimension, and what each feature does beside its control."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4))
        left, right = figure.subplots(1, 2, width_ratios=(3, 4))
        arms, dims = ["sae", "pca", "mean"], spliced.change.axes["dim"]
        for number, arm in enumerate(arms):
            values = spliced.change.sel(arm=arm).values.values
            left.bar(np.arange(len(dims)) + 0.27 * (number - 1), values, 0.25, label=arm)
        left.set_xticks(range(len(dims)), dims, rotation=90)
        left.set_ylabel("change of the action (sd)")
        left.set_title(f"The site replaced ({100 * judged.explained_variance:.0f} % of the variance kept)")
        left.legend(frameon=False)
        numbers = effects.size.axes["feature"]
        right.barh(range(len(numbers)), effects.size.values.values, color="#1f6f9f", label="feature taken out")
        for place, values in enumerate(effects.random.values.values):
            label = "random directions, same lengths" if place == 0 else None
            right.plot(values, [place] * len(values), "o", color="#c2862a", markersize=3.5, label=label)
        right.set_yticks(range(len(numbers)), [f"{n}  {names[n]}" for n in numbers])
        right.invert_yaxis()
        right.set_xlabel("change of the action (sd)")
        right.set_title("Features taken out")
        right.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.16), ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def show(progress: Any) -> None:
    """One line now and then while episodes are collected."""
    if progress.last is not None and progress.done % 10 == 0:
        print(f"{progress.done} of {progress.total} episodes", flush=True)


def show_training(progress: Any) -> None:
    """One line now and then while a dictionary is trained."""
    if progress.step % 250 == 0:
        said = f"explained {progress.explained_variance:.3f}, {progress.dead} dead"
        print(f"  update {progress.step} of {progress.steps}: {said}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
