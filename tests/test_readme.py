"""Do the README and the model card tell the truth: does the code run, do the paths exist, is every number measured?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CARD = ROOT / "mist_interp" / "models" / "mini" / "README.md"
STUDY = ROOT / "experiments" / "study" / "README.md"
PAGES = pytest.mark.parametrize("page", [README, CARD, STUDY], ids=["README", "model card", "study"])

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
PATH = re.compile(r"`(?:bash |python )?((?:mist_interp|experiments|benchmarks|tests)/[\w./-]*)`")
RUN_LINE = re.compile(r"^(?:bash|python) (\S+\.(?:sh|py))", re.MULTILINE)


@pytest.mark.sim
def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libero")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {number}", "exec", dont_inherit=True), names)
    names["env"].close()

    width, chunk = names["vla"].cfg.d_model, names["vla"].cfg.chunk
    assert names["dz"].shape == (1, chunk, width)
    assert names["bowl"].shape == (1, 1, width) and names["spot"].shape == (1, width)
    for changed in ("damped", "steered"):
        assert not names[changed].values.equal(names["action"].values), changed
    tour = names["result"]
    assert [row["status"] for row in tour.folder.rows()] == ["ok", "ok"]
    assert tour.summary()["partial"], "a short run must not pass for a result"
    steered = {row["arm"]: row for row in tour.folder.rows()}["steer"]
    assert steered["edited_queries"] == steered["queries"] == 2 and steered["median_edit_norm"] > 0


def test_the_tour_is_short() -> None:
    tour = BLOCK.findall(README.read_text(encoding="utf-8"))[0]
    lines = [line for line in tour.splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) <= 22
    assert len(README.read_text(encoding="utf-8").splitlines()) < 290


@PAGES
def test_every_path_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if "://" not in link and not (page.parent / link).exists()]
    named = {*PATH.findall(text), *RUN_LINE.findall(text)}
    assert len(named) > 3
    missing += [path for path in sorted(named) if not (ROOT / path).exists()]
    assert missing == []


@PAGES
def test_no_number_is_open(page: Path) -> None:
    """Filled by the scripts of experiments/mini; `python experiments/mini/card.py PAGE` lists what is open."""
    text = page.read_text(encoding="utf-8")
    places = re.findall(r"<!-- measured: ([\w-]+) -->(.*?)<!-- /measured -->", text, re.DOTALL)
    assert text.count("<!-- measured:") == len(places) > 0, "a mark is not closed"
    assert [name for name, filled in places if filled.strip() in ("", "not measured yet")] == []
