"""The page of features is one well-formed file that holds each picture once and shows where a feature fires."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mist_interp.analysis.result import Result, labelled
from mist_interp.analysis.sae.effects import Ablation, DoseResponse
from mist_interp.analysis.sae.features import FeatureTable, feature_table
from mist_interp.analysis.sae.quality import report
from mist_interp.analysis.sae.rows import TokenRows
from mist_interp.analysis.sae.splicing import Splice
from mist_interp.report.features import FeaturePage, write_feature_page
from tests.unit.analysis.test_sae_features import QUERIES, axes_sae
from tests.unit.report.test_page import Balance

DIMS = ["dx", "gripper"]


@pytest.fixture
def rows() -> TokenRows:
    x = np.zeros((QUERIES, 8, 5), dtype=np.float32)
    x[1::2, 2, 0] = [1, 2, 3]
    x[:, 6, 1] = 0.5
    return TokenRows((lambda: x.reshape(-1, 5),), 5, tokens_per_query=8)


@pytest.fixture
def table(rows: TokenRows) -> FeatureTable:
    labels = [f"{camera} r{k // 2}c{k % 2}" for camera in ("agentview", "wrist") for k in range(4)]
    return feature_table(axes_sae(), rows, tokens=labels, facts={"<odd>": [0, 1] * 3})


def pictures(query: int) -> dict[str, np.ndarray]:
    return {"agentview": np.full((14, 14, 3), 30 * query, np.uint8), "wrist": np.full((14, 14, 3), 9, np.uint8)}


GRIDS = {"agentview": (2, 2), "wrist": (2, 2)}
LABELS = [f"task <{query}>" for query in range(QUERIES)]


def test_the_page_is_one_file_with_everything_on_it(tmp_path: Path, table: FeatureTable, rows: TokenRows) -> None:
    numbers = list(table.features)
    dose = DoseResponse(
        Result(labelled(np.ones((2, 2, 2)), feature=numbers, coef=[-2.0, 2.0], dim=DIMS)),
        Result(labelled(np.full((2, 2), 0.75), feature=numbers, coef=[-2.0, 2.0])),
        Result(labelled(np.full((2, 1, 2), 0.25), feature=numbers, draw=[0], coef=[-2.0, 2.0])),
    )
    size, random = (
        labelled([0.125, 0.5], feature=numbers),
        labelled(np.full((2, 3), 0.0625), feature=numbers, draw=range(3)),
    )
    taken = Ablation(
        Result(labelled(np.ones((2, 2)), feature=numbers, dim=DIMS)), Result(size), Result(random), Result(size)
    )
    spliced = Splice(
        Result(labelled([[0.1, 0.2], [1.0, 2.0]], arm=["sae", "mean"], dim=DIMS)),
        Result(labelled([0.9, 0.0], arm=["sae", "mean"])),
        Result(labelled([1.0, 1.0], dim=DIMS)),
    )
    page = FeaturePage(
        table, pictures, GRIDS, LABELS, report(axes_sae(), rows), spliced, dose, taken, {0: "a & b"}, ["a note"]
    )
    text = write_feature_page(tmp_path / "features.html", page, "features of <mini>").read_text()
    checker = Balance()
    checker.feed(text)
    assert checker.wrong == [] and checker.open == []
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text) and "http" not in text
    assert "features of &lt;mini&gt;" in text and "task &lt;5&gt;" in text and "&lt;odd&gt;" in text
    assert "Feature 0: a &amp; b" in text and "steered: 0.75 sd at +2, random 0.25" in text
    assert "0.500 / 0.062" in text and "90 %" in text and "a note" in text


def test_a_picture_is_stored_once_and_the_strongest_token_is_framed(tmp_path: Path, table: FeatureTable) -> None:
    text = write_feature_page(tmp_path / "a.html", FeaturePage(table, pictures, GRIDS, LABELS), "t").read_text()
    urls = re.findall(r"\.(p\d+c\d+)\{background-image", text)
    assert len(urls) == len(set(urls)) == 3 + QUERIES  # feature 0 on three agentviews, feature 1 on all wrists
    card = text[text.index('id="f0"') :]
    frame = re.search(r'<div class="picture p5c0"><svg viewBox="0 0 2 2"[^>]*><rect x="0" y="1"[^>]*stroke=', card)
    assert frame, "token 2 of the agentview is row 1, column 0"


def test_tokens_that_are_no_patches_show_all_cameras(tmp_path: Path, table: FeatureTable) -> None:
    page = FeaturePage(table, pictures, {"action_read": (2, 4)}, LABELS)
    text = write_feature_page(tmp_path / "a.html", page, "t").read_text()
    assert 'class="shot two"' in text and "where, action_read" in text


def test_grids_that_do_not_cover_the_tokens_are_refused(table: FeatureTable) -> None:
    with pytest.raises(ValueError, match="the grids have 4 cells; a query has 8 tokens"):
        FeaturePage(table, pictures, {"agentview": (2, 2)}, LABELS)
