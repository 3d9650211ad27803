"""How does a user name an activation, for reading and for writing alike?

With a `Site`: one registered name (`mist_interp.core.hooks`), in one of these forms:

    "blocks.3.hook_resid_post"     the full name; "hook_" may be left out, and "blocks.-1.…" counts from the end
    ("resid_post", 3)              the short form with a layer, a list, a range or a slice of layers; -1 is the last
    "resid_post"                   the short form alone: all layers
    "blocks.*.attn.*"              a pattern with * ? [ ]: everything that matches
    lambda name: "ln" in name      a function of the full name: everything for which it is true

A `Catalogue` knows the layers that one policy has, and turns such keys into sites. It never returns an empty answer: a
name that is unknown, outside, or not available in this policy is an error that says what there is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from numbers import Integral
from typing import Any

from mist_interp.core.errors import UnknownName
from mist_interp.core.hooks import BY_PATTERN, HOOKS, ORDER, Hook, Stack

Layers = int | Sequence[int] | slice

_SHORT = {hook.short: hook for hook in HOOKS}
_REGEX = [(re.compile(re.escape(hook.pattern).replace(r"\{i\}", r"(-?\d+)") + "$"), hook) for hook in HOOKS]
_GLOB = re.compile(r"[*?\[\]]")


@dataclass(frozen=True)
class Site:
    """One place in the network, for reading and for writing: `Site("blocks.3.hook_resid_post")`.

    Hashable; `str(site)` is the full name and `Site(str(site)) == site`, so it can be a key in JSON. "hook_" may be
    left out when making one; the layer must be a plain number: counting from the end needs a policy (`Catalogue.one`).

    Raises:
        UnknownName: no such name; the message lists the nearest.
    """

    name: str

    def __post_init__(self) -> None:
        hook, layer = _match(self.name)
        if layer is not None and layer < 0:
            raise ValueError(f"{self.name!r} counts layers from the end, which needs a policy: vla.site({self.name!r})")
        object.__setattr__(self, "name", _full(hook, layer))

    @cached_property
    def hook(self) -> Hook:
        """Row of the registry: shape, meaning, stack."""
        return _match(self.name)[0]

    @cached_property
    def layer(self) -> int | None:
        """Layer within its stack, or None for a name without layers."""
        return _match(self.name)[1]

    @property
    def key(self) -> str | tuple[str, int]:
        """The short form: "embed" or ("resid_post", 3)."""
        return self.hook.short if self.layer is None else (self.hook.short, self.layer)

    @property
    def order(self) -> tuple[int, int, int]:
        """Sorts sites in the order in which the network computes them."""
        return _GROUP[self.hook.pattern], self.layer or 0, ORDER[self.hook.pattern]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Site({self.name!r})"


SiteKey = str | Site | tuple[str, Layers]
Choice = Callable[[str], bool]

# Where a stack begins, so that its names sort layer by layer and not name by name.
_START = {hook.stack: ORDER[hook.pattern] for hook in reversed(HOOKS) if hook.stack}
_GROUP = {hook.pattern: _START[hook.stack] if hook.stack else ORDER[hook.pattern] for hook in HOOKS}


@dataclass(frozen=True)
class Catalogue:
    """The sites of one policy.

    Attributes:
        depths: layers per stack; a missing stack has none.
        absent: patterns of the registry that this policy does not have, with the reason.
    """

    depths: Mapping[Stack, int]
    absent: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site, in the order in which the network computes them."""
        found = []
        for hook in HOOKS:
            if hook.pattern not in self.absent:
                layers = [None] if hook.stack is None else range(self.depths.get(hook.stack, 0))
                found += [Site(_full(hook, layer)) for layer in layers]
        return tuple(sorted(found, key=lambda site: site.order))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Full names of all sites."""
        return tuple(site.name for site in self.sites)

    @cached_property
    def _expanded(self) -> dict[str | Site, tuple[Site, ...]]:
        """Answers that were given before: a closed loop asks the same at every query."""
        return {}

    def one(self, key: SiteKey) -> Site:
        """The single site that `key` names.

        Raises:
            UnknownName: no such name or layer.
            ValueError: the key names several sites, or one that this policy does not have.
        """
        sites = self.expand(key)
        if len(sites) > 1:
            span = f"{len(sites)} sites, from {sites[0]} to {sites[-1]}"
            raise ValueError(f"{key!r} names {span}; name one: {sites[0].key!r}")
        return sites[0]

    def expand(self, keys: SiteKey | Choice | Iterable[SiteKey]) -> tuple[Site, ...]:
        """All sites that the keys name, or a function of the full name picks, each once, in the order of the network.

        Raises:
            UnknownName: a key that matches nothing.
            ValueError: nothing was asked for, or a site that this policy does not have.
        """
        single = isinstance(keys, str | Site) or is_pair(keys) or not isinstance(keys, Iterable)
        if single and isinstance(keys, str | Site):
            if keys not in self._expanded:
                self._expanded[keys] = tuple(sorted(set(self._expand(keys)), key=lambda site: site.order))
            return self._expanded[keys]
        listed = [keys] if single else list(keys)  # type: ignore[arg-type]  # told apart above
        if not listed:
            raise ValueError("no site was named; an empty list would capture or edit nothing")
        return tuple(sorted({site for key in listed for site in self._expand(key)}, key=lambda site: site.order))

    def describe(self, keys: SiteKey | Choice | Iterable[SiteKey] = "*") -> str:
        """Name, shape and meaning of the sites that the keys name, the layers of one name together. To be printed."""
        rows: dict[str, list[Site]] = {}
        for site in self.expand(keys):
            rows.setdefault(site.hook.pattern, []).append(site)
        lines = []
        for pattern, sites in rows.items():
            layers = [site.layer for site in sites if site.layer is not None]
            span = f"  [{layers[0]}..{layers[-1]}]" if len(layers) > 1 else ""
            name = pattern if len(layers) > 1 else str(sites[0])
            lines.append(f"{name}{span}  {sites[0].hook.shape}\n    {sites[0].hook.meaning}")
        return "\n".join(lines)

    def _expand(self, key: object) -> list[Site]:
        if isinstance(key, Site):
            return [self._present(key.hook, key.layer)]
        if isinstance(key, tuple) and is_pair(key):
            hook = _named(key[0])
            return [self._present(hook, layer) for layer in self._layers(hook, key[1])]
        if callable(key):
            picked = [site for site in self.sites if key(site.name)]
            if not picked:
                raise ValueError(f"{key!r} picks none of the {len(self.sites)} sites, {self.names[0]!r} and so on")
            return picked
        if not isinstance(key, str):
            raise UnknownName("site", key, self.names)
        text = key.strip()
        if _GLOB.search(text):
            return self._matching(text)
        try:
            hook, layer = _match(text)
        except UnknownName:
            if _plain(text) not in _SHORT and text not in BY_PATTERN:
                raise UnknownName("site", text, [*self.names, *_SHORT]) from None
            hook, layer = _named(text), None
        layers = range(self._depth(hook)) if layer is None and hook.stack else [layer]
        return [self._present(hook, layer) for layer in layers]

    def _matching(self, pattern: str) -> list[Site]:
        found = [s for s in self.sites if fnmatchcase(s.name, pattern) or fnmatchcase(_plain(s.name), pattern)]
        if not found:
            raise UnknownName("pattern of sites", pattern, self.names)
        return found

    def _layers(self, hook: Hook, layers: Layers) -> list[int]:
        if hook.stack is None:
            raise ValueError(f"{hook.pattern} has no layers; write {hook.short!r}")
        depth = self._depth(hook)
        if isinstance(layers, slice):
            picked = list(range(depth))[layers]
            if not picked:
                wanted = f"{layers.start}:{layers.stop}"
                raise ValueError(f"layers {wanted} of {hook.short} are none; there are 0..{depth - 1}")
            return picked
        return [int(layer) for layer in ([layers] if isinstance(layers, Integral) else list(layers))]  # type: ignore[arg-type]

    def _depth(self, hook: Hook) -> int:
        self._refuse_absent(hook)
        return self.depths.get(hook.stack, 0) if hook.stack else 0

    def _present(self, hook: Hook, layer: int | None) -> Site:
        self._refuse_absent(hook)
        if hook.stack is None or layer is None:
            return Site(_full(hook, None))
        depth = self._depth(hook)
        if not -depth <= layer < depth:
            raise UnknownName(f"layer of {hook.short}", layer, [str(i) for i in range(depth)])
        return Site(_full(hook, layer % depth))

    def _refuse_absent(self, hook: Hook) -> None:
        if hook.pattern in self.absent:
            raise ValueError(f"{hook.pattern} is not available: {self.absent[hook.pattern]}")


def is_pair(key: object) -> bool:
    """Whether `key` is a short name with layers, and not a list of two keys.

    Raises:
        ValueError: it can be neither, because its second part has no layer or something that is none.
    """
    if not (isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str)):
        return False
    layers = key[1]
    if is_whole(layers) or isinstance(layers, slice):
        return True
    listed = list(layers) if isinstance(layers, list | tuple | range) else []
    if listed and all(map(is_whole, listed)):
        return True
    if isinstance(layers, str | Site) or callable(layers) or (isinstance(layers, tuple) and is_pair(layers)):
        return False
    wrong = "names no layer" if isinstance(layers, list | tuple | range) and not listed else "has no such layers"
    raise ValueError(f"{key!r} {wrong}: give a whole number, a list, a range or a slice of them")


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or of numpy; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@lru_cache(maxsize=4096)
def _match(name: str) -> tuple[Hook, int | None]:
    """Row and layer of a full name, "hook_" optional."""
    stem, _, last = name.strip().rpartition(".")
    full = f"{stem}.{last}" if stem else last
    if not last.startswith("hook_"):
        full = f"{stem}.hook_{last}" if stem else f"hook_{last}"
    for regex, hook in _REGEX:
        if match := regex.match(full):
            return hook, int(match[1]) if hook.stack else None
    layer = re.search(r"\.(\d+)\.", name)
    raise UnknownName("site", name, [h.pattern.replace("{i}", layer[1] if layer else "{i}") for h in HOOKS])


def _named(short: str) -> Hook:
    """Row of a short form, "hook_" optional, or of a full pattern with {i}."""
    plain = short.strip().replace("hook_", "")
    if plain in _SHORT:
        return _SHORT[plain]
    if short in BY_PATTERN:
        return BY_PATTERN[short]
    raise UnknownName("site", short, [*_SHORT, *BY_PATTERN])


def _full(hook: Hook, layer: int | None) -> str:
    return hook.pattern if hook.stack is None else hook.pattern.replace("{i}", str(layer))


def _plain(name: str) -> str:
    return name.replace("hook_", "")
