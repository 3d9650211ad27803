"""Does path patching change what one receiver reads, and nothing else? Held against sums that must hold exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patching_policies import make, pairs

from mist_interp.analysis.patching import noised, patch
from mist_interp.analysis.paths import EMBED, Component, components, head, mlp, path_patch
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs

CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def two_pairs(vla):
    """Pairs with prompts of one length."""
    (a, b), (c, d) = ([side[0] for side in pairs(vla)], [side[0] for side in other_pairs(vla)])
    return PolicyInputs.cat([a, c]), PolicyInputs.cat([b, d])


def other_pairs(vla):
    from mist_interp.tracing.checks import noise_inputs

    return noise_inputs(vla, 2), noise_inputs(vla, 3)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_all_paths_into_the_action_head_make_the_other_run(direction) -> None:
    vla = make()
    clean, corrupt = two_pairs(vla)
    grid = path_patch(vla, clean, corrupt, components(vla), direction=direction, together=True)
    assert grid.values.dims == ("pair", "dim")
    np.testing.assert_allclose(grid.values, grid.full, **CLOSE)
    some = path_patch(vla, clean, corrupt, components(vla)[:-1], direction=direction, together=True)
    assert np.abs(some.values - some.full).max() > 1e-3


def test_all_paths_into_a_head_are_the_head() -> None:
    vla = make()
    clean, corrupt = two_pairs(vla)
    receivers = [head(1, 0), head(2, 1)]
    paths = path_patch(vla, clean, corrupt, components(vla), receivers, together=True)
    exchanged = patch(vla, clean, corrupt, site="z", over=("layer", "head"))
    for receiver in receivers:
        expected = exchanged.sel(layer=receiver.layer, head=receiver.head).values
        np.testing.assert_allclose(paths.sel(receiver=str(receiver)).values, expected, **CLOSE)
        assert np.abs(expected).max() > 1e-3
    only_q = path_patch(vla, clean, corrupt, components(vla), receivers, "q", together=True)
    queries = patch(vla, clean, corrupt, site="q", over=("layer", "head"))
    np.testing.assert_allclose(only_q.sel(receiver="L2H1").values, queries.sel(layer=2, head=1).values, **CLOSE)
    assert np.abs(only_q.values - paths.values).max() > 1e-3


def test_a_single_path_into_the_action_head_by_hand() -> None:
    vla = make()
    clean, corrupt = two_pairs(vla)
    senders = [EMBED, head(0, 1), head(2, 2), mlp(1)]
    grid = path_patch(vla, clean, corrupt, senders, batch_size=3)
    assert grid.axes["sender"] == ["embed", "L0H1", "L2H2", "L1.mlp"]
    model = vla.policy.language_model.model
    names = ["result", "mlp_out", "hook_embed", ("resid_post", 2)]
    (_, there), (_, here) = (vla.run_with_cache(side, names=names) for side in (clean, corrupt))
    for name, key, number in (("L0H1", ("result", 0), 1), ("L2H2", ("result", 2), 2), ("L1.mlp", ("mlp_out", 1), None)):
        change = there[key].values - here[key].values
        change = change if number is None else change[:, :, number]
        states = model.norm(here["resid_post", 2].values + change)
        read = states[:, vla.layout(corrupt).select("action_read").index[0]]
        expected = vla.policy.decide(read).values.mean(1) - vla(corrupt).values.mean(1)
        np.testing.assert_allclose(grid.sel(sender=name).values, expected, **CLOSE)


def test_a_single_path_into_the_queries_by_hand() -> None:
    vla = make()
    clean, corrupt = (side[:1] for side in two_pairs(vla))
    grid = path_patch(vla, clean, corrupt, [mlp(0), mlp(1)], [head(1, 2), head(2, 0)], "q")
    assert np.isnan(grid.sel(receiver="L1H2", sender="L1.mlp").values).all(), "it does not come before"
    (_, there), (_, here) = (vla.run_with_cache(side, names=["mlp_out", "q", "resid_pre"]) for side in (clean, corrupt))
    stream = here["resid_pre", 2].values + there["mlp_out", 0].values - here["mlp_out", 0].values
    block = vla.policy.language_model.model.layers[2]
    raw = block.self_attn.q_proj(block.input_layernorm(stream)).unflatten(-1, (3, -1))
    cos, sin = vla.policy.language_model.model.rotary_emb(stream, torch.arange(stream.shape[1])[None])
    half = raw.shape[-1] // 2
    turned = torch.cat([-raw[..., half:], raw[..., :half]], -1)
    queries = raw * cos[:, :, None] + turned * sin[:, :, None]

    def write(values, site):
        return torch.cat([queries[:, :, :1], values[:, :, 1:]], 2)

    expected = vla.run_with_hooks(corrupt, [(("q", 2), write)]).values - vla(corrupt).values
    np.testing.assert_allclose(grid.sel(receiver="L2H0", sender="L0.mlp").values, expected.mean(1)[0], **CLOSE)


def test_the_last_blocks_heads_have_no_other_path() -> None:
    """A head of the last block reaches the action directly and through the MLP beside it, which is cut here."""
    vla = make()
    clean, corrupt = two_pairs(vla)
    weight = vla.policy.language_model.model.layers[2].mlp.down_proj.weight
    kept = weight.clone()
    weight.zero_()
    try:
        paths = path_patch(vla, clean, corrupt, [head(2, 0), head(2, 1)])
        total = patch(vla, clean, corrupt, site=("z", 2), over=("head",))
    finally:
        weight.copy_(kept)
    np.testing.assert_allclose(paths.sel(sender="L2H1").values, total.sel(head=1).values, **CLOSE)


def test_batches_change_nothing_and_discrete_policies_work() -> None:
    vla = make("discrete")
    clean, corrupt = two_pairs(vla)
    one, many = (path_patch(vla, clean, corrupt, receivers=[head(2, 0)], batch_size=size) for size in (1, 16))
    assert one.values.dims == ("pair", "receiver", "sender", "dim")
    np.testing.assert_allclose(one.values, many.values, **CLOSE)


def test_pairs_of_different_lengths_are_as_if_alone() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    assert len(set(vla.layout(clean).lengths)) == 2
    for options in ({"together": True}, {"receivers": [head(1, 0), head(2, 1)], "senders": [head(0, 1), mlp(0)]}):
        grid = path_patch(vla, clean, corrupt, **options)
        for pair in range(2):
            alone = path_patch(vla, clean[pair], corrupt[pair], **options)
            np.testing.assert_allclose(grid.sel(pair=pair).values, alone.values, **CLOSE)
        assert np.nanmax(np.abs(grid.values)) > 1e-3
    wider = PolicyInputs.cat([clean[0], clean[1]])[1:2]  # padded as its batch was
    padded = path_patch(vla, wider, corrupt[1], components(vla), together=True)
    np.testing.assert_allclose(padded.values, padded.full, **CLOSE)
    whole = path_patch(vla, clean, corrupt, components(vla), together=True)
    np.testing.assert_allclose(whole.values, whole.full, **CLOSE)


def test_paths_that_cannot_be() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    with pytest.raises(ValueError, match=r"pair 0 has .* one length"):
        path_patch(vla, clean, PolicyInputs.cat([corrupt[1], corrupt[0]]))
    clean, corrupt = clean[0], corrupt[0]
    with pytest.raises(TypeError, match="function"):
        path_patch(vla, clean, corrupt, metric=lambda chunk: chunk.values)
    for options, error, match in (
        ({"senders": [head(3, 0)]}, UnknownName, "L2H0"),
        ({"senders": []}, ValueError, "empty"),
        ({"through": "w"}, UnknownName, "input of a head"),
        ({"receivers": [mlp(1)]}, ValueError, "attention heads"),
        ({"senders": [Component(0, "neuron")]}, UnknownName, "component"),
    ):
        with pytest.raises(error, match=match):
            path_patch(vla, clean, corrupt, **options)
    with pytest.raises(ValueError, match="edits are live"), vla.hooks((("attn_out", 0), lambda values, site: values)):
        path_patch(vla, clean, corrupt)
    noisy = path_patch(vla, clean, noised(clean, "wrist"), components(vla), together=True)
    np.testing.assert_allclose(noisy.values, noisy.full, **CLOSE)
