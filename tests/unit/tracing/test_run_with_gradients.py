"""Are the gradients at the named sites those of the network?"""

import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.models import random_policy
from mist_interp.tracing import HookedVLA
from mist_interp.tracing.checks import noise_inputs


def dz(out):
    return out.normalized[..., 2].sum(1)


def pushed(vla, inputs, site, metric, last=1, **capture):
    """The same gradient another way: of a zero that a hook adds at the last run of the site."""
    shape = vla.shapes(inputs, site, **capture)[str(site)]
    push, runs = torch.zeros(shape, requires_grad=True), []

    def add(x, _):
        runs.append(0)
        return x + push if len(runs) == last else None

    out = vla.run_with_hooks(inputs, [(site, add)])
    return torch.autograd.grad(metric(out).sum(), push)[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_they_are_those_of_the_network_at_every_site(make_vla, attention):
    vla = make_vla("l1", attention)
    inputs = noise_inputs(vla)
    plain, values = vla.run_with_cache(inputs, names="*")
    out, cache, gradients = vla.run_with_gradients(inputs, dz, names="*")
    assert torch.equal(out.values, plain.values) and not out.normalized.requires_grad
    assert cache.keys() == gradients.keys() == values.keys()
    for site, gradient in gradients.items():
        assert torch.equal(cache[site], values[site]), site
        if site.layer not in (None, 1) or (attention == "sdpa" and site.hook.short not in ("v", "result", "embed")):
            continue
        expected = pushed(vla, inputs, site, dz)
        torch.testing.assert_close(gradient.values, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)
        assert not gradient.requires_grad and not cache[site].requires_grad
    assert float(gradients["hook_embed"].values.abs().max()) > 0


def test_one_site_alone_gives_the_same_as_all_together(vla, inputs):
    _, _, together = vla.run_with_gradients(inputs, dz, names="*")
    for key in (("q", 2), ("ln2.scale", 1), ("result", 0), ("dino.resid_mid", 1), ("resid_mid", 2), "proprio.in"):
        _, _, alone = vla.run_with_gradients(inputs, dz, names=key)
        torch.testing.assert_close(alone[key].values, together[key].values, atol=1e-7, rtol=1e-4)


def test_a_gradient_predicts_a_small_change(vla, inputs):
    out, _, gradients = vla.run_with_gradients(inputs, dz, names=("attn_out", 1))
    gradient = gradients["attn_out"].values
    step = 1e-3 * gradient / gradient.norm()
    moved = vla.run_with_hooks(inputs, [(("attn_out", 1), lambda x, site: x + step)])
    expected = float((gradient * step).sum())
    assert abs(float(dz(moved).sum() - dz(out).sum()) - expected) < 0.05 * abs(expected)


def test_samples_do_not_mix(vla, inputs):
    _, _, both = vla.run_with_gradients(inputs, dz, names=["resid_post", "pattern"])
    for sample in (0, 1):
        _, _, alone = vla.run_with_gradients(inputs[sample], dz, names=["resid_post", "pattern"])
        for site, gradient in both[sample].items():
            torch.testing.assert_close(gradient.values, alone[site].values, atol=1e-5, rtol=1e-3)


def test_tokens_and_edits(vla, inputs):
    _, _, full = vla.run_with_gradients(inputs, dz, names="resid_post")
    _, cache, some = vla.run_with_gradients(inputs, dz, names="resid_post", tokens="action_read")
    assert torch.equal(some["resid_post", 1], full["resid_post", 1].at("action_read"))
    assert cache["resid_post", 1].shape == some["resid_post", 1].shape
    with vla.hooks((("mlp_out", 1), lambda x, site: x * 0), (("resid_mid", 2), lambda x, site: x * 2)):
        _, cache, muted = vla.run_with_gradients(inputs, dz, names=["mlp_out", "resid_mid", "mlp.post"])
        assert len(vla.edits()) == 2
    assert not bool(cache["mlp_out", 1].values.any()), "values are those after the edits"
    assert not bool(muted["mlp.post", 1].values.any()), "nothing passes a place that is overwritten"
    assert bool(muted["mlp_out", 1].values.any())


def test_of_a_site_instead_of_the_action(make_vla):
    vla = make_vla("discrete")
    inputs = noise_inputs(vla)
    out, _, gradients = vla.run_with_gradients(inputs, lambda x: x[:, 16, 7], names="resid_post", of="logits")
    head, norm = vla.module("unembed").weight, vla.module("ln_final")
    states = vla.run_with_cache(inputs, names=("resid_post", -1))[1]["resid_post"].action["t2.dz"].clone()
    (expected,) = torch.autograd.grad((norm(states.requires_grad_()) @ head[7]).sum(), states)
    torch.testing.assert_close(gradients["resid_post", -1].action["t2.dz"], expected, atol=1e-6, rtol=1e-3)
    assert torch.equal(out.token_ids, vla(inputs).token_ids)
    with pytest.raises(ValueError, match="of='logits'"):
        vla.run_with_gradients(inputs, dz, names="resid_post")


def test_the_other_variants(make_vla):
    vla = make_vla("diffusion", diffusion_steps=2)
    inputs = noise_inputs(vla)
    _, _, gradients = vla.run_with_gradients(inputs, dz, names=["resid_post", "ln1.scale", "action_head.out"])
    for site, gradient in gradients.items():
        if site.layer in (1, 3):
            continue
        expected = pushed(vla, inputs, site, dz, last=2)
        torch.testing.assert_close(gradient.values, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)
    base = make_vla("base")
    inputs = noise_inputs(base)
    for step in (0, 4):
        _, cache, gradients = base.run_with_gradients(
            inputs, lambda x: x[:, 0, 9], ["embed", ("k", 1)], step=step, of="logits"
        )
        assert cache.step == step and bool(gradients["embed"].values.any())


def test_what_the_metric_does_not_depend_on_has_gradient_zero(vla, inputs):
    _, _, gradients = vla.run_with_gradients(
        inputs, lambda x: x.sum((1, 2)), names=["resid_post", "mlp_out"], of=("resid_post", 1)
    )
    assert not bool(gradients["mlp_out", 2].values.any())
    assert torch.equal(gradients["resid_post", 1].values, torch.ones_like(gradients["resid_post", 1].values))


@pytest.mark.parametrize(
    "metric, error, text",
    [
        (lambda out: 3.0, TypeError, "not float"),
        (lambda out: out.normalized, ValueError, "one per query"),
        (lambda out: out.normalized.detach().sum(), ValueError, "in a way that has a gradient"),
    ],
)
def test_a_metric_that_cannot_be(vla, inputs, metric, error, text):
    with pytest.raises(error, match=text):
        vla.run_with_gradients(inputs, metric, names="resid_post")
    assert not vla(inputs).values.requires_grad


def test_it_leaves_nothing_behind(inputs):
    policy = random_policy(seed=11).requires_grad_(False)
    vla = HookedVLA(policy)
    with torch.no_grad():
        _, _, gradients = vla.run_with_gradients(inputs, dz, names=["hook_embed", "proprio.in"])
        assert not torch.is_grad_enabled()
    assert bool(gradients["proprio.in"].values.any()) and not inputs.proprio.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in policy.parameters())
    trained = HookedVLA(random_policy(seed=11))
    _, _, same = trained.run_with_gradients(inputs, dz, names="hook_embed")
    torch.testing.assert_close(same["hook_embed"].values, gradients["hook_embed"].values, atol=1e-6, rtol=1e-3)
    assert all(p.grad is None for p in trained.policy.parameters())


def test_wrong_names(vla, inputs):
    with pytest.raises(UnknownName):
        vla.run_with_gradients(inputs, dz, names="resid_pots")
    with pytest.raises(ValueError, match="names 4 sites"):
        vla.run_with_gradients(inputs, dz, names="embed", of="resid_post")
