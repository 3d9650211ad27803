"""Which arms does the study of recovery compare, and with what strength?

Writes lists that `mist eval --arms` reads:

    main        the arm under test beside its placebos and rivals; edit: that arm alone
    ablations   one thing changed at a time; free: edits that hold no other dimension; gated: what is tried behind other
                gates; adapting: edits whose strength follows what they do. All for the validation split
    confirm     what is asked again on fresh start states; pushed: under a disturbance
    twins       `none` and the edits of which heads learn where each of them helps
    contrast    the direction from twins that end badly to those that were saved (`contrast.py`), likewise
    chosen      the choice among these edits by those heads, and its placebos
    learned     an edit that aims at what an expert would do, and its placebos

Gates with the same alarm and other rules, for `--detector`: `gates/retry-L-P/` opens for at most L queries and then
leaves the robot to the policy for P; `gates/once/` opens once per episode, and `gates/release/` stays open until the
risk is well below the limit. Also made here, from training start states only: the direction of success (difference of
means), probes of other tokens, the means of safe states, and the neurons that move dz most.

    python experiments/recovery/arms.py --rollouts runs/study/mini --out results/recovery
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml
from risk import part

from mist_interp import HookedVLA
from mist_interp.analysis.neurons import neuron_effects, neuron_table
from mist_interp.data import RolloutStore
from mist_interp.data.activation_set import ActivationSet
from mist_interp.libero import LiberoEnv, LiberoSuite
from mist_interp.probing import Probe, Risk
from mist_interp.probing.contrasts import contrast_sets
from mist_interp.steering import SteeringDirection

PLACEBOS = ("random-direction", "reversed", "wrong-dimension", "noise")
TOKENS = ("action_read", "vision", "proprio")
# Rules of a gate that are tried beside the plain one; longest and pause: queries under the edit and then without it.
RULES = {
    "retry-2-3": {"longest": 2, "pause": 3},
    "retry-4-6": {"longest": 4, "pause": 6},
    "once": {"max_interventions": 1},
    "release": {"release": 0.2},
}


@dataclass(frozen=True)
class Settings:
    """Write the lists of arms."""

    rollouts: Path = Path("runs/study/mini")
    """Recorded rollouts."""

    out: Path = Path("results/recovery")
    """Folder of the study: the lists are written to its arms/, the sham triggers take their number from its main/."""

    train: tuple[int, int] = (0, 13)
    """Start states that directions are made from: from, up to but without."""

    layer: int = 2
    """Block behind which `mist` edits."""

    size: float = 0.2
    """How far the mean motion along a flagged dimension is moved back, in normalised units."""


def main(settings: Settings) -> None:
    """Directions, neurons, lists."""
    folder = settings.out / "arms"
    store = RolloutStore.open(settings.rollouts)
    train = part(store, settings.train)
    failed, succeeded = contrast_sets(train, ("resid_post", settings.layer), target="failure")
    SteeringDirection.from_contrast(succeeded, failed).save(folder / "success_direction")
    site, risk = ("resid_post", settings.layer), Risk(dimensions=("dx", "dy", "dz"))
    labels = risk.labels(train)
    for tokens in TOKENS:
        Probe(site, tokens=tokens, target=risk).fit(train).save(folder / f"probe_{tokens}")
        rows = ActivationSet.read(train, site, tokens)
        for dim, label in zip(labels.outputs, labels.values.T, strict=True):
            SteeringDirection.mean_state(rows.where(label == 0)).save(folder / f"safe_{tokens}" / dim)
    lists = {
        "main": rivals(settings, folder),
        "edit": ["none", edit(settings)],
        "ablations": ablations(settings, folder),
        "free": free(settings),
        "gated": gated(settings),
        "adapting": adapting(settings),
        "contrast": contrasted(settings),
        "pushed": disturbed(settings),
        "confirm": confirmed(settings),
        "twins": ["none", *candidates(settings)],
        "chosen": chosen(settings),
        "learned": learned(settings),
    }
    gate = yaml.safe_load((settings.out / "contact" / "gate.yaml").read_text())
    for name, rules in RULES.items():
        path = settings.out / "gates" / name / "gate.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({**gate, **rules}, sort_keys=False))
    for name, arms in lists.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(arms, sort_keys=False))
        print(f"{name}: {', '.join(arm if isinstance(arm, str) else arm.get('name', arm['kind']) for arm in arms)}")


def edit(settings: Settings) -> dict[str, Any]:
    """The arm under test: back a little along the dimension that is about to bring a contact."""
    shape = {"dims": ["dx", "dy", "dz"], "otherwise": ["dz"], "rounds": 3, "stride": 0.5, "adapt": False}
    return {"kind": "mist", "wanted": "retreat", "size": settings.size, "layer": settings.layer, **shape}


def strengthened(settings: Settings) -> dict[str, Any]:
    """The same five times as far."""
    return {**edit(settings), "size": 5 * settings.size}


def freed(settings: Settings) -> dict[str, Any]:
    """What the validation split chose: longer, in one round behind the last block, and no other dimension is held."""
    once = {key: value for key, value in edit(settings).items() if key != "stride"}
    return {**once, "size": 0.3, "layer": 3, "rounds": 1, "hold": False}


def candidates(settings: Settings) -> list[dict[str, Any]]:
    """Edits that do different things: less of dz, a little or much; less of all motion; aside, and upwards too."""
    free = freed(settings)
    sides = {f"{dim}-{word}": {dim: sign} for dim in ("dx", "dy") for sign, word in ((1, "plus"), (-1, "minus"))}
    sides |= {"dy-minus-far": {"dy": -2}, "dy-minus-dz-plus": {"dy": -1, "dz": 1}}
    sides |= {"dy-minus-far-dz-plus": {"dy": -2, "dz": 1}}
    return [
        {**free, "name": "mist-free"},
        {**strengthened(settings), "name": "mist-strong"},
        {**free, "wanted": "brake", "size": 0.5, "name": "brake", "generic": True},
        *({**free, "hold": True, "wanted": "shift", "shift": way, "name": name} for name, way in sides.items()),
    ]


def rivals(settings: Settings, folder: Path) -> list[Any]:
    """The arm under test in three forms, placebos (at their own alarms, at its queries, at others), and rivals."""
    mist, free = edit(settings), freed(settings)
    strong = strengthened(settings)
    return [
        "none",
        "safe-stop",
        "generic-slow",
        mist,
        {**strong, "name": "mist-strong"},
        "failsafe-style",
        {**mist, "kind": "action-correction"},
        *({**mist, "kind": kind} for kind in PLACEBOS),
        *({**strong, "kind": kind, "name": f"{kind}-strong"} for kind in ("action-correction", *PLACEBOS[::2])),
        {"kind": "concept-neurons", "neurons": raising(), "when": "fired"},
        {"kind": "sham-triggers", "arm": mist, "of": str(settings.out / "main")},
        {"kind": "constant-steer", "direction": str(folder / "success_direction")},
        *elsewhere(strong, settings.out / "main", "mist-strong"),
        {**free, "name": "mist-free"},
        *({**free, "kind": kind, "name": f"{kind}-free"} for kind in ("action-correction", *PLACEBOS[::2])),
        *elsewhere(free, settings.out / "main", "mist-free"),
    ]


def elsewhere(arm: dict[str, Any], run: Path, like: str) -> list[Any]:
    """An edit at the queries of another unit, and placebos at the very queries at which the arm acted in this one."""
    form = like.removeprefix("mist")
    shared = {"kind": "sham-triggers", "of": str(run), "like": like}
    return [
        {**shared, "arm": arm, "name": f"sham-triggers{form}"},
        *(
            {**shared, "arm": as_kind(arm, kind), "exact": True, "name": f"{kind}{form}-yoked"}
            for kind in PLACEBOS[::2]
        ),
    ]


def as_kind(arm: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same arm, or of a choice every arm that is chosen among, as another kind: a placebo, or its displacement."""
    if arm["kind"] == "chosen":
        return {**arm, "among": [as_kind(one, kind) for one in arm["among"]]}
    return {**arm, "kind": kind}


