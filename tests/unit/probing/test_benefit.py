"""The benefit of acting: a planted cause is found, the promise about spoilt units holds, and leaks are refused."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mist_interp.core.names import Site
from mist_interp.data.records import Unit
from mist_interp.probing import benefit as module
from mist_interp.probing.benefit import Benefit, TwinGain

SITE = Site("blocks.2.hook_resid_post")
WIDTH = 6


def twins(count: int, seed: int, first: int = 0, luck: float = 0.2) -> list[TwinGain]:
    """Acting saves where the third number is high and spoils where it is low, but for luck."""
    draw = np.random.default_rng(seed)
    found = []
    for place in range(count):
        row = draw.normal(size=WIDTH)
        gain = int(np.sign(round(row[2] + luck * draw.normal())))
        found.append(TwinGain(Unit("libero_spatial", place % 10, first + place // 10), row, gain))
    return found


def fitted(count: int = 100) -> Benefit:
    return Benefit(("resid_post", 2)).fit(twins(count, 0), SITE)


def test_a_planted_cause_is_found_in_other_units() -> None:
    head, others = fitted(), twins(200, 1, first=10)
    predicted = head.predict(np.stack([twin.row for twin in others]))
    assert np.corrcoef(predicted, [twin.gain for twin in others])[0, 1] > 0.8
    assert np.argmax(np.abs(head.weights_)) == 2
    assert head.source_["saved"] + head.source_["neither"] + head.source_["spoilt"] == head.source_["twins"] == 100


def test_of_the_units_that_acting_spoils_no_more_are_acted_upon_than_promised() -> None:
    head, alpha, acted, spoilt = fitted(), 0.2, 0, 0
    for turn in range(60):
        head.calibrate(twins(60, 100 + turn, first=10), alpha)
        for twin in twins(40, 1000 + turn, first=20):
            spoilt += twin.gain < 0
            acted += twin.gain < 0 and head.allows(float(head.predict(twin.row[None])[0]))
    rate, error = acted / spoilt, math.sqrt(alpha * (1 - alpha) / spoilt)
    assert rate <= alpha + 3 * error and rate >= alpha - 1 / 10  # not by never acting


def test_without_a_limit_or_with_too_few_spoilt_units_nothing_is_acted_upon() -> None:
    head = fitted()
    assert not head.allows(1e9) and str(head) == "not calibrated: never acts"
    head.calibrate([twin for twin in twins(30, 5, first=10) if twin.gain >= 0], 0.1)
    assert not head.allows(1e9) and str(head) == "cannot certify alpha = 0.1 with 0 spoilt units: never acts"


def test_a_limit_may_be_given_which_promises_nothing(tmp_path: Path) -> None:
    head = fitted().calibrate(twins(60, 3, first=20), 0.2).act_above(0.0)
    assert head.allows(0.01) and not head.allows(0.0) and (head.alpha_, head.harmed_) == (None, 0)
    assert str(head) == "acts above 0 at the trigger, which promises nothing"
    head.check_units([Unit("libero_spatial", 0, 20)])  # it was not set there
    head.save(tmp_path)
    assert Benefit.load(tmp_path).config() == head.config()
    with pytest.raises(ValueError, match="finite"):
        head.act_above(float("nan"))
    with pytest.raises(ValueError, match="call fit first"):
        Benefit(("resid_post", 2)).act_above(0.0)


def test_more_than_one_thing_may_go_wrong() -> None:
    both = [TwinGain(twin.unit, twin.row, 2 * twin.gain) for twin in twins(100, 0)]
    head = Benefit(("resid_post", 2)).fit(both, SITE)
    once = fitted()
    np.testing.assert_allclose(head.predict(np.eye(WIDTH)), 2 * once.predict(np.eye(WIDTH)))
    assert head.source_ == once.source_


def test_it_is_not_calibrated_on_what_it_was_fitted_on_nor_used_there() -> None:
    head = fitted()
    with pytest.raises(ValueError, match="in the training and in the evaluation set"):
        head.calibrate(twins(20, 3, first=5), 0.2)
    head.calibrate(twins(60, 3, first=20), 0.2)
    for used in (0, 20):
        with pytest.raises(ValueError, match=f"init {used}"):
            head.check_units([Unit("libero_spatial", 0, used)])
    head.check_units([Unit("libero_spatial", 0, 40)])


def test_nothing_is_said_before_it_is_fitted() -> None:
    head = Benefit(("resid_post", 2))
    for ask in (lambda: head.predict(np.zeros((1, WIDTH))), lambda: head.calibrate(twins(20, 1), 0.2)):
        with pytest.raises(ValueError, match="call fit first"):
            ask()
    assert str(head) == "not fitted"


def test_gains_that_are_all_the_same_teach_nothing() -> None:
    with pytest.raises(ValueError, match=r"gains \[1\] teach no difference"):
        Benefit(("resid_post", 2)).fit([twin for twin in twins(50, 0) if twin.gain > 0], SITE)


@pytest.mark.parametrize("spoilt", [True, False])
def test_it_comes_back_as_it_was_saved(tmp_path: Path, spoilt: bool) -> None:
    head = fitted().calibrate([t for t in twins(60, 3, first=20) if spoilt or t.gain >= 0], 0.2)
    head.save(tmp_path)
    again, rows = Benefit.load(tmp_path), np.random.default_rng(9).normal(size=(5, WIDTH))
    assert np.array_equal(again.predict(rows), head.predict(rows)) and again.config() == head.config()
    assert (again.threshold_, again.trained_on_, str(again)) == (head.threshold_, head.trained_on_, str(head))


def test_it_reads_the_tokens_it_was_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    head = fitted()
    asked = []
    row = torch.arange(6.0)[None]
    monkeypatch.setattr(module, "pooled", lambda cache, *where: asked.append(where) or row)
    assert head.of(SimpleNamespace()) == pytest.approx(float(head.predict(row.double().numpy())[0]))
    assert asked == [(("resid_post", 2), "action_read", "mean")] and head.sites == (("resid_post", 2),)
