"""Does the lens end in the action itself, and say what the head would say of every layer?"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_policies import queries, small

from mist_interp.analysis.lens import action_lens, logit_lens
from mist_interp.analysis.translator import lens_caches

VARIANTS = ["l1", "discrete", "base"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_last_layer_is_the_action_bit_for_bit(attention):
    vla = small(attention=attention)
    inputs = queries(vla)
    lens = action_lens(vla, inputs)
    assert lens.axes["layer"] == ["embed", "0", "1", "2", "3"]
    assert np.array_equal(lens.sel(layer=-1).values.values, vla(inputs).values.numpy())
    error = lens.error_to_final()
    assert (error.sel(layer=3).values == 0).all() and (error.sel(layer=[0, 1, 2]).values > 0).all()


@pytest.mark.parametrize("variant", ["discrete", "base"])
def test_the_last_layer_of_the_logit_lens_is_the_action_where_the_policy_says_a_bin(variant):
    vla = small(variant)
    inputs = queries(vla, 4)
    action, lens = vla(inputs), logit_lens(vla, inputs)
    vocabulary = vla.policy.config.bin_vocab_size
    said = (action.token_ids < vocabulary) & (action.token_ids >= vocabulary - 256)
    assert said.any() and not said.all()
    final = lens.top.sel(layer=3).values.values
    assert np.array_equal(final[said], action.values[said].numpy())
    assert np.array_equal(action_lens(vla, inputs).values, lens.top.values)


@pytest.mark.parametrize("variant", ["discrete", "base"])
def test_probabilities_of_the_logit_lens(variant):
    vla = small(variant)
    lens = logit_lens(vla, queries(vla))
    assert ((lens.entropy.values > 0) & (lens.entropy.values <= math.log(256) + 1e-9)).all()
    if variant == "discrete":  # empty placeholders know nothing
        assert lens.entropy.sel(layer="embed", step="t3", dim="dx").values.values == pytest.approx(math.log(256))
    assert ((lens.outside.values >= 0) & (lens.outside.values <= 1)).all()
    last = lens.outside.sel(layer=-1).values
    assert 0.05 < float(last.mean()) < 0.95


def test_the_expected_action_is_the_mean_over_the_bins():
    vla = small("discrete")
    inputs = queries(vla)
    _, cache = vla.run_with_cache(inputs, names=[("resid_post", 1)])
    logits = vla.policy.language_model.lm_head(vla.policy.language_model.model.norm(cache["resid_post", 1].values))
    vocabulary = vla.policy.config.bin_vocab_size
    probabilities = logits[..., vocabulary - 256 : vocabulary].double().softmax(-1)
    places = cache.layout.select("action_read").index
    probabilities = probabilities.gather(1, places[..., None].expand(-1, -1, 256)).flip(-1)  # smallest action first
    centres = torch.cat([-1 + (2 * torch.arange(255) + 1) / 255, torch.tensor([1 - 1 / 255])]).double()
    gripper = (probabilities * centres).sum(-1).reshape(2, 8, 7)[..., 6]  # its number is not un-normalised
    found = logit_lens(vla, inputs).expected.sel(layer=1, dim="gripper").values.values
    np.testing.assert_allclose(found, gripper, atol=1e-6)


def test_an_early_layer_is_what_the_policy_does_if_the_later_ones_are_skipped():
    vla = small()
    inputs = queries(vla)

    def nothing(values, site):
        return torch.zeros_like(values)

    lens = action_lens(vla, inputs)
    with vla.hooks(*(((name, [2, 3]), nothing) for name in ("attn_out", "mlp_out"))):
        without = vla(inputs)
    np.testing.assert_allclose(lens.sel(layer=1).values, without.values, atol=1e-5)


def test_the_norm_is_computed_anew_for_every_layer():
    """With the last layer's scale an early layer, whose stream is small, would look like nothing at all."""
    vla = small()
    inputs = queries(vla)
    lens = action_lens(vla, inputs)
    with vla.hooks((("resid_post", 1), lambda values, site: 5 * values)):
        scaled = action_lens(vla, inputs)
    np.testing.assert_allclose(scaled.sel(layer=1).values, lens.sel(layer=1).values, atol=1e-4)