def disturbed(settings: Settings) -> list[Any]:
    """Of the main list what is asked again while the robot is being pushed."""
    mist, free, run = edit(settings), freed(settings), settings.out / "pushed"
    return [
        "none",
        mist,
        {**free, "name": "mist-free"},
        {**free, "kind": "action-correction", "name": "action-correction-free"},
        *elsewhere(free, run, "mist-free"),
        "failsafe-style",
    ]


def confirmed(settings: Settings) -> list[Any]:
    """What is claimed of two edits on fresh start states, see `confirm.py`."""
    run, free, strong = settings.out / "confirm", freed(settings), strengthened(settings)
    return [
        "none",
        {**free, "name": "mist-free"},
        {**free, "kind": "action-correction", "name": "action-correction-free"},
        *elsewhere(free, run, "mist-free"),
        {**strong, "name": "mist-strong"},
        *elsewhere(strong, run, "mist-strong")[1:],
    ]


def chosen(settings: Settings) -> list[Any]:
    """What is claimed of the choice on fresh start states."""
    among = [{**one, "benefit": str(settings.out / "choice" / one["name"])} for one in candidates(settings)]
    choice = {"kind": "chosen", "among": among, "name": "mist-chosen"}
    return [
        "none",
        choice,
        {**as_kind(choice, "action-correction"), "name": "action-correction-chosen"},
        *elsewhere(choice, settings.out / "chosen", "mist-chosen"),
    ]


