"""What does a published data set, probe or direction say about itself?

The text between two marks is ours and is written anew at every push; the front matter and what people wrote around the
marks stay.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from mist_interp.data.manifest import CHOSEN, INPUTS, Manifest

BEGIN, END = "<!-- mist: begin -->", "<!-- mist: end -->"

SELECTED = {
    "iid": "`iid`: episodes were run as planned; rates may be computed.",
    "balanced": "`balanced`: episodes were chosen by outcome. **No success rate may be computed from them.**",
    CHOSEN: "`chosen`: episodes were picked one by one. **No success rate may be computed from them.**",
    INPUTS: "`inputs`: queries were given and nothing was run, so there are no outcomes.",
}

FILMS = (
    "\n\n### Films\n\n{} episodes have one, `videos/<suite>-t<task>/<episode>.mp4`: frame i shows both cameras, "
    "upright and side by side, as the policy saw them at query i (compressed, so not bit for bit)."
)

AUDITED = (
    "\n\n### Audit\n\n`audit.jsonl` holds {} findings of a knockout audit: a line of JSON per query and event that "
    "says without which dimensions of the actions a contact does not happen in the simulator. "
    "`mist_interp.probing.Risk(audit=True)` takes them for labels where geometry disagrees."
)

MEANINGS = {
    "episode": "key of the episode",
    "suite": "LIBERO suite",
    "task": "index of the task in the suite",
    "init_state": "index of the initial state",
    "perturbation": "what was changed in the scene, or `none`",
    "simulator_seed": "seed of the simulator",
    "policy_seed": "seed of the policy",
    "arm": "which intervention was live, or `none`",
    "instruction": "what the policy was told",
    "success": "whether the goal was reached",
    "steps": "control steps that were run",
    "max_steps": "limit of control steps",
    "n_queries": "how often the policy was asked",
    "contacts": "forbidden contacts: steps, bodies, peak force (N), impulse (N s), point (m), normal, hand's motion",
    "touches": "allowed contacts of the robot and of what it holds, likewise; null where not recorded",
    "releases": "what was let go, where it landed",
    "seconds": "wall time of the episode",
    "provenance": "versions of the software, as JSON",
    "query": "number of the policy query in its episode",
    "step": "control step at which the policy was asked",
    "chunk": "(chunk, 7) actions that the policy gave: dx dy dz droll dpitch dyaw gripper",
    "executed": "(executed, 7) actions that were sent, after clipping",
    "hand": "(executed, 13) pose and motion of the hand at each step",
    "robot_state": "what the policy was told about the robot",
    "objects": "name and pose (x y z and quaternion) of every object",
    "scores": "named numbers that an intervention computed",
    "edits": "edits that were live",
    "state_hash": "hash of the simulator's state",
    "seconds_observe": "wall time of rendering",
    "seconds_act": "wall time of the policy",
}


def rollout_card(
    name: str,
    manifest: Manifest,
    episodes: pd.DataFrame,
    schemas: Mapping[str, pa.Schema],
    existing: str = "",
    films: int = 0,
    findings: int = 0,
) -> str:
    """The card of a rollout data set.

    Args:
        name: `user/name`.
        manifest: of the store.
        episodes: the episodes table of all published episodes.
        schemas: `episodes` and `queries` -> columns.
        existing: the card that is there.
        films: how many episodes have one.
        findings: how many lines the knockout audit of the episodes has.
    """
    configs = [{"config_name": kind, "data_files": f"{kind}/*.parquet"} for kind in ("episodes", "queries")]
    configs[0]["default"] = True  # type: ignore[assignment]
    configs += [{"config_name": g.name, "data_files": f"activations/{g.name}/*.parquet"} for g in manifest.groups]
    front = {"tags": ["mist-interp", "robotics", "interpretability", "vision-language-action"], "configs": configs}
    parts = [
        f"# Rollouts: {name.split('/')[-1]}",
        "Episodes of a robot policy in LIBERO, with contacts, actions and hidden states.",
        _loading(name, manifest),
        "## Counts\n\n" + _counts(manifest, episodes),
        "## Selection\n\n" + SELECTED[manifest.selection],
        "## Layout\n\n"
        f"Layout version {manifest.version}; `manifest.json` has all settings. Episodes share the files of every "
        "table, no row group cuts one, and `packs.json` says which lies where.\n\n"
        + "\n\n".join(f"### `{kind}`\n\n{_columns(schema)}" for kind, schema in schemas.items())
        + _activations(manifest)
        + (FILMS.format(films) if films else "")
        + (AUDITED.format(findings) if findings else ""),
        "## Settings\n\n```json\n" + json.dumps(dict(manifest.settings), indent=2, sort_keys=True) + "\n```",
        "## Versions\n\n" + _versions(episodes),
    ]
    return merged(front, "\n\n".join(parts), existing)


def artefact_card(name: str, kind: str, shown: str, facts: Mapping[str, Any], existing: str = "") -> str:
    """The card of a probe or a direction.

    Args:
        name: `user/name`.
        kind: class of `mist_interp` that reads it.
        shown: one line that says what it is.
        facts: how it was made.
        existing: the card that is there.
    """
    front = {"library_name": "mist-interp", "tags": ["mist-interp", "interpretability", kind.lower()]}
    text = (
        f"# {kind}: {name.split('/')[-1]}\n\n`{shown}`\n\n"
        f'```python\nfrom mist_interp import {kind}\nit = {kind}.from_pretrained("{name}")\n```\n\n'
        f"## How it was made\n\n```json\n{json.dumps(dict(facts), indent=2, default=str)}\n```"
    )
    return merged(front, text, existing)


def merged(front: Mapping[str, Any], text: str, existing: str = "") -> str:
    """A card: keys of `existing`'s front matter win, its text outside the marks stays."""
    import yaml

    ours = f"{BEGIN}\n{text}\n{END}"
    header, body = _split(existing)
    theirs = yaml.safe_load(header) if header.strip() else {}
    keys = {**front, **(theirs if isinstance(theirs, dict) else {})}
    begin, end = body.find(BEGIN), body.find(END)
    if 0 <= begin < end:
        body = body[:begin] + ours + body[end + len(END) :]
    else:
        body = f"{ours}\n\n{body.strip()}" if body.strip() else ours
    return f"---\n{yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def _split(card: str) -> tuple[str, str]:
    lines = card.splitlines()
    if lines and lines[0].strip() == "---" and "---" in (rest := [line.strip() for line in lines[1:]]):
        end = rest.index("---") + 1
        return "\n".join(lines[1:end]), "\n".join(lines[end + 1 :])
    return "", card


