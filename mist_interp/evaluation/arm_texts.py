"""How is an arm written on a command line?

`kind` or `kind:key=value,key=value`, e.g. `none`, `steer:direction=runs/direction,coef=2`,
`random-direction:direction=runs/direction,coef=2,seed=1,name=random-1`. Every kind here is a function whose
keyword arguments are the keys, so a new arm is one entry in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mist_interp.core.errors import UnknownName
from mist_interp.evaluation.arms import Arm, NoEdit, Steer, random_direction
from mist_interp.steering.direction import SteeringDirection


def parse_arm(text: str) -> Arm:
    """The arm that a text describes.

    Raises:
        UnknownName: no such kind of arm, or a key that it does not have.
        ValueError: a value that does not fit its key, or a key that is missing.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise UnknownName("arm", kind, KINDS)
    make, keys = KINDS[kind]
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in keys:
            raise UnknownName(f"key of arm {kind!r}", key, keys)
        if not equals:
            raise ValueError(f"arm {text!r}: write {key}=value")
        try:
            values[key] = keys[key](value)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"arm {text!r}: {key}={value!r} does not work: {error}") from error
    if "direction" in keys and "direction" not in values:
        raise ValueError(f"arm {text!r} needs direction=FOLDER, as in {kind}:direction=runs/direction,coef=2")
    return make(**values)


Reader = Callable[[str], Any]
_STEERING: dict[str, Reader] = {"direction": SteeringDirection.load, "coef": float, "when": str, "name": str}
KINDS: Mapping[str, tuple[Callable[..., Arm], Mapping[str, Reader]]] = {
    "none": (NoEdit, {}),
    "steer": (Steer, _STEERING),
    "random-direction": (random_direction, {**_STEERING, "seed": int}),
}
"""Kind -> (what makes the arm, key -> how its value is read)."""