def test_a_cache_gives_the_same_lens_and_may_hold_some_layers():
    vla = small()
    inputs = queries(vla)
    (cache,) = lens_caches(vla, inputs)
    assert np.array_equal(action_lens(vla, cache).values, action_lens(vla, inputs).values)
    _, some = vla.run_with_cache(inputs, names=[("resid_post", [1, -1])])
    assert action_lens(vla, some).axes["layer"] == ["1", "3"]
    _, early = vla.run_with_cache(inputs, names=[("resid_post", 1)])
    with pytest.raises(ValueError, match=r"blocks.3.hook_resid_post"):
        action_lens(vla, early)


def test_a_sample_has_the_same_lens_in_a_batch_and_alone():
    vla = small()
    inputs = queries(vla)
    together = action_lens(vla, inputs).values
    for row in range(2):
        np.testing.assert_allclose(action_lens(vla, inputs[row]).values[0], together[row], atol=1e-5)


@pytest.mark.parametrize("site", ["ln_final.hook_normalized", "action_head.hook_out"])
def test_edits_behind_the_last_layer_are_an_error(site):
    vla = small()
    inputs = queries(vla)
    with vla.hooks((site, lambda values, site: values + 1)), pytest.raises(RuntimeError, match="edits behind it"):
        action_lens(vla, inputs)


def test_edits_before_are_seen():
    vla = small()
    inputs = queries(vla)
    plain = action_lens(vla, inputs)
    with vla.hooks((("attn_out", 2), lambda values, site: values + 1)):
        edited = action_lens(vla, inputs)
    changed = abs(edited.values - plain.values).max(["sample", "step", "dim"])
    assert (changed.sel(layer=["embed", "0", "1"]) == 0).all() and (changed.sel(layer=["2", "3"]) > 0).all()
    assert edited.source["edits"] and "edits" not in plain.source


def test_a_translator_is_used_everywhere_but_at_the_end():
    vla = small()
    inputs = queries(vla)
    asked = []

    def translate(states, layer):
        asked.append(layer)
        return torch.ones_like(states)

    lens = action_lens(vla, inputs, translate)
    assert asked == ["embed", "0", "1", "2"]
    assert np.array_equal(lens.sel(layer=3).values, vla(inputs).values)
    assert lens.values.isel(layer=0).equals(lens.values.isel(layer=0).isel(sample=[0, 0]).assign_coords(sample=[0, 1]))


def test_refusals():
    diffusion = small("diffusion")
    with pytest.raises(ValueError, match="predicts the noise"):
        action_lens(diffusion, queries(diffusion))
    vla = small()
    with pytest.raises(ValueError, match="use action_lens"):
        logit_lens(vla, queries(vla))
    base = small("base")
    _, cache = base.run_with_cache(queries(base), names=["resid_post"])
    with pytest.raises(ValueError, match="holds one run"):
        action_lens(base, cache)


def test_layers_by_number_and_figures(tmp_path):
    vla = small()
    lens = action_lens(vla, queries(vla))
    assert lens.sel(layer=["embed", 0, -1]).axes["layer"] == ["embed", "0", "3"]
    with pytest.raises(ValueError, match="layer"):
        lens.sel(layer=4)
    figure = lens.plot(step=2)
    assert [axes.get_title("left") for axes in figure.axes] == list(vla.cfg.action_names)
    assert len(figure.axes[0].lines) == 2
    lens.error_to_final().plot().savefig(tmp_path / "error.png")
    lens.sel(sample=0, dim="dz").plot().savefig(tmp_path / "dz.png")
    top = lens.top(3)
    assert list(top.columns) == ["sample", "layer", "step", "dim", "value"] and len(top) == 3
    assert replace(lens, unit="x").unit == "x"
