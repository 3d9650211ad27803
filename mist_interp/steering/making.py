"""From what is a direction made?

    from_contrast    two kinds of rows: the difference of their means
    from_lda         the same two kinds: where they separate best for their spread
    from_pca         rows, or paired rows: where they vary most
    from_gradient    queries: what moves one number of the action

Others come from objects that hold a direction: `probe.direction("dz")`, `sae.direction(17)`. All of them are scaled to
one unit, a standard deviation of the training rows along the direction, remember the start states that they were made
from, and refuse an evaluation that shares any. Where each misleads is said in `contrast`, `components`, `gradient`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Float

from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Site, SiteKey
from mist_interp.data.activation_set import ActivationSet, StartState, refuse_shared, start_states
from mist_interp.data.records import Array, Unit
from mist_interp.steering.components import AUTO, centred, discriminant, paired_differences, principal_component, signed
from mist_interp.steering.contrast import check_comparable, mean_difference
from mist_interp.steering.gradient import action_slope
from mist_interp.tracing.targets import ActionTarget

if TYPE_CHECKING:
    from mist_interp.tracing.hooked import HookedVLA


class Making:
    """Adds the ways to make a direction to a class that has `of_length`."""

    @classmethod
    def of_length(
        cls,
        vector: Float[Array, " width"],
        sigma: float,
        *,
        site: Site,
        tokens: str,
        source: Mapping[str, Any],
        trained_on: Iterable[StartState],
    ) -> Self:
        """`vector`, rescaled to the length `sigma`."""
        raise NotImplementedError

    @classmethod
    def scaled(
        cls,
        vector: Float[Array, " width"],
        x: Float[Array, "rows width"],
        *,
        site: Site,
        tokens: str,
        source: Mapping[str, Any],
        trained_on: Iterable[StartState],
    ) -> Self:
        """`vector`, rescaled so that coefficient 1 is one standard deviation of the projection of `x` on it.

        Raises:
            ValueError: the vector is zero, or the rows do not vary along it: there is no unit then.
        """
        direction = np.asarray(vector, dtype=np.float64)
        length = float(np.linalg.norm(direction))
        sigma = float(np.std(np.asarray(x, dtype=np.float64) @ (direction / length))) if length > 0 else 0.0
        # Rows that vary by rounding only give no unit.
        sigma = 0.0 if sigma <= 1e-12 * max(1.0, float(np.abs(x).max(initial=0.0))) else sigma
        return cls.of_length(direction, sigma, site=site, tokens=tokens, source=source, trained_on=trained_on)

    @classmethod
    def from_contrast(
        cls,
        pos: ActivationSet,
        neg: ActivationSet,
        *,
        evaluation: Iterable[Unit] = (),
        within_task: bool = True,
    ) -> Self:
        """Difference of means, from `neg` towards `pos`.

        Args:
            pos: rows of one kind (e.g. queries of successful episodes); `probing.contrast_sets` makes both.
            neg: rows of the other kind, at the same site and tokens.
            evaluation: the units on which the direction will be judged.
            within_task: take the difference within each task that has both kinds and average them, weighted by how
                well each is determined (n+ n- / (n+ + n-)), so that the direction does not say which task it is.

        Raises:
            ValueError: a start state of `evaluation` is among the rows, the sites differ, or there is nothing to
                compare.
        """
        check_comparable(pos, neg)
        difference = mean_difference(pos.x, neg.x, *_strata(within_task, pos, neg))
        facts = {"method": "difference of means" + _suffix(within_task), "rows": _counts(pos, neg)}
        return cls._of_rows(difference, (pos, neg), facts, evaluation)

    @classmethod
    def from_lda(
        cls,
        pos: ActivationSet,
        neg: ActivationSet,
        *,
        evaluation: Iterable[Unit] = (),
        within_task: bool = True,
        shrinkage: float | str = AUTO,
    ) -> Self:
        """Linear discriminant, from `neg` towards `pos`: the difference of means, seen through their common covariance.

        Args:
            pos: as in `from_contrast`.
            neg: likewise.
            evaluation: likewise.
            within_task: likewise; the covariance is then that within kinds and tasks.
            shrinkage: of the covariance, from 0 (none) to 1 (the direction of `from_contrast`); "auto" is Ledoit and
                Wolf's, the usual choice with as many dimensions as rows.

        Raises:
            ValueError: as in `from_contrast`, or without shrinkage there are too few rows for a covariance.
        """
        check_comparable(pos, neg)
        strata = _strata(within_task, pos, neg)
        difference = mean_difference(pos.x, neg.x, *strata)
        within = np.concatenate([centred(one.x, tasks) for one, tasks in zip((pos, neg), strata, strict=True)])
        vector, used = discriminant(within, difference, shrinkage)
        facts = {
            "method": "linear discriminant" + _suffix(within_task),
            "shrinkage": used,
            "rows": _counts(pos, neg),
        }
        return cls._of_rows(vector, (pos, neg), facts, evaluation)

    @classmethod
    def from_pca(
        cls,
        rows: ActivationSet,
        baseline: ActivationSet | None = None,
        *,
        component: int = 0,
        evaluation: Iterable[Unit] = (),
        within_task: bool = True,
    ) -> Self:
        """Principal component of rows, or of the differences of paired rows.

        The sign: of rows, the largest entry of the vector is positive; of differences, from `baseline` towards `rows`
        on average.

        Args:
            rows: activations.
            baseline: the same queries in the same order under another condition (perturbed, edited, another prompt).
            component: 0 for the one with most variance (differences: with the largest second moment).
            evaluation: the units on which the direction will be judged.
            within_task: without `baseline`: rows minus the mean of their task, so that the first components are not
                which task it is.

        Raises:
            ValueError: a start state of `evaluation` is among the rows; rows and baseline are no pairs; fewer
                components than that.
        """
        if baseline is None:
            check_comparable(rows, rows)
            (strata,) = _strata(within_task, rows)
            vector, explained = principal_component(centred(rows.x, strata), component)
            facts = {"method": "principal component" + _suffix(within_task), "rows": len(rows)}
            sets: tuple[ActivationSet, ...] = (rows,)
            vector = signed(vector)
        else:
            differences = paired_differences(rows, baseline)
            vector, explained = principal_component(differences, component)
            facts = {"method": "principal component of differences", "rows": len(rows)}
            sets = (rows, baseline)
            vector = signed(vector, differences.mean(0))
        return cls._of_rows(vector, sets, {**facts, "component": component, "explained": explained}, evaluation)

    @classmethod
    def from_gradient(
        cls,
        vla: HookedVLA,
        inputs: PolicyInputs,
        target: ActionTarget,
        site: SiteKey,
        tokens: str = "action_read",
        *,
        units: Iterable[Unit] = (),
        rows: ActivationSet | None = None,
        evaluation: Iterable[Unit] = (),
        batch: int = 16,
    ) -> Self:
        """Gradient of an action number (the Jacobian's row), averaged over queries: the steepest way to raise it.

        `source["slope"]` says by how much coefficient 1 raises the number, to first order, in the unit of the action.

        Args:
            vla: the policy.
            inputs: queries at which the gradient is taken.
            target: "t0.dz", "dz" (mean over the chunk), or numbers with weights: {"t0.dx": 1, "t0.dy": -1}.
            site: where the direction will be added.
            tokens: at which tokens.
            units: what the queries belong to, if they come from episodes.
            rows: training activations that give the unit; None takes those of `inputs`, of which there must be several.
            evaluation: the units on which the direction will be judged.
            batch: queries that go through together.

        Raises:
            UnknownName: no such target, site or tokens.
            ValueError: the action has no gradient; `rows` are of another place; a start state of `evaluation` is among
                `units` or `rows`; the activations do not vary along the direction.
        """
        states = start_states(units) | (frozenset() if rows is None else rows.start_states)
        refuse_shared(states, start_states(evaluation))
        slope = action_slope(vla, inputs, target, site, tokens, batch)
        if rows is not None and (rows.site, rows.tokens, rows.pool) != (slope.site, tokens, "mean"):
            wanted, given = (slope.site.name, tokens, "mean"), (rows.site.name, rows.tokens, rows.pool)
            raise ValueError(f"the unit must come from activations of the same place, {wanted}, not {given}")
        x = slope.rows if rows is None else rows.x
        length = float(np.linalg.norm(slope.gradient))
        if length == 0:
            raise ValueError(f"{target!r} does not depend on {slope.site} at {tokens!r}")
        facts = {
            "method": "gradient of an action number",
            "target": target if isinstance(target, str) else dict(target),
            "queries": len(slope.rows),
            "slope": length * float(np.std(np.asarray(x, dtype=np.float64) @ (slope.gradient / length))),
            "agreement": _agreement(slope.gradients),
            "model": vla.cfg.model_id,
            "pool": "mean",
        }
        return cls.scaled(slope.gradient, x, site=slope.site, tokens=tokens, source=facts, trained_on=states)

    @classmethod
    def _of_rows(
        cls,
        vector: Float[Array, " width"],
        sets: tuple[ActivationSet, ...],
        facts: Mapping[str, Any],
        evaluation: Iterable[Unit],
    ) -> Self:
        """The direction, unless a start state of the evaluation is among the rows."""
        trained_on = frozenset(state for one in sets for state in one.start_states)
        refuse_shared(trained_on, start_states(evaluation))
        first = sets[0]
        return cls.scaled(
            vector,
            np.concatenate([one.x for one in sets]),
            site=first.site,
            tokens=first.tokens,
            source={**facts, "pool": first.pool, "data": dict(first.source)},
            trained_on=trained_on,
        )


def _strata(within_task: bool, *sets: ActivationSet) -> list[np.ndarray]:
    return [one.tasks if within_task else np.zeros(len(one)) for one in sets]


def _suffix(within_task: bool) -> str:
    return " within tasks" if within_task else ""


def _counts(pos: ActivationSet, neg: ActivationSet) -> dict[str, int]:
    return {"positive": len(pos), "negative": len(neg)}


def _agreement(gradients: Float[Array, "queries width"]) -> float:
    """Length of the mean of the unit gradients: 1 if all queries say the same, about 1 / sqrt(queries) if none does."""
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    return float(np.linalg.norm((gradients / np.where(lengths > 0, lengths, 1.0)).mean(0)))
