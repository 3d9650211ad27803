"""At which depth of the network is something readable, and how much of it is luck of the choice?

One probe definition, fitted and judged at many layers and token groups. What layers share (labels, folds, controls,
draws of episodes) is made once; the activations of a layer are read once, and are gone before the next ones are read.

The best of many layers, chosen on the queries on which it is then reported, is optimistic. `nested=True` chooses
honestly: for each held-out fold the layer is chosen inside the rest, by probes that saw neither the fold nor the
queries that they are compared on; one more fit for every two folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.data.activation_set import refuse_shared, start_states, unit_of_episode
from mist_interp.data.store import RolloutStore
from mist_interp.probing.controls import SHUFFLED_FITS
from mist_interp.probing.dataset import ProbeData, check_same_queries
from mist_interp.probing.evaluation import Plan, out_of_fold, plan_folds, selection_flags, split_name
from mist_interp.probing.folds import Fold, make_folds
from mist_interp.probing.layer_sweep import LayerSweep, Place
from mist_interp.probing.leaks import Spread, refuse_standardised
from mist_interp.probing.questions import Question, questions
from mist_interp.probing.report import (
    MIN_EPISODES,
    PROBE,
    Predictions,
    Reading,
    Weights,
    readings,
    report_of,
    weights_of,
)
from mist_interp.probing.scores import Judged, auc
from mist_interp.probing.targets import target

if TYPE_CHECKING:
    from mist_interp.probing.probe import Probe

# Enough for an interval to two digits; what is published of one layer is `cross_validate`, with five times as many.
SWEEP_DRAWS = 2_000
SWEEP_SHUFFLES = 2


@dataclass(frozen=True)
class _Shared:
    """What all layers have in common."""

    data: ProbeData
    judged: ProbeData
    plan: Plan | None
    fold_of: Int[np.ndarray, " queries"]
    asked: tuple[Question, ...]
    weights: tuple[Weights, ...]
    controls: tuple[dict[str, Reading], ...]


def fit_layers(
    probe: Probe,
    store: RolloutStore,
    layers: Sequence[int] | None = None,
    by: str | Sequence[Fold] = "task",
    test: RolloutStore | None = None,
    *,
    tokens: Sequence[str] | None = None,
    nested: bool = False,
    count: int = 5,
    shuffles: int = SWEEP_SHUFFLES,
    min_episodes: int = MIN_EPISODES,
    draws: int = SWEEP_DRAWS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LayerSweep:
    """Judge one probe definition at many layers, in one pass over the data.

    Args:
        probe: site (its layer does not matter), tokens, pooling, estimator and target; it is left as it is.
        store: the episodes.
        layers: which; default: all that are stored.
        by: how to split, see `make_folds`.
        test: fit on all of `store` and judge here instead; `by` is not used then.
        tokens: token groups; default: the probe's.
        nested: also choose the layer inside each training fold.
        count: number of folds for `by="init_state"`.
        shuffles: fits on shuffled labels per fold and layer, 0 to 5.
        min_episodes: fewer positive or negative episodes than this give no AUC; below 20 the report is flagged.
        draws: resamplings for the intervals.
        on_progress: is told how many places of how many are done.

    Raises:
        UnknownName: the store has no such layer, tokens or pooling.
        ValueError: the store cannot be split, a fold leaks, activations were standardised before, or `nested` with a
            test store or with fewer than three folds.
    """
    if not 0 <= shuffles <= len(SHUFFLED_FITS):
        raise ValueError(f"shuffles={shuffles}: 0 to {len(SHUFFLED_FITS)} are possible")
    places = list(_places(probe, store, layers, tokens))
    shared = _shared(probe, store, by, test, count, min_episodes, draws, places[0].site)
    if nested and (shared.plan is None or len(shared.plan.numbers) < 3):
        raise ValueError("a nested choice of the layer needs at least three folds of one store, and no test store")
    split = "test episodes" if test is not None else split_name(by)
    fits = (PROBE, *SHUFFLED_FITS[:shuffles])

    def report(found: list[dict[str, Reading]], site: str, of_tokens: str) -> Any:
        facts = {"masked": shared.judged.labels.masked, "min_episodes": min_episodes}
        made = report_of(found, shared.asked, site=site, tokens=of_tokens, split=split, **facts)  # type: ignore[arg-type]
        return replace(made, flags=(*made.flags, *selection_flags(test or store)))

    reports, kept, inner = [], [], []
    for number, place in enumerate(places):
        predictions, chosen_by = _at(probe, place, shared, store, test, fits, nested)
        reports.append(report(_read(predictions, shared), place.site.name, place.tokens))
        if nested:
            kept.append(predictions[PROBE])
            inner.append(chosen_by)
        on_progress(number + 1, len(places))
    if not nested:
        return LayerSweep(tuple(places), tuple(reports), target(probe.target).name)
    assert shared.plan is not None
    chosen = np.argmax(np.nan_to_num(np.stack(inner), nan=-1.0), axis=0)
    honest = _chosen(kept, chosen, shared.plan)
    names = {
        output: tuple(places[place].name for place in chosen[:, column])
        for column, output in enumerate(shared.data.labels.outputs)
    }
    made = report(_read({PROBE: honest}, shared), "chosen in each training fold", ", ".join(tokens or [probe.tokens]))
    return LayerSweep(tuple(places), tuple(reports), target(probe.target).name, made, names)


def _places(
    probe: Probe, store: RolloutStore, layers: Sequence[int] | None, tokens: Sequence[str] | None
) -> Iterator[Place]:
    for name in tokens or [probe.tokens]:
        group = store.group(name, probe.pool)
        stored = [Site(site) for site in group.sites]
        key = probe.site
        short = key[0] if isinstance(key, tuple) else (key if isinstance(key, Site) else group.one(key)).hook.short
        here = {site.layer: site for site in stored if site.hook.short == short and site.layer is not None}
        if not here:
            raise UnknownName(f"site with layers stored for the tokens {name!r}", short, group.sites)
        for layer in sorted(here) if layers is None else layers:
            wanted = layer + max(here) + 1 if layer < 0 else layer
            if wanted not in here:
                raise UnknownName(f"layer of {short} stored for the tokens {name!r}", layer, map(str, sorted(here)))
            yield Place(here[wanted], name, probe.pool)


def _shared(
    probe: Probe,
    store: RolloutStore,
    by: str | Sequence[Fold],
    test: RolloutStore | None,
    count: int,
    min_episodes: int,
    draws: int,
    site: Site,
) -> _Shared:
    data = ProbeData.without_activations(store, target(probe.target), site)
    if test is None:
        judged, plan = data, plan_folds(data, make_folds(store, by, count))
        predictions, fold_of = out_of_fold(data, probe.estimator_, plan, probe.seed), plan.fold_of
    else:
        refuse_shared(*(start_states(unit_of_episode(one).values()) for one in (store, test)))
        judged, plan = ProbeData.without_activations(test, target(probe.target), site), None
        everything = np.ones(len(judged.labels), dtype=bool)
        predictions = judged.predict(data.fit(probe.estimator_, data.labelled(), probe.seed), everything)
        fold_of = np.zeros(len(judged.labels), dtype=int)
    asked = questions(judged, fold_of)
    weights = tuple(weights_of(question, min_episodes, draws, 0) for question in asked)
    controls = tuple(_readings(predictions, asked, weights))
    data, judged = (replace(one, features={}) for one in (data, judged))  # the controls' are not needed any more
    return _Shared(data, judged, plan, fold_of, asked, weights, controls)


def _at(
    probe: Probe,
    place: Place,
    shared: _Shared,
    store: RolloutStore,
    test: RolloutStore | None,
    fits: Sequence[str],
    nested: bool,
) -> tuple[dict[str, Predictions], Float[np.ndarray, "folds outputs"]]:
    """Predictions at one place, and what each of its outputs reaches inside each training fold."""
    data = _with_activations(shared.data, store, place, fits)
    if shared.plan is None:
        assert test is not None
        readouts = data.fit(probe.estimator_, data.labelled(), probe.seed)
        judged = _with_activations(shared.judged, test, place, fits)
        return judged.predict(readouts, np.ones(len(judged.labels), dtype=bool)), np.zeros((0, 0))
    predictions = out_of_fold(data, probe.estimator_, shared.plan, probe.seed)
    return predictions, inner_auc(data, probe, shared.plan) if nested else np.zeros((0, 0))


def _with_activations(data: ProbeData, store: RolloutStore, place: Place, fits: Sequence[str]) -> ProbeData:
    x, rows = store.load(place.site, place.tokens, place.pool)
    check_same_queries(rows, data.labels)
    refuse_standardised(Spread.of(x), place.name)
    return replace(data, features=dict.fromkeys(fits, x), site=place.site)


def inner_auc(data: ProbeData, probe: Probe, plan: Plan) -> Float[np.ndarray, "folds outputs"]:
    """AUC in the training episodes of each fold, of probes that saw neither the fold nor what they are judged on."""
    data = replace(data, features={PROBE: data.features[PROBE]})
    folds, labels = len(plan.numbers), data.labels
    pairs = [(a, b) for a in range(folds) for b in range(a)]
    masks = [plan.train[a] & plan.train[b] for a, b in pairs]
    fitted = data.fit_folds(probe.estimator_, masks, [probe.seed] * len(masks))
    scores = np.full((folds, *labels.values.shape), np.nan)
    for (a, b), readouts in zip(pairs, fitted, strict=True):
        for held_out, other in ((a, b), (b, a)):
            scores[held_out, plan.test[other]] = data.predict(readouts, plan.test[other])[PROBE].scores
    found = np.full((folds, labels.values.shape[1]), np.nan)
    for held_out in range(folds):
        for place in range(labels.values.shape[1]):
            rows = ~np.isnan(labels.values[:, place]) & ~np.isnan(scores[held_out, :, place])
            episode = np.unique(labels.episode[rows], return_inverse=True)[1]
            judged = Judged(labels.values[rows, place], plan.fold_of[rows], episode, np.zeros(len(episode), dtype=int))
            value = auc(scores[held_out, rows, place], judged)
            found[held_out, place] = np.nan if value is None else value
    return found


def _chosen(kept: Sequence[Predictions], chosen: Int[np.ndarray, "folds outputs"], plan: Plan) -> Predictions:
    """Of each fold and output the predictions of the place that was chosen without it."""
    scores = np.full_like(kept[0].scores, np.nan)
    chances = None if any(one.probabilities is None for one in kept) else np.full_like(scores, np.nan)
    for fold, test in enumerate(plan.test):
        for output, place in enumerate(chosen[fold]):
            scores[test, output] = kept[place].scores[test, output]
            given = kept[place].probabilities
            if chances is not None and given is not None:
                chances[test, output] = given[test, output]
    return Predictions(scores, chances)


def _read(predictions: dict[str, Predictions], shared: _Shared) -> list[dict[str, Reading]]:
    """Readings of the probe, of the shared controls and of the shuffled fits, in this order."""
    return [
        {PROBE: own.pop(PROBE), **controls, **own}
        for own, controls in zip(_readings(predictions, shared.asked, shared.weights), shared.controls, strict=True)
    ]


def _readings(
    predictions: dict[str, Predictions], asked: Sequence[Question], weights: Sequence[Weights]
) -> Iterator[dict[str, Reading]]:
    for question, draws in zip(asked, weights, strict=True):
        yield readings(predictions, question, draws, calibrated=question.contrast == asked[0].contrast)
