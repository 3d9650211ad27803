"""Do lens and attribution hold on the recorded checkpoints: last layer = recorded action, shares sum to it?"""

import numpy as np
import pytest
import torch
from golden_fixtures import DATA, golden, inputs

from mist_interp import HookedVLA
from mist_interp.analysis.attribution import direct_action_attribution
from mist_interp.analysis.lens import action_lens, logit_lens
from mist_interp.tracing.checks import noise_inputs


@pytest.fixture(scope="module")
def load():
    loaded = {}

    def get(name):
        if name not in loaded:
            key = golden(name).case(0)["unnorm_key"]
            loaded[name] = HookedVLA.from_pretrained(DATA / name, dtype=torch.float32, unnorm_key=key)
        return loaded[name]

    return get


@pytest.fixture(scope="module")
def mini():
    vla = HookedVLA.from_pretrained("mini")
    return vla, noise_inputs(vla)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_the_last_layer_of_the_lens_is_the_recorded_action(load, case):
    vla, fixture = load("oft_l1"), golden("oft_l1")
    lens = action_lens(vla, inputs("oft_l1", case))
    final = lens.sel(sample=0, layer=-1).values.values
    assert np.array_equal(final, vla(inputs("oft_l1", case)).values[0].numpy())
    recorded = fixture[f"case{case}.actions"].double().numpy().reshape(final.shape)
    assert abs(final - recorded).max() <= fixture.tolerance("features_embeddings_actions")


@pytest.mark.parametrize("case", [0, 1, 2])
def test_the_logit_lens_ends_in_the_recorded_tokens(load, case):
    vla = load("openvla_base")
    query = inputs("openvla_base", case)
    action, vocabulary = vla(query), vla.policy.config.bin_vocab_size
    said = ((action.token_ids >= vocabulary - 256) & (action.token_ids < vocabulary))[0].numpy()
    final = logit_lens(vla, query).top.sel(sample=0, layer=-1).values.values
    assert np.array_equal(final[said], action.values[0].numpy()[said])


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize("unit", ["component", "head", "neuron"])
def test_shares_sum_to_the_recorded_action(load, case, unit):
    vla, fixture = load("oft_l1"), golden("oft_l1")
    shares = direct_action_attribution(vla, inputs("oft_l1", case), "t0.dz", unit)
    recorded = fixture[f"case{case}.actions"].double().reshape(8, 7)[0, 2]
    close = fixture.tolerance("features_embeddings_actions")
    assert shares.total.values.item() == pytest.approx(float(recorded), abs=close)
    assert abs(shares.error.values.item()) < close and abs(shares.sel(row="rest").values.item()) < close


@pytest.mark.parametrize("unit", ["component", "head", "neuron"])
def test_on_mini_the_lens_ends_in_the_action_and_shares_sum_to_it(mini, unit):
    vla, queries = mini
    action = vla(queries).values
    assert np.array_equal(action_lens(vla, queries).sel(layer=-1).values, action)
    shares = direct_action_attribution(vla, queries, "t0.dz", unit)
    np.testing.assert_allclose(shares.total.values, action[:, 0, 2], atol=1e-9)
    assert abs(shares.error.values).max() < 1e-5 and abs(shares.sel(row="rest").values).max() < 1e-5
    versus = direct_action_attribution(vla, queries[0], "t0.dz", unit, queries[1], points=128)
    assert versus.total.values.item() == pytest.approx(float(action[0, 0, 2] - action[1, 0, 2]), abs=1e-6)
    assert abs(versus.error.values.item()) < 0.02 * abs(versus.parts().values).sum()


@pytest.mark.parametrize("unit", ["component", "head", "neuron"])
def test_differences_between_two_recorded_cases(load, unit):
    vla, fixture = load("oft_l1"), golden("oft_l1")
    shares = direct_action_attribution(vla, inputs("oft_l1", 0), "t0.dz", unit, baseline=inputs("oft_l1", 1), points=64)
    recorded = [float(fixture[f"case{case}.actions"].double().reshape(8, 7)[0, 2]) for case in (0, 1)]
    assert shares.total.values.item() == pytest.approx(recorded[0] - recorded[1], abs=1e-4)
    assert abs(shares.error.values.item()) < 0.02 * abs(shares.parts().values).sum()


@pytest.mark.parametrize("case", [0, 1, 2])
def test_shares_of_token_policies_sum_to_the_logit(load, case):
    shares = direct_action_attribution(load("openvla_base"), inputs("openvla_base", case), "t0.dz", "head")
    assert shares.total.values.item() > 0 and abs(shares.error.values.item()) < 1e-4
