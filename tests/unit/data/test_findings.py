"""Findings: read in one order, one per event, and told apart from those that asked something else."""

from __future__ import annotations

from pathlib import Path

from mist_interp.core.files import append_json_line
from mist_interp.data.findings import asked_otherwise, findings_text, read_findings, sorted_findings


def row(episode: str = "a", step: int = 8, event: int = 12, asked: str = "0a", **more: object) -> dict[str, object]:
    return {"episode": episode, "step": step, "event": event, "rule": "r", "asked": asked, **more}


def test_the_last_line_on_an_event_counts_and_the_order_is_fixed(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert read_findings(path) == []
    rows = [row("b", asked="old"), row(event=20), row(step=16), row("b", share=0.1), row(event=9, name="é")]
    for each in rows:
        append_json_line(path, each)
    with path.open("a") as file:
        file.write('{"cut')
    there = [rows[4], rows[1], rows[2], rows[3]]
    assert read_findings(path) == there and read_findings(path, ["b", "c"]) == [rows[3]]
    path.write_text(findings_text(reversed(there)), encoding="utf-8")
    assert read_findings(path) == there
    assert findings_text(sorted_findings(read_findings(path))) == findings_text(there)


def test_which_episodes_were_asked_otherwise() -> None:
    theirs = [row("a"), row("a", step=16), row("b", asked="1b")]
    assert asked_otherwise([row("a", event=99), row("b", step=16), row("c", asked="9")], theirs) == []
    assert asked_otherwise([row("a", asked="1"), row("a", step=16, asked="1"), row("b")], theirs) == ["a", "b"]
    assert (
        asked_otherwise([row("d", rule="s"), row("e")], theirs) == ["d"]
        and asked_otherwise([row("d", rule="s")], []) == []
    )
