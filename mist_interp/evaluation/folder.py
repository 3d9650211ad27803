"""Where does a run keep its plan, its rows and its settings, so that the same command goes on where it was cut?

    config.json        settings and provenance of the first start
    plan.jsonl         every episode of the run
    episodes.jsonl     one line per finished or failed episode, on the disk before the next one starts
    queries/           <arm>/<unit>.parquet, one row per policy query, with the norm of each edit's change
    edits/             <arm>.safetensors: what the arm does to activations, for `mist_interp.tracing.load_edits`
    videos/            <arm>/<unit>.mp4
    episodes.parquet   the rows as one table, when a process ends
    summary.json       metrics with intervals

Resume = plan minus keys in `episodes.jsonl`. A run may be *extended* (more tasks, init states or arms) but
never changed: other settings in the same folder are an error that names them.
"""

from __future__ import annotations

import fcntl
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mist_interp.core.files import append_json_line, read_json_lines, write_atomic
from mist_interp.core.provenance import provenance
from mist_interp.data.records import EpisodeRecord
from mist_interp.evaluation.plan import PlannedEpisode
from mist_interp.evaluation.recorded import recorded
from mist_interp.tracing.interventions import Intervention, save_edits

Row = dict[str, Any]
# Counts up when rows or queries get columns that are needed later.
LAYOUT = 3
# A change of these changes rewards and contacts, so rows from both sides cannot be compared.
_SIMULATOR_FACTS = ("mujoco", "robosuite", "libero")
# Columns that hold more than one value.
_NESTED = ("events", "releases", "foreseen")
_COUNTS = ("steps", "max_steps", "queries", "queries_run", "active_queries", "edited_queries")


class SettingsDiffer(ValueError):
    """The folder holds a run with other settings; the text names every field."""


