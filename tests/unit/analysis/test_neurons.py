"""Do neurons do to the action what their value vectors say, and are their top frames the top ones?"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from mist_interp.analysis.neurons import (
    neuron_activations,
    neuron_effects,
    neuron_spread,
    neuron_table,
    neuron_words,
    push_neurons,
    top_frames,
    value_vectors,
)
from mist_interp.analysis.result import Result, labelled
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs

torch.set_num_threads(1)


@cache
def make(variant: str = "l1") -> HookedVLA:
    return HookedVLA(random_policy(variant=variant, layers=2, diffusion_steps=2).requires_grad_(False))


@pytest.fixture(scope="module")
def vla() -> HookedVLA:
    return make()


@pytest.fixture(scope="module")
def inputs(vla) -> PolicyInputs:
    return PolicyInputs.cat([noise_inputs(vla, seed) for seed in (0, 1)])


def test_value_vectors_sum_to_what_the_mlp_adds(vla, inputs) -> None:
    _, cache = vla.run_with_cache(inputs, names=[("mlp.post", 1), ("mlp_out", 1)])
    rebuilt = cache["mlp.post", 1].values @ value_vectors(vla, 1)
    torch.testing.assert_close(rebuilt, cache["mlp_out", 1].values, atol=1e-4, rtol=1e-4)
    with pytest.raises(UnknownName, match="'0', '1'"):
        value_vectors(vla, 5)


def test_effects_in_the_last_block_are_the_real_ones_for_small_pushes(vla, inputs) -> None:
    effects = neuron_effects(vla, inputs, per_deviation=False)
    for neuron in (3, 40):
        real = push_neurons(vla, inputs, [(1, neuron)], [1e-3]).values.mean(["sample", "step"]) / 1e-3
        np.testing.assert_allclose(real, effects.sel(layer=1, neuron=neuron).values, rtol=0.05, atol=2e-4)


def test_effects_per_deviation_are_effects_times_deviation(vla, inputs) -> None:
    plain, scaled = (neuron_effects(vla, inputs, per_deviation=flag) for flag in (False, True))
    spread = neuron_spread(vla, inputs)
    np.testing.assert_allclose(scaled.values, plain.values * spread.values, atol=1e-7)
    _, cache = vla.run_with_cache(inputs, names=("mlp.post", 0))
    mean = torch.stack([cache[i]["mlp.post", 0].at("action_read").mean(1)[0] for i in range(4)])
    np.testing.assert_allclose(spread.sel(layer=0).values, mean.std(0), rtol=1e-5)
    assert "deviation" in scaled.unit and "deviation" not in plain.unit
    with pytest.raises(ValueError, match="at least two"):
        neuron_effects(vla, inputs[:1])


def test_the_table_is_sorted_and_knows_exclusive_neurons() -> None:
    values = np.zeros((1, 5, 2))
    values[0, 1], values[0, 4], values[0, 2] = (-3, 0), (2, 2), (0, 1)
    effects = Result(labelled(values, layer=[7], neuron=range(5), dim=["dx", "dz"]))
    table = neuron_table(effects, k=2)
    assert table["neuron"].tolist() == [1, 4, 4, 2] and table["effect"].tolist() == [-3, 2, 2, 1]
    assert table["exclusive"].tolist() == [1, 0.5, 0.5, 1] and set(table["layer"]) == {7}
    scaled = neuron_table(effects, k=1, relative_to=[0.5, 2.0])
    assert scaled["effect"].tolist() == [-6, 1] and scaled.loc[1, "exclusive"] == pytest.approx(1 / 17)


def test_activations_and_top_frames(vla, inputs) -> None:
    result = neuron_activations(vla, inputs, [(1, 5), (0, 2), (1, 5)], tokens="wrist", batch=3)
    assert result.axes["neuron"] == ["L1N5", "L0N2"]
    _, cache = vla.run_with_cache(inputs, names=("mlp.post", 1))
    expected = cache["mlp.post", 1].at("wrist")[..., 5].mean(1)
    np.testing.assert_allclose(result.sel(neuron="L1N5").values, expected, atol=1e-5)
    table = top_frames(result, k=2)
    order = np.argsort(-expected.numpy())
    assert table[table["neuron"] == "L1N5"]["sample"].tolist() == order[:2].tolist()
    assert top_frames(result, k=1, lowest=True)["sample"].tolist()[0] == order[-1]


def test_a_push_raises_only_what_is_named(vla, inputs) -> None:
    one, other = ([(0, 4)], [0.5]), ([(0, 4), (1, 9)], [0.5, 0.0])
    first, second = (push_neurons(vla, inputs, *request).values for request in (one, other))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert bool((abs(first) > 0).any()) and vla.edits() == ()
    assert (push_neurons(vla, inputs, [(0, 4)], [0.0]).values == 0).all()
    elsewhere = push_neurons(vla, inputs, [(1, 4)], [0.5], tokens="wrist").values
    assert (elsewhere == 0).all()  # nothing reads patches after the last block
    with pytest.raises(ValueError, match="one amount per neuron"):
        push_neurons(vla, inputs, [(0, 4)], [0.5, 1.0])


@pytest.mark.parametrize("neuron", [(2, 0), (0, 96), (-1, 0)])
def test_neurons_that_do_not_exist(vla, inputs, neuron: tuple[int, int]) -> None:
    with pytest.raises(UnknownName, match=r"0\.\.95|'0', '1'"):
        neuron_activations(vla, inputs, [neuron])


def test_a_planted_word_and_a_planted_bin_are_read(vla) -> None:
    import copy

    policy = copy.deepcopy(vla.policy)
    config, down = policy.config, policy.language_model.model.layers[0].mlp.down_proj.weight
    scale, rows = policy.language_model.model.norm.weight, policy.language_model.lm_head.weight
    word = policy.processor.tokenizer.convert_tokens_to_ids(policy.processor.tokenizer.convert_ids_to_tokens(40))
    first_bin = config.bin_vocab_size - config.n_action_bins
    down.data[:, 0] = 50 * rows[word] / scale
    down.data[:, 1] = 50 * rows[first_bin + 10] / scale
    table = neuron_words(HookedVLA(policy), [(0, 0), (0, 1)], k=1)
    assert table["word"].tolist()[0] == policy.processor.tokenizer.convert_ids_to_tokens(40)
    assert table["logit"].tolist()[0] == pytest.approx(float(50 * rows[word] @ rows[word]), rel=1e-4)
    # Ids fall as actions rise: ten ids above the lowest is bin 245, whose centre is -1 + 245.5 * 2 / 255.
    assert table["word"].tolist()[1] == "action 0.93"
    policy.processor = None
    assert neuron_words(HookedVLA(policy), [(0, 0)], k=1)["word"].tolist() == [f"id {word}"]


def test_a_diffusion_head_is_refused() -> None:
    vla = make("diffusion")
    with pytest.raises(ValueError, match="diffusion"):
        neuron_effects(vla, noise_inputs(vla))
