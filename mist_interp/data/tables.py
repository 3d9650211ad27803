"""How does an episode become Parquet tables, and back?

Three kinds of table, all readable by pandas, pyarrow and `datasets` without this package:

    episodes      one row per episode: unit, outcome, forbidden and allowed contact events, what was let go
    queries       one row per policy query: chunk, executed actions, path of the hand, robot state, object poses,
                  scores, live edits
    activations   one row per query, one *column per site* of fixed-length float16 lists, one table per token group

A column per site is what makes "layer 17 of all episodes" a read of that layer only; float16 keeps the mantissa of
bfloat16 but not its range, so a value that does not fit is an error and never an infinity in the data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from mist_interp.data.records import Array, ContactRecord, EpisodeRecord, QueryRecord, ReleaseRecord, Unit

# Types in which activations are stored, and the largest number that each holds.
DTYPES = {name: float(np.finfo(name).max) for name in ("float16", "float32")}

# Full precision, so that an episode can be replayed bit for bit from its record.
_FLOATS = pa.list_(pa.float64())
_MATRIX = pa.list_(_FLOATS)

_CONTACTS = pa.list_(
    pa.struct(
        [
            ("start_step", pa.int32()),
            ("end_step", pa.int32()),
            ("body_robot", pa.string()),
            ("body_other", pa.string()),
            ("kind", pa.string()),
            ("peak_force", pa.float64()),
            ("impulse", pa.float64()),
            ("point", pa.list_(pa.float64())),
            ("normal", pa.list_(pa.float64())),
            ("start_force", pa.float64()),
            ("eef", pa.list_(pa.float64())),
            ("gain", pa.list_(pa.float64())),
            ("finger_speed", pa.float64()),
        ]
    )
)

EPISODE_SCHEMA = pa.schema(
    [
        ("episode", pa.string()),
        ("suite", pa.string()),
        ("task", pa.int32()),
        ("init_state", pa.int32()),
        ("perturbation", pa.string()),
        ("simulator_seed", pa.int64()),
        ("policy_seed", pa.int64()),
        ("arm", pa.string()),
        ("instruction", pa.string()),
        ("success", pa.bool_()),
        ("steps", pa.int32()),
        ("max_steps", pa.int32()),
        ("n_queries", pa.int32()),
        ("contacts", _CONTACTS),
        ("touches", _CONTACTS),
        (
            "releases",
            pa.list_(
                pa.struct(
                    [
                        ("step", pa.int32()),
                        ("body", pa.string()),
                        ("lifted", pa.bool_()),
                        ("landed_step", pa.int32()),
                        ("landed_on", pa.string()),
                        ("at_goal", pa.bool_()),
                    ]
                )
            ),
        ),
        ("seconds", pa.float64()),
        ("provenance", pa.string()),
    ]
)

QUERY_SCHEMA = pa.schema(
    [
        ("episode", pa.string()),
        ("query", pa.int32()),
        ("step", pa.int32()),
        ("chunk", _MATRIX),
        ("executed", _MATRIX),
        ("hand", _MATRIX),
        ("robot_state", _FLOATS),
        ("objects", pa.list_(pa.struct([("name", pa.string()), ("pose", _FLOATS)]))),
        ("scores", pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))),
        ("edits", pa.list_(pa.string())),
        ("state_hash", pa.string()),
        ("seconds_observe", pa.float64()),
        ("seconds_act", pa.float64()),
    ]
)


def episode_table(episode: EpisodeRecord) -> pa.Table:
    """One row of the episodes table."""
    row = {
        "episode": episode.key,
        **asdict(episode.unit),
        "arm": episode.arm,
        "instruction": episode.instruction,
        "success": episode.success,
        "steps": episode.steps,
        "max_steps": episode.max_steps,
        "n_queries": len(episode.queries),
        "contacts": [asdict(contact) for contact in episode.contacts],
        "touches": None if episode.touches is None else [asdict(touch) for touch in episode.touches],
        "releases": [asdict(release) for release in episode.releases],
        "seconds": episode.seconds,
        "provenance": json.dumps(dict(episode.provenance), sort_keys=True),
    }
    return pa.Table.from_pylist([row], schema=EPISODE_SCHEMA)


def query_table(episode: EpisodeRecord) -> pa.Table:
    """The rows of the queries table of one episode, in order."""
    rows = [
        {
            "episode": episode.key,
            "query": query.index,
            "step": query.step,
            "chunk": query.chunk.tolist(),
            "executed": query.executed.tolist(),
            "hand": None if query.hand is None else query.hand.tolist(),
            "robot_state": query.robot_state.tolist(),
            "objects": [{"name": name, "pose": pose.tolist()} for name, pose in query.objects.items()],
            "scores": [{"name": name, "value": float(value)} for name, value in query.scores.items()],
            "edits": list(query.edits),
            "state_hash": query.state_hash,
            "seconds_observe": query.seconds_observe,
            "seconds_act": query.seconds_act,
        }
        for query in episode.queries
    ]
    return pa.Table.from_pylist(rows, schema=QUERY_SCHEMA)


def activation_table(episode: EpisodeRecord, columns: Mapping[str, str], dtype: str = "float16") -> pa.Table:
    """The activations of one token group, one fixed-length list per site and query.

    Args:
        episode: every query must have every activation of `columns`.
        columns: name of the Parquet column -> name of the activation in the queries.
        dtype: type of the stored values, one of `DTYPES`.

    Raises:
        KeyError: a query lacks an activation.
        ValueError: a value is not finite, or the width changes between queries.
        OverflowError: a value is beyond the range of float16 (65504).
    """
    arrays: dict[str, pa.Array] = {
        "episode": pa.array([episode.key] * len(episode.queries), pa.string()),
        "query": pa.array([query.index for query in episode.queries], pa.int32()),
    }
    for column, name in columns.items():
        values = stored_as(dtype, _stacked(episode.queries, name), what=f"{name} of episode {episode.key}")
        arrays[column] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.table(arrays)


def column_matrix(column: pa.ChunkedArray) -> Float[Array, "rows width"]:
    """A column of fixed-length lists as one float32 matrix."""
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in column.chunks]
    return np.concatenate(parts, dtype=np.float32)


def stored_as(dtype: str, values: Array, what: str) -> Array:
    """`values` in the type in which they are stored.

    Raises:
        ValueError: a value is not finite.
        OverflowError: a value would become infinite.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"{what} contains values that are not finite; nothing was stored")
    largest, limit = float(np.abs(values).max(initial=0.0)), DTYPES[dtype]
    if largest > limit:
        raise OverflowError(f"{what} reaches {largest:.4g}, beyond {dtype}'s {limit:.5g}; nothing was stored")
    return values.astype(dtype)