def ablations(settings: Settings, folder: Path) -> list[Any]:
    """One thing changed at a time."""
    mist = edit(settings)
    others = [layer for layer in range(4) if layer != settings.layer]
    along = {"kind": "learned", "when": "fired"}
    return [
        "none",
        mist,
        *({**mist, "layer": layer, "name": f"layer-{layer}"} for layer in others),
        *({**mist, "size": size, "name": f"size-{size}"} for size in (0.1, 0.3, 0.5)),
        {**{key: value for key, value in mist.items() if key != "stride"}, "rounds": 1, "name": "one-round"},
        {**mist, "hold": False, "name": "hold-nothing"},
        {**mist, "generic": True, "name": "all-dimensions-at-once"},
        *({**mist, "steps": steps, "name": f"steps-{steps[0]}-{steps[-1]}"} for steps in ([0, 1, 2, 3], [4, 5, 6, 7])),
        {**mist, "wanted": "brake", "size": 0.3, "name": "brake"},
        {**mist, "when": "triggered", "name": "from-the-trigger-on"},
        {**mist, "when": "always", "name": "gate-off"},
        {"kind": "sham-triggers", "arm": mist, "of": str(settings.out / "ablations")},
        *({**along, "probe": str(folder / f"probe_{tokens}"), "name": f"add-{tokens}"} for tokens in TOKENS),
        {**along, "probe": str(folder / f"probe_{TOKENS[0]}"), "mode": "clamp", "name": "clamp"},
        {**along, "probe": str(folder / f"probe_{TOKENS[0]}"), "mode": "project_out", "name": "project-out"},
        *(
            {**along, "safe": str(folder / f"safe_{tokens}"), "mode": "replace", "name": f"replace-{tokens}"}
            for tokens in TOKENS
        ),
    ]


def free(settings: Settings) -> list[Any]:
    """Edits that hold no other dimension: of several lengths, in three rounds and in one, and behind the last block."""
    mist, once = {**edit(settings), "hold": False}, freed(settings)
    return [
        "none",
        *({**mist, "size": size, "name": f"free-{size}"} for size in (0.2, 0.3, 0.4, 0.6, 1.0)),
        *({**once, "layer": 2, "size": size, "name": f"once-{size}"} for size in (0.2, 0.3, 0.4)),
        *({**once, "size": size, "name": f"last-{size}"} for size in (0.2, 0.3, 0.4)),
        {**once, "hold": True, "name": "last-0.3-held"},
        *({**once, "wanted": "brake", "size": size, "name": f"last-brake-{size}"} for size in (0.5, 1.0)),
        {**edit(settings), "size": 1.0, "name": "held-1.0"},
        "failsafe-style",
    ]


def gated(settings: Settings) -> list[Any]:
    """Edits of three strengths."""
    free, strong = {**freed(settings), "name": "mist-free"}, {**strengthened(settings), "name": "mist-strong"}
    return ["none", edit(settings), free, strong]


def adapting(settings: Settings) -> list[Any]:
    """The same, and those whose strength follows the effect that is measured."""
    plain = gated(settings)
    return plain + [{**arm, "adapt": True, "name": f"{arm.get('name', arm['kind'])}-adapting"} for arm in plain[1:]]


def contrasted(settings: Settings) -> list[Any]:
    """The direction of recovery at several strengths, against itself and against chance."""
    steer = {"kind": "steer", "direction": str(settings.out / "contrast"), "when": "fired"}
    return [
        "none",
        *({**steer, "coef": coef, "name": f"contrast-{coef:g}"} for coef in (1.0, 2.0, 4.0)),
        {**steer, "kind": "reversed-steer", "coef": 2.0, "name": "contrast-reversed"},
        {**steer, "kind": "random-direction", "coef": 2.0, "name": "contrast-random"},
    ]


def learned(settings: Settings) -> list[Any]:
    """The edit that aims at what an expert would do otherwise (`deviation.py`), for the gate that is opened by that."""
    dims = ["dx", "dy", "dz", "gripper"]
    where = {"target": str(settings.out / "deviation" / "deviation"), "dims": dims, "otherwise": dims}
    mist = {**edit(settings), "wanted": "learned", "size": 1.0, **where}
    return ["none", "generic-slow", mist, *({**mist, "kind": kind} for kind in ("action-correction", *PLACEBOS))]


def raising(count: int = 4) -> list[list[int]]:
    """The neurons that raise dz most, by the direct path, at the first pictures of four tasks."""
    vla, suite, inputs = HookedVLA.from_pretrained("mini"), LiberoSuite("libero_spatial"), []
    for task in suite.tasks[:4]:
        env = LiberoEnv(task)
        env.reset(0)
        inputs.append(vla.prepare(env.observe(), task.instruction))
        env.close()
    effects = neuron_effects(vla, type(inputs[0]).cat(inputs))
    table = neuron_table(effects, 3 * count)
    found = table[(table["dim"] == "dz") & (table["effect"] > 0)].head(count)
    return [[int(row.layer), int(row.neuron)] for row in found.itertuples()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Settings, description=__doc__))
