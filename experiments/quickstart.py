"""Can one see a collision coming in the activations of a policy, and does steering away from it help?

The whole loop of the package on the shipped policy, in real LIBERO: rollouts with cached activations, a probe with its
controls, risk per action dimension on the shipped sample, a contrastive direction, and a paired evaluation of three
arms. It is a demonstration: few episodes, wide intervals. Run it again to go on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mist_interp import PolicySource
from mist_interp.cli.progress import ProgressDisplay, duration, print_summary
from mist_interp.core.files import write_atomic
from mist_interp.data import ActivationSet, Protocol, RolloutStore, collect_rollouts, load_rollouts
from mist_interp.evaluation import Detector, NoEdit, Steer, evaluate, random_direction
from mist_interp.evaluation.detector import ProbeScore
from mist_interp.evaluation.plan import make_plan, units_of
from mist_interp.probing import Probe, ProbeReport, Risk, cross_validate, fit_layers, make_folds
from mist_interp.probing.conformal import rank_limit
from mist_interp.probing.layer_sweep import LayerSweep
from mist_interp.probing.readout import fit_readout
from mist_interp.probing.report import PROBE
from mist_interp.report import write_report
from mist_interp.steering import SteeringDirection

# Share of quiet episodes in which the probe may fire.
FALSE_ALARMS = 0.1
SAMPLE = Path(__file__).parent / "sample"
console = Console(highlight=False)


@dataclass(frozen=True)
class Settings:
    """The main loop of mist_interp on the shipped policy: rollouts, probe, direction, paired evaluation, report."""

    out: Path = Path("results/quickstart")
    """Where everything goes. A run that was cut goes on from here."""

    model: str = "mini"
    """Policy: "mini" (ships with the package), a folder, or a Hub id."""

    device: str | None = None
    """Where the policy runs, for example cuda; default: the CPU."""

    suite: str = "libero_spatial"
    """LIBERO suite."""

    tasks: tuple[int, ...] = tuple(range(10))
    """Tasks of the suite."""

    rollout_inits: tuple[int, ...] = field(default=tuple(range(30, 38)))
    """Start states for the rollouts that probe and direction are fitted on."""

    evaluation_inits: tuple[int, ...] = field(default=tuple(range(40, 43)))
    """Start states for the evaluation; none may be among the others."""

    target: str = "contact"
    """What the probe foresees: "contact" (a forbidden contact within the next 18 control steps) or "failure"."""

    layer: int | None = None
    """Layer of the residual stream; default: the middle one."""

    coef: float = -1.0
    """Strength of the steering, in standard deviations along the direction; negative is away from the target."""

    max_steps: int | None = None
    """Step limit of an episode; default: the suite's."""

    workers: int = 2
    """Processes."""

    @property
    def policy(self) -> PolicySource:
        """What is loaded here and in every worker."""
        return PolicySource(self.model, device=self.device)


def main(settings: Settings) -> None:
    """Run all steps; each explains itself."""
    begun = time.monotonic()
    console.print("[bold]mist_interp quickstart[/]: see a collision coming, steer away from it, count honestly.\n")

    step(1, "The policy", "a real OpenVLA-OFT network, wrapped so that every activation has a name.")
    vla = settings.policy.load(settings.suite)
    layer = settings.layer if settings.layer is not None else vla.cfg.n_layers // 2
    site = vla.site(("resid_post", layer))
    parameters = sum(p.numel() for p in vla.policy.parameters())
    size = f"{parameters / 1e6:.1f} M parameters, {len(vla.sites())} named sites"
    say(f"{settings.model}: {size}; we read and write {site}.")

    step(2, "Rollouts", "the policy acts in LIBERO; at every query we keep its action tokens at every layer.")
    store = rollouts(settings)
    describe_rollouts(store)

    step(
        3,
        "A probe, with its controls",
        f"can a linear read-out at this site foresee the target ({settings.target}) in a task it has never seen? "
        "What counts is not its AUC but its margin over the same read-out on trivial inputs.",
    )
    probe = Probe(site, target=settings.target)
    report = cross_validate(probe, store, min_episodes=5)
    print_probe(report)
    known = cross_validate(probe, store, "init_state", min_episodes=5, draws=2000)
    say(f"For new start states of known tasks, an easier question: AUC {number(known.score().auc)}, {margin(known)}.")
    probe.fit(store)
    probe.save(settings.out / "probe")
    write_atomic(settings.out / "probe" / "report.json", json.dumps(report.to_dict(), indent=2) + "\n")

    step(
        4,
        "Risk has a dimension",
        "which of the seven action dimensions is about to close the gap to an obstacle? Labels from contacts alone, on "
        "the 40 episodes of experiments/sample, most of them disturbed; and a probe of dz at every layer.",
    )
    sweep = per_dimension()
    sweep.save(settings.out / "sweep")

    step(5, "A direction", "the mean difference between queries before the target and quiet ones, within each task.")
    direction = contrast(settings, probe, store)
    say(
        f"{direction}. Cosine with the probe's own direction: {direction.cosine(probe.direction()):+.2f}; "
        f"with a random one: {direction.cosine(SteeringDirection.random(direction, seed=0)):+.2f}."
    )

    step(
        6,
        "Does steering help?",
        "three arms on the same start states, none of which was used above: nothing (the probe watches), the "
        "direction, and a random direction of the same length as placebo. An arm must beat both to mean anything.",
    )
    summary = compare(settings, probe, store, direction).summary()
    print_summary(summary, console)
    for sentence in verdict(summary):
        say(sentence)
    page = write_report(settings.out, title="mist_interp quickstart")
    console.print(f"\nReport with films: [bold]{page}[/]   ({duration(time.monotonic() - begun)} in all)")