def _stacked(queries: Sequence[QueryRecord], name: str) -> Array:
    rows = []
    for query in queries:
        if name not in query.activations:
            raise KeyError(f"query {query.index} has no activation {name!r}; it has {sorted(query.activations)}")
        rows.append(np.asarray(query.activations[name]).ravel())
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"activation {name!r} has several widths in one episode: {sorted(widths)}")
    return np.stack(rows)


def read_episode(
    episode: Mapping[str, Any], queries: Iterable[Mapping[str, Any]], activations: Mapping[str, Array]
) -> EpisodeRecord:
    """Record of one row of the episodes table, its rows of the queries table and its activations (n_queries, width)."""
    # Stores of layout 1 have neither "hand" nor "releases", and less in their contacts; "touches" came with layout 3.
    touches = episode.get("touches")
    unit = Unit(**{name: episode[name] for name in Unit.__dataclass_fields__})
    return EpisodeRecord(
        unit=unit,
        instruction=episode["instruction"],
        success=episode["success"],
        steps=episode["steps"],
        max_steps=episode["max_steps"],
        queries=tuple(
            QueryRecord(
                index=row["query"],
                step=row["step"],
                chunk=np.asarray(row["chunk"], dtype=np.float64),
                executed=np.asarray(row["executed"], dtype=np.float64),
                robot_state=np.asarray(row["robot_state"], dtype=np.float64),
                objects={item["name"]: np.asarray(item["pose"], dtype=np.float64) for item in row["objects"]},
                activations={name: values[number] for name, values in activations.items()},
                scores={item["name"]: item["value"] for item in row["scores"]},
                edits=tuple(row["edits"]),
                hand=None if row.get("hand") is None else np.asarray(row["hand"], dtype=np.float64),
                state_hash=row["state_hash"],
                seconds_observe=row["seconds_observe"],
                seconds_act=row["seconds_act"],
            )
            for number, row in enumerate(queries)
        ),
        contacts=tuple(read_contact(contact) for contact in episode["contacts"]),
        releases=tuple(ReleaseRecord(**release) for release in episode.get("releases") or ()),
        touches=None if touches is None else tuple(read_contact(touch) for touch in touches),
        arm=episode["arm"],
        seconds=episode["seconds"],
        provenance=json.loads(episode["provenance"]),
    )


def read_contact(row: Mapping[str, Any]) -> ContactRecord:
    """Record of one entry of the columns `contacts` and `touches`."""
    lists = {name: row.get(name) for name in ("point", "normal", "eef", "gain")}
    tuples = {name: None if values is None else tuple(values) for name, values in lists.items()}
    return ContactRecord(**{**row, **tuples})