class ResultsFolder:
    """The files of one run. Opening it writes nothing; `start` does.

    Args:
        path: the folder, existing or not.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def start(self, settings: Row, plan: Sequence[PlannedEpisode], *, retry_errors: bool = False) -> None:
        """Write settings and plan, or check that they continue what is there.

        Args:
            settings: JSON-able, with `arms` = name -> config; everything that influences a row.
            plan: all episodes, also those of other shards.
            retry_errors: crashed episodes will be run again, so what was said without them does not hold.

        Raises:
            SettingsDiffer: the folder belongs to another run.
        """
        settings = json.loads(json.dumps(settings))
        if self.config_path.exists():
            before = self.config()
            self._check_settings(before["settings"], settings)
            self._check_simulator(before["provenance"])
            self._check_plan(self.plan(), plan)
            arms = {**before["settings"]["arms"], **settings["arms"]}
            config = {**before, "settings": {**settings, "arms": arms}}
        else:
            config = {"layout": LAYOUT, "settings": settings, "provenance": provenance()}
        write_atomic(self.config_path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        lines = [json.dumps(episode.as_row(), ensure_ascii=False) for episode in plan]
        write_atomic(self.path / "plan.jsonl", "\n".join(lines) + "\n")
        if self.missing(plan, retry_errors=retry_errors):  # what was said of fewer episodes must not stand beside more
            for name in ("summary.json", "report.html"):
                (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from adding rows, and from being here."""
        with self.rows_path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def config_path(self) -> Path:
        """`config.json`."""
        return self.path / "config.json"

    @property
    def rows_path(self) -> Path:
        """`episodes.jsonl`."""
        return self.path / "episodes.jsonl"

    def config(self) -> Row:
        """Settings and provenance.

        Raises:
            FileNotFoundError: there is no run in this folder.
            SettingsDiffer: another version of this package wrote it, whose rows hold something else.
        """
        if not self.config_path.exists():
            raise FileNotFoundError(f"{self.path} holds no evaluation run (no config.json)")
        config: Row = json.loads(self.config_path.read_text(encoding="utf-8"))
        if config.get("layout") != LAYOUT:
            raise SettingsDiffer(
                f"{self.path} holds a run in layout {config.get('layout', 1)}; this version reads and writes layout "
                f"{LAYOUT}, whose rows hold something else: give another folder, or run it again"
            )
        return config

    def plan(self) -> list[PlannedEpisode]:
        """All episodes of the run, in order."""
        return [PlannedEpisode.from_row(row) for row in read_json_lines(self.path / "plan.jsonl")]

    def rows(self) -> list[Row]:
        """One row per finished episode in the order of the plan; a retried episode has its last row."""
        latest = {row["key"]: row for row in read_json_lines(self.rows_path)}
        order = {episode.key: place for place, episode in enumerate(self.plan())}
        return sorted(latest.values(), key=lambda row: order.get(row["key"], len(order)))

    def missing(self, plan: Sequence[PlannedEpisode], *, retry_errors: bool = False) -> list[PlannedEpisode]:
        """The episodes of `plan` that have no row yet; with `retry_errors` also those whose row is an error."""
        done = {row["key"] for row in self.rows() if not (retry_errors and row["status"] == "error")}
        return [episode for episode in plan if episode.key not in done]

    def store(self, row: Row, queries: Sequence[Row] = ()) -> None:
        """Keep a finished episode: first its queries, then the row that says it is finished.

        Raises:
            OSError: the disk is full or not writable; earlier episodes are safe and the same command goes on.
        """
        try:
            if queries:
                buffer = io.BytesIO()
                pq.write_table(pa.Table.from_pylist(list(queries)), buffer, compression="zstd")
                write_atomic(self.queries_path(PlannedEpisode.from_row(row)), buffer.getvalue())
            append_json_line(self.rows_path, row)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot store {row['key']} in {self.path}: {error.strerror}; finished episodes are kept, "
                "make room and run the same command again",
            ) from error

    def queries_path(self, episode: PlannedEpisode) -> Path:
        """Parquet file with the queries of an episode."""
        return self.path / "queries" / episode.arm / f"{episode.unit.key}.parquet"

    def keep_edits(self, arm: str, edits: Sequence[Intervention]) -> None:
        """Store what an arm does to activations, tensors included, once per run."""
        path = self.path / "edits" / f"{arm}.safetensors"
        if not path.exists():
            save_edits(path, edits)

    def video_path(self, episode: PlannedEpisode) -> Path:
        """Video of an episode; exists only where videos were asked for."""
        return self.path / "videos" / episode.arm / f"{episode.unit.key}.mp4"

    def copy_video(self, of: PlannedEpisode, to: PlannedEpisode) -> None:
        """Give an episode the video of an equal one, where that has one."""
        if self.video_path(of).exists():
            write_atomic(self.video_path(to), self.video_path(of).read_bytes())

    def queries(self, episode: PlannedEpisode) -> pd.DataFrame:
        """One row per policy query of a finished episode."""
        return pd.read_parquet(self.queries_path(episode))

    def record(self, row: Row) -> EpisodeRecord:
        """The finished episode of a row, as data collection would have recorded it."""
        return recorded(row, pq.read_table(self.queries_path(PlannedEpisode.from_row(row))).to_pylist())

    def write_table(self) -> pd.DataFrame:
        """Write `episodes.parquet` from the rows and return it: one flat row per episode, nested facts dotted."""
        frame = episode_table(self.rows())
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomic(self.path / "episodes.parquet", buffer.getvalue())
        return frame

    def _check_settings(self, before: Row, now: Row) -> None:
        common = before["arms"].keys() & now["arms"].keys()
        old, new = (flat({**run, "arms": {name: run["arms"][name] for name in common}}) for run in (before, now))
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            listed = "\n".join(f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in changed)
            raise SettingsDiffer(
                f"{self.path} holds a run with other settings:\n{listed}\n"
                "give another folder, or the settings of the run to go on with it"
            )

    def _check_simulator(self, before: Mapping[str, str]) -> None:
        now = provenance()
        changed = [key for key in _SIMULATOR_FACTS if before.get(key) != now.get(key)]
        if changed:
            listed = "\n".join(f"  {key}: {before.get(key)} there, {now.get(key)} installed now" for key in changed)
            raise SettingsDiffer(f"{self.path} was begun with another simulator:\n{listed}\ngive another folder")

    def _check_plan(self, before: Sequence[PlannedEpisode], now: Sequence[PlannedEpisode]) -> None:
        lost = {episode.key for episode in before} - {episode.key for episode in now}
        if not lost:
            return
        axes = []
        old_rows, new_rows = [e.as_row() for e in before], [e.as_row() for e in now]
        for axis in ("arm", "suite", "task", "init_state", "perturbation", "simulator_seed", "policy_seed"):
            gone = {row[axis] for row in old_rows} - {row[axis] for row in new_rows}
            if gone:
                axes.append(f"  {axis}: {', '.join(str(value) for value in sorted(gone))}")
        listed = "\n".join(axes) or f"  {len(lost)} episodes"
        raise SettingsDiffer(
            f"{self.path} holds a run with more in its plan; the command leaves out\n{listed}\n"
            "a run can be extended but not shrunk: give another folder, or name all of it"
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested dictionaries with dotted keys: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    leaves: Row = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def episode_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows of `episodes.jsonl` as a table: provenance in columns `provenance.*`, lists as JSON text."""
    records = []
    for row in rows:
        record = flat({key: value for key, value in row.items() if key not in _NESTED})
        record |= {name: json.dumps(row.get(name)) for name in _NESTED}
        records.append(record)
    return pd.DataFrame(records)


def rows_of_table(frame: pd.DataFrame) -> list[Row]:
    """The rows that a table of `episode_table` was made from; what is missing in a row is None."""
    rows = []
    for record in frame.to_dict("records"):
        row: Row = {"provenance": {}}
        for name, value in record.items():
            missing = value is None or value != value
            if name in _NESTED:
                row[name] = json.loads(value)
            elif not name.startswith("provenance."):
                row[name] = None if missing else _whole(name, value)
            elif not missing:
                row["provenance"][name.removeprefix("provenance.")] = value
        rows.append(row)
    return rows


def _whole(name: str, value: Any) -> Any:
    # A column of whole numbers with gaps is one of floats in a table.
    counted = name in _COUNTS or name.startswith("events_") or name.endswith(("_query", "_step"))
    return int(value) if counted and isinstance(value, float) else value
