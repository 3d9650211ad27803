"""Does the translator learn what can be learnt, show its error on episodes it has not seen, and come back from disk?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_policies import queries, small

from mist_interp.analysis.lens import action_lens
from mist_interp.analysis.translator import READOUTS, TunedTranslator, compare_lenses, hold_out, lens_caches
from mist_interp.core.errors import UnknownName

EPISODES = [k // 2 for k in range(24)]


@pytest.fixture(scope="module")
def caches():
    vla = small()
    return lens_caches(vla, queries(vla, 24), batch=10)


def straight(vla):
    """A scope in which the blocks after the first add a constant, so that an affine map is all there is to learn."""
    generator = torch.Generator().manual_seed(1)
    added = {name: torch.randn(64, generator=generator) for name in ("attn_out", "mlp_out")}

    def constant(values, site):
        return added[site.hook.short].expand_as(values)

    return vla.hooks(*(((name, [1, 2, 3]), constant) for name in added))


def test_an_affine_network_is_translated_exactly():
    vla = small()
    inputs = queries(vla, 12)
    with straight(vla):
        translator = TunedTranslator.fit(vla, lens_caches(vla, inputs), EPISODES[:12], ridge=1e-9)
        lens = action_lens(vla, inputs, translator)
    assert float(translator.held_out.sel(layer=0).values) < 1e-6
    np.testing.assert_allclose(lens.sel(layer=0).values, lens.sel(layer=-1).values, atol=1e-3)


def test_a_large_ridge_leaves_the_states_and_gets_the_mean_right(caches):
    vla = small()
    translator = TunedTranslator.fit(vla, caches, EPISODES, ridge=1e9)
    assert translator.weights["2"].abs().max() < 1e-6
    held = hold_out(EPISODES, 0.25)
    states = torch.cat([cache["resid_post", 2].values for cache in caches])
    last = torch.cat([cache["resid_post", 3].values for cache in caches])
    torch.testing.assert_close(translator(states, "2")[~held].mean(0), last[~held].mean(0), atol=1e-4, rtol=0)


def test_the_error_shown_is_that_of_other_episodes(caches):
    """On noise there is nothing to learn, so a translator that judged itself on its own rows would look better."""
    vla = small()
    translator = TunedTranslator.fit(vla, caches, EPISODES, ridge=1e-6)
    held = hold_out(EPISODES, 0.25)
    states = torch.cat([cache["resid_post", 1].values for cache in caches])
    last = torch.cat([cache["resid_post", 3].values for cache in caches]).double()

    def left(rows):
        error = translator(states[rows], "1").double() - last[rows]
        return float(error.pow(2).sum() / (last[rows] - last[~held].mean(0)).pow(2).sum())

    shown = float(translator.held_out.sel(layer=1).values)
    assert shown == pytest.approx(left(held), rel=1e-4)
    assert shown > 1.05 * left(~held)


def test_episodes_are_never_split():
    groups = ["a", "b", "a", "c", "c", "b", "d"]
    for seed in range(5):
        held = hold_out(groups, 0.5, seed)
        inside = {g for g, h in zip(groups, held.tolist(), strict=True) if h}
        outside = {g for g, h in zip(groups, held.tolist(), strict=True) if not h}
        assert len(inside) == 2 and not inside & outside
    assert hold_out(["a", "b"], 0.99).sum() == 1 and hold_out(["a", "b"], 0.0).sum() == 1


def test_a_saved_translator_is_the_same(caches, tmp_path):
    vla = small()
    translator = TunedTranslator.fit(vla, caches, EPISODES)
    translator.save(tmp_path / "t")
    loaded = TunedTranslator.load(tmp_path / "t")
    assert loaded.layers == translator.layers == ("embed", "0", "1", "2")
    inputs = queries(vla)
    assert action_lens(vla, inputs, loaded).values.equals(action_lens(vla, inputs, translator).values)
    assert loaded.held_out.values.equals(translator.held_out.values)
    assert loaded.source["episodes"] == {"fitted": 9, "held out": 3}
    (tmp_path / "t/translator.json").write_text("{}")
    with pytest.raises(ValueError, match="no saved translator"):
        TunedTranslator.load(tmp_path / "t")


def test_the_comparison_tells_knowledge_from_chance():
    vla = small()
    with straight(vla):
        caches = lens_caches(vla, queries(vla, 24))
        table = compare_lenses(vla, caches, EPISODES, ridge=1e-9)
    assert table.axes["readout"] == list(READOUTS) and table.axes["layer"] == ["embed", "0", "1", "2", "3"]
    assert (table.sel(layer=-1, readout=["lens", "translated"]).values == 0).all()
    assert (table.sel(layer=-1, readout=["shuffled tokens", "other query"]).values > 0.2).all()
    error = table.values.mean("dim").sel(layer="1")
    assert error.sel(readout="translated") < 0.02 < error.sel(readout="lens")
    assert error.sel(readout="shuffled tokens") > 0.5 and error.sel(readout="other query") > 0.5


def test_errors(caches):
    vla = small()
    translator = TunedTranslator.fit(vla, caches, EPISODES)
    with pytest.raises(UnknownName, match="translated layer '3'"):
        translator(torch.zeros(1, 56, 64), "3")
    with pytest.raises(ValueError, match="at least two episodes"):
        TunedTranslator.fit(vla, caches, ["a"] * 24)
    with pytest.raises(ValueError, match="3 groups for 24 queries"):
        TunedTranslator.fit(vla, caches, ["a", "b", "c"])
    with pytest.raises(ValueError, match="empty"):
        TunedTranslator.fit(vla, [], [])
    discrete = small("discrete")
    with pytest.raises(ValueError, match="logit_lens"):
        compare_lenses(discrete, [], [])
