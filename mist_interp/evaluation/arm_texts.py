"""How is an arm written on a command line, or in a file?

    kind                              none, safe-stop, mist
    kind:key=value,key=value          generic-slow:factor=0.3    mist:layer=2,size=0.3,steps=0+1+2+3
    arms.yaml                         a list of such texts and of mappings {kind: mist, size: 0.3, name: strong}

Every kind is a function whose keyword arguments are the keys, so a new arm is one entry in `KINDS`, or an entry point
of the group `mist_interp.arms` in another package: its name is the kind, its object a function that gives an arm; what
is written for a key is read as JSON where it is JSON (`0.3`, `true`), else as text.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

from mist_interp.core.actions import ACTION_NAMES
from mist_interp.core.errors import UnknownName
from mist_interp.core.names import SiteKey
from mist_interp.evaluation.arms import (
    ActionCorrection,
    Arm,
    Chosen,
    ConceptNeurons,
    FailsafeStyle,
    GenericSlow,
    LearnedDirections,
    Mist,
    NoEdit,
    SafeStop,
    ShamTriggers,
    Steer,
    random_direction,
)
from mist_interp.evaluation.arms.mist import PLACEBOS
from mist_interp.probing.benefit import Benefit
from mist_interp.probing.deviation import Deviation
from mist_interp.probing.probe import Probe
from mist_interp.steering.direction import SteeringDirection

GROUP = "mist_interp.arms"
Reader = Callable[[Any], Any]


@dataclass(frozen=True)
class Kind:
    """One way to write an arm.

    Attributes:
        make: keyword arguments -> the arm.
        keys: key -> how its value is read; None takes any key (an entry point).
        needs: keys that must be given, with an example.
    """

    make: Callable[..., Arm]
    keys: Mapping[str, Reader] | None
    needs: Mapping[str, str]


def parse_arm(given: str | Mapping[str, Any]) -> Arm:
    """The arm that a text or a mapping describes.

    Raises:
        UnknownName: no such kind of arm, or a key that it does not have.
        ValueError: a value that does not fit its key, or a key that is missing.
    """
    if isinstance(given, str):
        kind, _, rest = given.partition(":")
        values = dict(_pair(given, part) for part in filter(None, rest.split(",")))
    else:
        values = {str(key): value for key, value in given.items()}
        if "kind" not in values:
            raise ValueError(f"arm {dict(given)!r} has no kind; possible: {', '.join(kinds())}")
        kind = str(values.pop("kind"))
    found = kinds()
    if kind not in found:
        raise UnknownName("arm", kind, found)
    return _make(kind, found[kind], values, given)


def parse_arms(texts: Iterable[str]) -> list[Arm]:
    """The arms of several texts; one that ends in .yaml or .yml is a file with a list of arms.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownName, ValueError: see `parse_arm`; or a file that holds no list.
    """
    arms: list[Arm] = []
    for text in texts:
        if not text.endswith((".yaml", ".yml")):
            arms.append(parse_arm(text))
            continue
        listed = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
        if not isinstance(listed, list) or not all(isinstance(one, str | dict) for one in listed):
            raise ValueError(f"{text} must hold a list of arms: texts such as safe-stop, or mappings with a kind")
        arms += [parse_arm(one) for one in listed]
    return arms


def kinds() -> dict[str, Kind]:
    """All kinds of arms, those of other packages included."""
    found = dict(KINDS)
    for point in entry_points(group=GROUP):
        if point.name not in found:
            found[point.name] = Kind(_loaded(point), None, {})
    return found


# -- reading values ------------------------------------------------------------------------------------------------


def _pair(text: str, part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals:
        raise ValueError(f"arm {text!r}: write {key}=value")
    return key, value


def _make(kind: str, how: Kind, given: Mapping[str, Any], text: Any) -> Arm:
    values: dict[str, Any] = {}
    keys = how.keys
    if keys is None:
        parameters = inspect.signature(how.make).parameters
        anything = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        keys = dict.fromkeys(given if anything else parameters, _json)
    for key, value in given.items():
        if key not in keys:
            raise UnknownName(f"key of arm {kind!r}", key, keys)
        try:
            values[key] = keys[key](value)
        except (ValueError, TypeError, FileNotFoundError) as error:
            raise ValueError(f"arm {text!r}: {key}={value!r} does not work: {error}") from error
    for key, example in how.needs.items():
        if key not in values:
            raise ValueError(f"arm {text!r} needs {key}, as in {kind}:{example}")
    return how.make(**values)


def _loaded(point: Any) -> Callable[..., Arm]:
    return lambda **values: point.load()(**values)


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _number(value: Any) -> float:
    return float(value)


def _whole(value: Any) -> int:
    if float(value) != int(float(value)):
        raise ValueError("a whole number is needed")
    return int(float(value))


def _yes(value: Any) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    word = str(value).lower()
    if word not in words:
        raise UnknownName("answer", word, words)
    return words[word]


def _listed(value: Any, read: Reader) -> tuple[Any, ...]:
    parts = value.split("+") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return tuple(read(part) for part in parts)


def _dims(value: Any) -> tuple[str, ...]:
    names = _listed(value, str)
    for name in names:
        if name not in ACTION_NAMES:
            raise UnknownName("action dimension", name, ACTION_NAMES)
    return names


def _amounts(value: Any) -> dict[str, float]:
    pairs = list(value.items()) if isinstance(value, Mapping) else [part.split(":") for part in value.split("+")]
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a dimension is named twice")
    return {str(name): float(amount) for name, amount in pairs}


def _neuron(value: Any) -> tuple[int, int]:
    layer, number = value.split(".") if isinstance(value, str) else value
    return int(layer), int(number)


def _optional_path(value: Any) -> Path | None:
    return None if value is None else Path(value)


def _site(layer: Any) -> SiteKey:
    return ("resid_post", _whole(layer))


def _mist(placebo: str = "", layer: SiteKey | None = None, **options: Any) -> Mist:
    if layer is not None:
        options["site"] = layer
    return Mist(placebo=placebo, **options)


def _correction(name: str = "action-correction", **options: Any) -> ActionCorrection:
    return ActionCorrection(_mist(**options), name)


def _wrong_direction(direction: SteeringDirection, coef: float = 1.0, **options: Any) -> Steer:
    return Steer(-direction, coef, **{"name": "reversed-steer", **options})


def _learned(
    probe: Probe | None = None, safe: Mapping[str, SteeringDirection] | None = None, **options: Any
) -> LearnedDirections:
    """A probe has directions, of which nothing can be put in place of a state; states are no directions."""
    mode = options.get("mode", "add")
    needed = "safe" if mode == "replace" else "probe"
    if (probe is None, safe is None) != (needed != "probe", needed != "safe"):
        raise ValueError(f"arm learned: mode={mode} takes {needed}=FOLDER and no other")
    made = safe or {output: probe.direction(output) for output in probe.outputs_}  # type: ignore[union-attr]
    return LearnedDirections(made, **options)


def _states(folder: str) -> dict[str, SteeringDirection]:
    """A state per output of the detector, each in a folder of that name."""
    found = {path.name: SteeringDirection.load(path) for path in sorted(Path(folder).glob("*")) if path.is_dir()}
    if not found:
        raise FileNotFoundError(f"{folder} has no folders, one per output such as dz, with a mean state in each")
    return found


def _random(direction: SteeringDirection | None = None, **options: Any) -> Arm:
    """The placebo of a fixed direction where one is given, else that of `mist`."""
    keys = {"coef", "seed", "when", "name"} if direction else _MIST
    for key in options:
        if key not in keys:
            like = "a fixed direction" if direction else "mist; with direction=FOLDER it is that of a fixed one"
            raise ValueError(f"arm random-direction: {key}= has no meaning in the placebo of {like}")
    return random_direction(direction, **options) if direction else _mist("random-direction", **options)


def _option(given: Mapping[str, Any]) -> tuple[Arm, Benefit]:
    if not isinstance(given, Mapping) or "benefit" not in given:
        raise ValueError("in a file, give a list of mappings: an arm each, with benefit: FOLDER beside its keys")
    values = dict(given)
    benefit = Benefit.load(values.pop("benefit"))
    return parse_arm(values), benefit


def _sham(arm: Any = "mist", **options: Any) -> ShamTriggers:
    return ShamTriggers(arm, **options)


_NAME: dict[str, Reader] = {"name": str}
_WHEN: dict[str, Reader] = {"when": str, **_NAME}
_STEERING: dict[str, Reader] = {"direction": SteeringDirection.load, "coef": _number, **_WHEN}
_MIST: dict[str, Reader] = {
    "layer": _site,
    "size": _number,
    "wanted": str,
    "shift": _amounts,
    "target": Deviation.load,
    "dims": _dims,
    "otherwise": _dims,
    "generic": _yes,
    "steps": partial(_listed, read=_whole),
    "hold": _yes,
    "rounds": _whole,
    "stride": _number,
    "adapt": _yes,
    "gains": partial(_listed, read=_number),
    "seed": _whole,
    **_WHEN,
}
_FOLDER = {"direction": "direction=runs/direction,coef=2"}
KINDS: Mapping[str, Kind] = {
    "none": Kind(NoEdit, {}, {}),
    "safe-stop": Kind(SafeStop, _WHEN, {}),
    "generic-slow": Kind(GenericSlow, {"factor": _number, **_WHEN}, {}),
    "failsafe-style": Kind(
        FailsafeStyle, {"up": _number, "back": _number, "queries": _whole, "pause": _whole, **_NAME}, {}
    ),
    "mist": Kind(_mist, _MIST, {}),
    "action-correction": Kind(_correction, _MIST, {}),
    **{kind: Kind(partial(_mist, kind), _MIST, {}) for kind in PLACEBOS},
    "random-direction": Kind(_random, {**_MIST, **_STEERING}, {}),
    "sham-triggers": Kind(
        _sham,
        {
            "arm": parse_arm,
            "of": _optional_path,
            "like": str,
            "exact": _yes,
            "rate": _number,
            "seed": _whole,
            **_NAME,
        },
        {},
    ),
    "learned": Kind(
        _learned,
        {"probe": Probe.load, "safe": _states, "mode": str, "coef": _number, "high": _number, **_WHEN},
        {},
    ),
    "chosen": Kind(
        Chosen,
        {"among": partial(_listed, read=_option), **_NAME},
        {"among": "among=..., in a file a list of arms with benefit: FOLDER each"},
    ),
    "steer": Kind(Steer, _STEERING, _FOLDER),
    "constant-steer": Kind(partial(Steer, when="always", name="constant-steer"), _STEERING, _FOLDER),
    "reversed-steer": Kind(_wrong_direction, _STEERING, _FOLDER),
    "concept-neurons": Kind(
        ConceptNeurons,
        {"neurons": partial(_listed, read=_neuron), "value": _number, "tokens": str, **_WHEN},
        {"neurons": "neurons=2.17+3.40"},
    ),
}
"""Kind -> (what makes the arm, how the value of each key is read, what must be given)."""
