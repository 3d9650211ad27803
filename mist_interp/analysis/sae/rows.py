"""Which activations does a sparse autoencoder see, and in which order, when they do not fit into memory?

One row per token. `TokenRows` is a list of blocks (one per stored episode) that are read one at a time, and knows the
start states that they come from. An epoch goes through the blocks in a random order and mixes their rows in a buffer:
as soon as the buffer is full, it is shuffled and half of it is handed out, so a batch holds rows of many episodes while
no more than the buffer and one block are in memory. An epoch is a function of (seed, number of the epoch) alone; that
is what makes an interrupted training go on with the very batches that it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from mist_interp.core.names import Site, SiteKey
from mist_interp.data.activation_set import ActivationSet, StartState, start_states, unit_of_episode
from mist_interp.data.records import Array
from mist_interp.data.store import RolloutStore

BUFFER_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of one site, one per token, in blocks.

    Attributes:
        blocks: functions that read one block each, (rows, width).
        width: of a row.
        tokens_per_query: rows of one query, which stand together, in the order of the tokens.
        site: where the rows were read; None for rows from elsewhere.
        tokens: token selector under which they were read.
        trained_on: start states that the rows come from.
        source: facts about the data that travel into what is fitted on it.
    """

    blocks: tuple[Callable[[], Float[Array, "rows width"]], ...]
    width: int
    tokens_per_query: int = 1
    site: Site | None = None
    tokens: str = "action_read"
    trained_on: frozenset[StartState] = frozenset()
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("there are no rows: no block was given")

    @classmethod
    def of_array(cls, x: Float[Array, "rows width"], site: SiteKey | None = None, tokens: str = "all") -> TokenRows:
        """Rows that are in memory.

        Raises:
            ValueError: not a matrix of finite numbers, or empty.
        """
        x = checked(x)
        return cls((lambda: x,), x.shape[1], site=_site(site), tokens=tokens)

    @classmethod
    def of_set(cls, rows: ActivationSet, width: int | None = None) -> TokenRows:
        """Rows of an `ActivationSet`; one that keeps all tokens side by side (`flat`) is cut into its tokens.

        Args:
            rows: the set.
            width: of one token, needed for a flat set.

        Raises:
            ValueError: the rows are not a whole number of tokens of this width.
        """
        per_query = _tokens_per_row(rows.x.shape[1], width, rows.pool)
        x = checked(rows.x).reshape(len(rows) * per_query, -1)
        return cls((lambda: x,), x.shape[1], per_query, rows.site, rows.tokens, rows.start_states, dict(rows.source))

    @classmethod
    def of_store(
        cls,
        store: RolloutStore,
        site: SiteKey,
        tokens: str = "action_read",
        pool: str = "flat",
        width: int | None = None,
    ) -> TokenRows:
        """Rows of a rollout store, read episode by episode.

        Args:
            store: rollouts collected with this site, these tokens and this pooling.
            site: e.g. `("resid_post", 1)`.
            tokens: e.g. `vision`, `action_read`.
            pool: `flat` keeps every token a row of its own; with `mean`, `first` and `last` a query is one row.
            width: of one token, needed for `flat`; `vla.cfg.d_model` in the residual stream.

        Raises:
            UnknownName: the store does not have them.
            ValueError: no finished episode, or `width` does not fit.
        """
        keys = store.keys
        if not keys:
            raise ValueError(f"no finished episode in {store.folder}")
        found = store.group(tokens, pool).one(site)
        stored = store.only(keys[:1]).load(found, tokens, pool)[0].shape[1]
        per_query = _tokens_per_row(stored, width, pool)

        def read(key: str) -> Float[Array, "rows width"]:
            x = store.only([key]).load(found, tokens, pool)[0]
            return checked(x).reshape(len(x) * per_query, -1)

        states = start_states(unit_of_episode(store).values())
        blocks = tuple(partial(read, key) for key in keys)
        return cls(blocks, stored // per_query, per_query, found, tokens, states, dict(store.manifest.settings))

    def in_order(self) -> Iterator[Float[Array, "rows width"]]:
        """The blocks, as they are."""
        for block in self.blocks:
            yield block()

    def all(self) -> Float[Array, "rows width"]:
        """All rows in memory, in order."""
        return np.concatenate(list(self.in_order()))

    def epoch(
        self, number: int, batch_size: int, seed: int = 0, buffer_rows: int = BUFFER_ROWS
    ) -> Iterator[Float[Array, "batch width"]]:
        """All rows once in mixed order, in batches of one size; what is left at the end stays out of this epoch.

        Args:
            number: of the epoch; another one mixes otherwise.
            batch_size: rows per batch; all rows where there are fewer.
            seed: of the order.
            buffer_rows: rows to mix among; at least two batches are used.
        """
        rng = np.random.default_rng([seed, number])
        waiting: list[Array] = []
        count, given = 0, 0
        limit = max(buffer_rows, 2 * batch_size)
        for place in rng.permutation(len(self.blocks)):
            block = self.blocks[place]()
            waiting.append(block)
            count += len(block)
            if count >= limit:
                mixed = rng.permutation(np.concatenate(waiting))
                out = len(mixed) // 2 // batch_size * batch_size
                yield from np.split(mixed[:out], range(batch_size, out, batch_size))
                waiting, count, given = [mixed[out:]], len(mixed) - out, given + out
        mixed = rng.permutation(np.concatenate(waiting))
        batch_size = batch_size if given else min(batch_size, len(mixed))
        for start in range(0, len(mixed) - batch_size + 1, batch_size):
            yield mixed[start : start + batch_size]


def split_by_start_state(
    store: RolloutStore, held_out: float = 0.2, seed: int = 0
) -> tuple[RolloutStore, RolloutStore]:
    """Two views of a store, for fitting and for judging; a start state and all its replays are on one side.

    Args:
        store: the rollouts.
        held_out: share of the start states for the second view; at least one on either side.
        seed: of the draw.

    Raises:
        ValueError: `held_out` is not between 0 and 1, or there are fewer than two start states.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; it is a share between 0 and 1")
    units = unit_of_episode(store)
    states = sorted(start_states(units.values()))
    if len(states) < 2:
        raise ValueError(f"a split needs at least two start states; the store has {len(states)}")
    count = min(max(round(held_out * len(states)), 1), len(states) - 1)
    chosen = {states[place] for place in np.random.default_rng(seed).choice(len(states), count, replace=False)}
    judged = {unit for unit in units.values() if (unit.suite, unit.task, unit.init_state) in chosen}
    return store.where(units={*units.values()} - judged), store.where(units=judged)


def checked(x: Any) -> Float[Array, "rows width"]:
    """A float32 matrix of finite numbers with at least one row.

    Raises:
        ValueError: it is something else.
    """
    x = np.asarray(x, dtype=np.float32)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"activations have shape {x.shape}; expected (rows, width) with at least one row")
    if not np.isfinite(x).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(x))} of the activations are not finite numbers")
    return x


def _tokens_per_row(stored: int, width: int | None, pool: str) -> int:
    if width is None:
        if pool == "flat":
            raise ValueError(
                f"a flat row of {stored} numbers holds the tokens side by side: give the width of one token "
                "(in the residual stream width=vla.cfg.d_model)"
            )
        return 1
    if width < 1 or stored % width:
        raise ValueError(f"rows of {stored} numbers are not a whole number of tokens of width {width}")
    return stored // width


def _site(key: SiteKey | None) -> Site | None:
    if key is None or isinstance(key, Site):
        return key
    if isinstance(key, str):
        return Site(key)
    raise ValueError(f"{key!r} may need a policy to be understood; give vla.site({key!r})")
