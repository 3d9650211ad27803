"""What must a reader be told before the numbers of a run?

Everything here is read from the settings and rows of a results folder, so a report says it of old runs as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mist_interp.data.policy_source import suite_keys

PLACEBO_METHOD = "random"
# Success rates that checkpoints are published with: OpenVLA-OFT (Kim, Finn and Liang 2025, table 1) and the fine-tuned
# OpenVLA of the same table, one checkpoint per suite.
PUBLISHED_RATES = {
    "openvla-7b-oft-finetuned-": {"spatial": 0.976, "object": 0.984, "goal": 0.979, "10": 0.945},
    "openvla-7b-finetuned-": {"spatial": 0.847, "object": 0.884, "goal": 0.792, "10": 0.537},
}


def partial_reasons(settings: Mapping[str, Any]) -> list[str]:
    """Why the settings alone make a run no result: another step limit than the suite's, lower or higher."""
    limit, usual = settings["max_steps"], settings["suite_max_steps"]
    return [] if limit == usual else [f"step limit {limit} instead of the suite's {usual}"]


def placebo_arms(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Arms that an edit has to beat: `placebo` in their config is true, or its `method` begins with "random"."""
    arms: Mapping[str, Mapping[str, Any]] = settings["arms"]
    return tuple(
        name
        for name, config in arms.items()
        if config.get("placebo") or str(config.get("method", "")).startswith(PLACEBO_METHOD)
    )


def published_rate(settings: Mapping[str, Any]) -> float | None:
    """Success rate that this checkpoint is published with on this suite; None for all others."""
    name = str(settings["model"].get("model_id", "")).rstrip("/").rpartition("/")[2]
    suite = settings["suite"].removeprefix("libero_")
    for kind, rates in PUBLISHED_RATES.items():
        if re.fullmatch(f"{kind}libero-{suite}", name):
            return rates.get(suite)
    return None


def warnings_of(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What casts doubt on a run without making it partial, one sentence each."""
    doubt = statistics_warning(settings)
    return ([doubt] if doubt else []) + mixed_software(rows)


def statistics_warning(settings: Mapping[str, Any]) -> str:
    """A sentence if actions are scaled with the statistics of another data set than the suite's, else empty."""
    key, suite = settings["model"].get("unnorm_key"), settings["suite"]
    if key is None or key in suite_keys(suite):
        return ""
    return f"actions are scaled with the statistics of {key}, but the suite is {suite}"


def mixed_software(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every fact of the software or machine in which finished episodes differ, with counts."""
    known = [row["provenance"] for row in rows if row["status"] == "ok" and row.get("provenance")]
    sentences = []
    for name in sorted({name for facts in known for name in facts}):
        counts = Counter(str(facts.get(name, "unknown")) for facts in known)
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({count})" for value, count in counts.most_common())
            sentences.append(f"episodes were run with different {name}: {listed}")
    return sentences