def _loading(name: str, manifest: Manifest) -> str:
    text = f'```python\nfrom mist_interp.data import load_rollouts\nrollouts = load_rollouts("{name}")\n```'
    if manifest.groups:
        group = manifest.groups[0]
        site = group.sites[len(group.sites) // 2]
        text = (
            "One layer of all episodes, without this package:\n\n```python\n"
            "from datasets import load_dataset\n"
            f'rows = load_dataset("{name}", "{group.name}", columns=["episode", "query", "{site}"], split="train")\n'
            f'x = rows.with_format("numpy")["{site}"][:]  # (queries, width)\n'
            "```\n\nEverything, with it:\n\n" + text
        )
    return "## Loading\n\n" + text


def _counts(manifest: Manifest, episodes: pd.DataFrame) -> str:
    rows = [("episodes", len(episodes)), ("queries", int(episodes["n_queries"].sum()))]
    rows += [("tasks", episodes.groupby(["suite", "task"]).ngroups)]
    if manifest.selection != INPUTS:
        success = int(episodes["success"].sum())
        rows += [("successes", success), ("failures", len(episodes) - success)]
        rows += [("forbidden contact events", int(episodes["contacts"].map(len).sum()))]
        if "touches" in episodes:  # not in stores of an older layout
            rows += [("allowed contact events", int(episodes["touches"].dropna().map(len).sum()))]
    return _table(("", "number"), rows)


def _columns(schema: pa.Schema) -> str:
    rows = [(f"`{f.name}`", f"`{_type(f.type)}`", MEANINGS.get(f.name, "")) for f in schema]
    return _table(("column", "type", "meaning"), rows)


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    return "struct of " + ", ".join(f.name for f in kind) if pa.types.is_struct(kind) else str(kind)


def _activations(manifest: Manifest) -> str:
    if not manifest.groups:
        return ""
    rows = [
        (f"`{g.name}`", f"`{g.tokens}`", g.pool, g.dtype, ", ".join(f"`{site}`" for site in g.sites))
        for g in manifest.groups
    ]
    return (
        "\n\n### Activations\n\nOne configuration per token group: `episode`, `query`, and one column of fixed-length "
        "lists per site. `datasets` widens float16 to float32 in numpy; the values are the stored ones.\n\n"
        + _table(("configuration", "tokens", "pooled", "stored as", "sites"), rows)
    )


def _versions(episodes: pd.DataFrame) -> str:
    found = Counter(str(text) for text in episodes["provenance"])
    rows: dict[tuple[str, str], int] = {}
    for text, number in found.items():
        for key, value in json.loads(text).items():
            rows[key, str(value)] = rows.get((key, str(value)), 0) + number
    return _table(("software", "version", "episodes"), [(*key, number) for key, number in sorted(rows.items())])


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