def rollouts(settings: Settings) -> RolloutStore:
    """Episodes with activations of every layer at the tokens that the action is read from."""
    columns = (TextColumn("  {task.description}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("episodes", total=len(settings.tasks) * len(settings.rollout_inits))
        return collect_rollouts(
            settings.policy,
            settings.suite,
            out=settings.out / "rollouts",
            sites="resid_post",
            tokens="action_read",
            tasks=settings.tasks,
            inits=settings.rollout_inits,
            protocol=Protocol(max_steps=settings.max_steps),
            workers=settings.workers,
            on_progress=lambda progress: bar.update(shown, completed=progress.done),
        )


def describe_rollouts(store: RolloutStore) -> None:
    """What came of them."""
    episodes = store.episodes()
    collided = sum(any(c["peak_force"] >= 1.0 for c in contacts) for contacts in episodes["contacts"])
    say(
        f"{len(episodes)} episodes, {int(episodes['n_queries'].sum())} queries; {episodes['success'].sum()} succeeded, "
        f"{collided} had a forbidden contact of at least 1 N."
    )


def print_probe(report: ProbeReport) -> None:
    """The probe and its controls, one row each."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("reads", "AUC", "95 % interval", "average precision", "Brier"):
        table.add_column(column, justify="left" if column == "reads" else "right")
    for row in report.only().scores:
        interval = "–" if row.low is None else f"{row.low:.2f}–{row.high:.2f}"
        note = " [dim](constant)[/]" if row.degenerate else ""
        cells = [number(row.auc) + note, interval, number(row.average_precision), number(row.brier)]
        table.add_row(f"[bold]{report.site}[/]" if row.reader == "probe" else row.reader, *cells)
    console.print(table)
    first = report.scores[0]
    console.print(
        f"[dim]{report.split}; {first.queries} queries, {100 * first.base_rate:.0f} % positive; "
        f"{first.positive_episodes} episodes with, {first.negative_episodes} with negative queries; masked: "
        f"{', '.join(f'{reason} {count}' for reason, count in report.masked.items())}[/]"
    )
    say(f"In a new task: {margin(report)}.")
    for flag in report.flags:
        say(f"[yellow]Note:[/] {flag}.")


def per_dimension() -> LayerSweep:
    """Labels of the shipped sample per dimension, and how well each layer foresees that of dz."""
    sample = load_rollouts(SAMPLE)
    labels = Risk().labels(sample)
    hit = labels.values == 1
    counts = ", ".join(f"{name} {int(hit[:, place].sum())}" for place, name in enumerate(labels.outputs))
    say(f"{len(sample)} episodes, {len(labels)} queries; to blame for a collision to come: {counts}.")
    sweep = fit_layers(Probe(("resid_post", 0), target=Risk(dimensions=("dz",))), sample, draws=1000)
    by_layer = ", ".join(f"layer {layer} {number(sweep.report(layer).score().auc)}" for layer in sweep.layers)
    best = sweep.best("dz").place.layer
    say(f"AUC for dz in a new task: {by_layer}. Layer {best}: {margin(sweep.report(best))}.")
    return sweep


def margin(report: ProbeReport) -> str:
    """The claim that a report allows, in words."""
    best = report.margins[0]
    if best.value is None or best.low is None or best.high is None:
        return "no margin can be given"
    claim = "more than any control knows" if best.low > 0 else "not shown to be more than the controls know"
    span = f"{best.value:+.2f} ({best.low:+.2f} to {best.high:+.2f})"
    return f"margin over the best control ({best.best_control}) [bold]{span}[/], {claim}"


def contrast(settings: Settings, probe: Probe, store: RolloutStore) -> SteeringDirection:
    """The contrastive direction; kept, so that a run that goes on steers along the very same vector."""
    folder = settings.out / "direction"
    if (folder / "direction.json").exists():
        direction = SteeringDirection.load(folder)
        if direction.trained_on == probe.trained_on_ and direction.site == probe.site_:
            return direction
    labels = probe.read(store).labels.values[:, 0]
    rows = ActivationSet.read(store, probe.site_)
    judged_on = make_plan(settings.suite, settings.tasks, settings.evaluation_inits, ["none"])
    direction = SteeringDirection.from_contrast(
        rows.where(labels == 1), rows.where(labels == 0), evaluation=units_of(judged_on)
    )
    direction.save(folder)
    return direction


def compare(settings: Settings, probe: Probe, store: RolloutStore, direction: SteeringDirection) -> Any:
    """The paired evaluation; the probe watches every arm and fires in about a tenth of the quiet episodes."""
    maxima = quiet_maxima(probe, store)
    # Rounded up: the last digit of a fit may differ between machines, and a run that goes on needs the same threshold.
    threshold = float(np.ceil(1000 * rank_limit(maxima, FALSE_ALARMS)) / 1000)
    say(
        f"The probe fires above a probability of {threshold:.2f}, which about {100 * FALSE_ALARMS:.0f} % of quiet "
        f"episodes reach: set on {len(maxima)} of them, each scored by a probe that did not see it."
        if np.isfinite(threshold)
        else f"The probe never fires: {len(maxima)} quiet episodes are too few to set a threshold."
    )
    say("Steering is live at all queries, whatever the probe says.")
    with ProgressDisplay(console) as display:
        return evaluate(
            settings.policy,
            settings.suite,
            [NoEdit(), Steer(direction, settings.coef), random_direction(direction, settings.coef, seed=1)],
            out=settings.out,
            tasks=settings.tasks,
            inits=settings.evaluation_inits,
            protocol=Protocol(max_steps=settings.max_steps),
            detector=Detector(ProbeScore(probe), threshold, "contact probe"),
            videos="sample",
            workers=settings.workers,
            on_progress=display.show,
        )


def quiet_maxima(probe: Probe, store: RolloutStore) -> Float[np.ndarray, " episodes"]:
    """Largest probability in every episode without the target, given by a probe that did not see its start state."""
    data = probe.read(store)
    rows, target = data.features[PROBE], data.labels.values[:, 0]
    maxima = []
    for fold in make_folds(store, "init_state"):
        known = data.labelled(fold.train)
        readout = fit_readout(probe.estimator_, rows[known], data.labels.values[known])
        for episode in fold.test:
            mine = data.labels.episode == episode
            chances = readout.probabilities(rows[mine])
            if chances is not None and not (target[mine] == 1).any():
                maxima.append(chances[:, 0].max())
    return np.array(maxima)


def verdict(summary: Mapping[str, Any]) -> list[str]:
    """Whether steering did better than nothing and than the placebo, one sentence for each tested outcome."""
    sentences = []
    for name, wish in (("success_rate", 1), ("collision_rate_1n", -1)):
        tests = [row for row in summary["comparisons"] if (row["arm"], row["metric"]) == ("steer", name)]
        if not tests:
            continue
        won = [row["reference"] for row in tests if wish * row["difference"]["value"] > 0 and row["p_holm"] < 0.05]
        against = " and ".join(row["reference"] for row in tests)
        outcome = "more successes" if wish > 0 else "fewer collisions"
        claim = "yes" if len(won) == len(tests) > 1 else f"not shown (shown against {' and '.join(won) or 'neither'})"
        sentences.append(f"Does steering give {outcome} than {against}? [bold]{claim}[/].")
    return sentences


def step(number: int, title: str, sentence: str) -> None:
    """Headline of a step and what it does."""
    console.print(f"\n[bold cyan]{number}  {title}[/]\n{sentence}")


def say(sentence: str) -> None:
    """One finding."""
    console.print(f"[green]→[/] {sentence}")


def number(value: float | None) -> str:
    """Two digits, or a dash."""
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main(tyro.cli(Settings))
