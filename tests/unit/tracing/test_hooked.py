"""Does the facade run what it is asked, stop where it is told, and say what it has?"""

from unittest.mock import Mock

import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.names import Catalogue
from mist_interp.tracing import HookedVLA, ports
from mist_interp.tracing.checks import noise_inputs
from mist_interp.tracing.engine import Engine, Tap, Worker
from mist_interp.tracing.locations import Location


def test_stopping_early_skips_the_rest(vla, inputs):
    full = vla.run_with_cache(inputs)[1]
    ran = []
    norm = vla.policy.language_model.model.norm.register_forward_hook(lambda *_: ran.append("norm"))
    out, cache = vla.run_with_cache(inputs, stop_at_layer=2)
    norm.remove()
    assert out is None and ran == []
    assert {s.layer for s in cache if s.hook.stack == "llm"} == {0, 1}
    for site, act in cache.items():
        assert torch.equal(act, full[site])
    assert torch.equal(vla.run_with_cache(inputs, names="embed", stop_at_layer=0)[1]["embed"], full["embed"])


@pytest.mark.parametrize("variant", ["diffusion", "base"])
def test_a_stop_comes_in_the_first_run(make_vla, variant):
    vla = make_vla(variant, **({"diffusion_steps": 3} if variant == "diffusion" else {}))
    inputs = noise_inputs(vla)
    _, full = vla.run_with_cache(inputs, names="resid_post", step=0)
    for step in (None, 0, -vla.cfg.action_dim if variant == "base" else -3, *(["dx"] if variant == "base" else [])):
        out, cache = vla.run_with_cache(inputs, names=("resid_post", 0), stop_at_layer=1, step=step)
        assert out is None and cache.step == 0
        assert torch.equal(cache["resid_post", 0], full["resid_post", 0])
    for step in (1, -1, *(["dz"] if variant == "base" else [])):
        with pytest.raises(ValueError, match="stop_at_layer ends the query in its first run"):
            vla.run_with_cache(inputs, names=("resid_post", 0), stop_at_layer=1, step=step)


def test_a_site_after_the_stop_is_refused(vla, inputs):
    for names in (("resid_pre", 2), "resid_post", "ln_final.hook_normalized", "action_head.hook_in"):
        with pytest.raises(ValueError, match=r"not computed before blocks\.2\.hook_resid_pre"):
            vla.run_with_cache(inputs, names=names, stop_at_layer=2)
    with pytest.raises(UnknownName, match="layer of resid_pre"):
        vla.run_with_cache(inputs, stop_at_layer=4)
    assert vla(inputs).values.shape == (2, 8, 7)


def test_an_edit_behind_the_stop_has_nothing_to_do(vla, inputs):
    ran = []
    with vla.hooks((("mlp_out", 3), lambda x, site: ran.append(3)), (("mlp_out", 0), lambda x, site: ran.append(0))):
        vla.run_with_cache(inputs, names=("resid_pre", 1), stop_at_layer=2)
    assert ran == [0]


def test_a_place_that_the_network_never_reaches_is_an_error(vla, inputs):
    idle = Location("language_model.lm_head", ports.OUTPUT)
    worker = Worker((Tap("somewhere", idle, lambda values, run: None),), 0)
    with pytest.raises(RuntimeError, match="somewhere was never reached"):
        Engine(vla.policy).traced(lambda: vla.policy(inputs), [worker], 2)
    assert vla(inputs).values.shape == (2, 8, 7)


def test_names_in_any_form(vla, inputs):
    names = ["hook_embed", ("resid_post", 0), ("resid_post", -1), "ln_final.hook_normalized", "projector.hook_out"]
    _, cache = vla.run_with_cache(inputs, names=names)
    assert {str(s) for s in cache} == {
        "hook_embed",
        "blocks.0.hook_resid_post",
        "blocks.3.hook_resid_post",
        "ln_final.hook_normalized",
        "projector.hook_out",
    }
    for single in ("embed", ("resid_post", 1), vla.site("embed"), (n for n in ["embed"])):
        assert len(vla.run_with_cache(inputs, names=single)[1]) == 1


@pytest.mark.parametrize("names", [["resid_pots"], "blocks.*.hook_foo", [], ("resid_post", 4), ["hook_embed", "nope"]])
def test_unknown_names_raise_before_anything_runs(vla, inputs, names):
    ran = []
    handle = vla.policy.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError):
        vla.run_with_cache(inputs, names=names)
    handle.remove()
    assert ran == []


def test_wrong_inputs_are_named_before_any_layout(vla, inputs):
    with pytest.raises(TypeError, match="PolicyInputs"):
        vla(inputs.pixel_values)
    with pytest.raises(ValueError, match="proprio is missing"):
        vla.run_with_cache(PolicyInputs(inputs.input_ids, inputs.attention_mask, inputs.pixel_values))


def test_batches_equal_single_queries(vla, inputs):
    both, cache = vla.run_with_cache(inputs, names=["resid_post", "pattern"])
    for sample in (0, 1):
        alone, single = vla.run_with_cache(inputs[sample], names=["resid_post", "pattern"])
        torch.testing.assert_close(both.normalized[sample], alone.normalized[0], atol=1e-5, rtol=1e-4)
        for site, act in cache[sample].items():
            torch.testing.assert_close(act.values, single[site].values, atol=2e-5, rtol=1e-4)


def test_prepare_hands_over_words(make_vla):
    vla = make_vla()
    inputs = noise_inputs(vla)
    assert vla.layout(inputs).words is not None


def test_facts(vla):
    cfg = vla.cfg
    assert (cfg.n_layers, cfg.d_model, cfg.n_heads, cfg.d_head, cfg.chunk, cfg.action_dim) == (4, 64, 4, 16, 8, 7)
    assert (cfg.variant, cfg.attention, cfg.patch_grid) == ("l1", "eager", (4, 4))
    assert "random policy of seed 0" in repr(vla) and "0 live edits" in repr(vla)


def test_describe_gives_name_shape_and_sentence(vla):
    text = vla.describe("blocks.*.attn.*")
    assert "blocks.{i}.attn.hook_pattern  [0..3]  (batch, head, query, key)" in text
    assert text.count("\n") == 2 * 7 - 1
    assert "hook_embed" in vla.describe() and "blocks.3.hook_resid_post" in vla.describe(("resid_post", 3))
    with pytest.raises(UnknownName):
        vla.describe("blocks.*.attn.hook_nothing")


def test_the_pattern_needs_eager_attention(make_vla):
    vla = make_vla(attention="sdpa", seed=7)
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        vla.run_with_cache(noise_inputs(vla), names="pattern")
    vla.policy.set_attn_implementation("eager")
    assert len(vla.run_with_cache(noise_inputs(vla), names="pattern")[1]) == 4


def test_no_head_and_no_state_are_said(make_vla):
    for variant in ("discrete", "base"):
        with pytest.raises(ValueError, match="no action head"):
            make_vla(variant).sites("action_head.hook_in")
    with pytest.raises(ValueError, match="no proprioception"):
        make_vla("base").sites("proprio.hook_in")


def test_base_openvla_keeps_its_prefill_and_any_other_run(make_vla):
    vla = make_vla("base")
    inputs = noise_inputs(vla)
    out, prefill = vla.run_with_cache(inputs, names=["resid_post", "embed"])
    assert prefill["embed"].shape[1] == vla.layout(inputs).length and prefill.step == 0
    table = vla.policy.language_model.get_input_embeddings()
    for step in range(1, 7):
        _, cache = vla.run_with_cache(inputs, names="embed", step=step)
        assert torch.equal(cache["embed"].values[:, 0], table(out.token_ids[:, 0, step - 1]))
        assert cache["embed"].labels() == [f"t0.{out.names[step]}"]
    assert vla.run_with_cache(inputs, names="embed", step=-1)[1].step == 6
    with pytest.raises(IndexError, match="7 times"):
        vla.run_with_cache(inputs, step=7)


def test_edits_follow_every_generated_token(make_vla):
    vla = make_vla("base")
    inputs, lengths = noise_inputs(vla), []
    vla.run_with_hooks(inputs, [(("resid_post", 1), lambda x, site: lengths.append(x.shape[1]))])
    assert lengths == [vla.layout(inputs).length] + [1] * 6
    at_read, at_text = [], []
    hooks = [(("resid_post", 1), lambda x, site: at_read.append(x.shape[1]), "action_read")]
    hooks += [(("resid_post", 2), lambda x, site: at_text.append(x.shape[1]), "text")]
    vla.run_with_hooks(inputs, hooks)
    assert at_read == [1] * 7 and len(at_text) == 1


def test_a_diffusion_head_keeps_its_last_step(make_vla):
    vla = make_vla("diffusion", diffusion_steps=3)
    inputs, steps = noise_inputs(vla), []
    vla.run_with_hooks(inputs, [("action_head.out", lambda x, site: steps.append(x.clone()))])
    assert len(steps) == 3
    for step, expected in ((None, 2), (0, 0), (1, 1), (-1, 2)):
        _, cache = vla.run_with_cache(inputs, names="action_head.out", step=step)
        assert torch.equal(cache["action_head.out"], steps[expected]) and cache.step == expected


def test_trace_is_plain_nnsight_with_our_names(vla, inputs):
    plain, cache = vla.run_with_cache(inputs)
    with vla.trace(inputs) as tracer:
        embed = tracer["embed"]
        third = tracer["resid_post", 2]
        tracer["resid_post", -1] = third * 0.5
    assert torch.equal(embed, cache["embed"]) and torch.equal(third, cache["resid_post", 2])
    assert torch.equal(vla(inputs).values, plain.values)
    with vla.hooks((("mlp_out", 1), lambda x, site: x)), pytest.raises(RuntimeError, match="without the 1 live edits"):
        vla.trace(inputs)


def test_the_tracing_backend_gives_no_methods_to_other_objects(vla, inputs):
    vla.run_with_cache(inputs, names="embed")
    assert not hasattr(object(), "save") and not hasattr(torch.zeros(1), "save")


def test_every_registered_name_has_a_place(vla):
    from mist_interp.core.hooks import HOOKS
    from mist_interp.tracing.locations import locate

    depths = {"dino": 2, "siglip": 2, "llm": 2, "head": 2}
    assert {site.hook for site in Catalogue(depths).sites} == set(HOOKS)
    with pytest.raises(NotImplementedError):
        locate(Mock(hook=Mock(pattern="odd"), layer=None), vla.policy)


def test_checks_pass_on_every_variant(make_vla):
    for variant in ("l1", "discrete", "base"):
        report = make_vla(variant).check()
        assert "bit-identical" in str(report) and len(report.facts) >= 3


def test_checks_refuse_a_shifted_read_out(vla, monkeypatch):
    from mist_interp.models import sequence

    right = sequence.read_slots
    monkeypatch.setattr(sequence, "read_slots", lambda states, text, inserted: right(states, text, inserted + 1))
    with pytest.raises(RuntimeError, match="action_read"):
        vla.check()


def test_checks_refuse_causal_attention(make_vla):
    policy = make_vla(seed=8).policy
    policy.config.llm.is_causal = True
    with pytest.raises(RuntimeError, match="causal"):
        HookedVLA(policy).check()


def test_checks_need_the_policy_without_edits(vla):
    with vla.hooks((("mlp_out", 0), lambda x, site: x)), pytest.raises(RuntimeError, match="1 edits are live"):
        vla.check()


def test_without_edits_the_plain_network_runs(vla, inputs, monkeypatch):
    """No worker is started, so the call costs what the network costs (measured in benchmarks/tracing_overhead.py)."""
    vla.run_with_cache(inputs, names="embed")  # wraps
    traced = Mock(side_effect=AssertionError("traced without an edit"))
    monkeypatch.setattr(Engine, "traced", traced)
    assert torch.equal(vla(inputs).values, vla.policy(inputs).values)
    with vla.hooks((("mlp_out", 0), lambda x, site: None)), pytest.raises(AssertionError, match="without an edit"):
        vla(inputs)


# -- as a user of TransformerLens writes it


def test_names_may_be_a_function(vla, inputs):
    def picks(name):
        return name.endswith("hook_resid_post") and name.startswith("blocks.")

    _, cache = vla.run_with_cache(inputs, picks)
    assert cache.keys() == list(vla.sites("resid_post"))
    assert vla.sites([picks, "embed"])[0] == vla.site("embed")
    doubled = vla.run_with_hooks(inputs, [("resid_post", lambda x, site: 2 * x)])
    assert torch.equal(vla.run_with_hooks(inputs, [(picks, lambda x, site: 2 * x)]).values, doubled.values)
    with pytest.raises(ValueError, match="picks none of the"):
        vla.run_with_cache(inputs, lambda name: False)


def test_hooks_may_be_a_list(vla, inputs):
    pairs = [(("mlp_out", 1), lambda x, site: 2 * x), (("mlp_out", 2), lambda x, site: 3 * x, "text")]
    wanted = vla.run_with_hooks(inputs, pairs)
    for scope in (vla.hooks(pairs), vla.hooks(fwd_hooks=pairs), vla.hooks(pairs[:1], pairs[1])):
        with scope:
            assert torch.equal(vla(inputs).values, wanted.values) and len(vla.edits()) == 2


def test_keywords_of_transformer_lens_are_answered_with_ours(vla, inputs):
    for call, message in (
        (lambda: vla.run_with_cache(inputs, names_filter="embed"), "'names_filter'; here that is names="),
        (lambda: vla.run_with_cache(inputs, pos_slice=-1), "here that is tokens="),
        (lambda: vla.run_with_cache(inputs, fwd_hooks=[]), "here that is with vla.hooks"),
        (lambda: vla.run_with_hooks(inputs, [], bwd_hooks=[]), "run_with_gradients"),
        (lambda: vla.hooks(reset_hooks_end=True), "edits end with their scope"),
        (lambda: vla.run_with_cache(inputs, nonsense=1), "no keyword 'nonsense'$"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_types_may_be_words(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="embed", dtype="float16")
    assert cache["embed"].dtype == torch.float16 and cache.to(dtype="torch.float64")["embed"].dtype == torch.float64
    with pytest.raises(UnknownName, match="did you mean 'float16'"):
        vla.run_with_cache(inputs, names="embed", dtype="flot16")


def test_what_a_trace_computes_is_kept_with_save(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names="resid_post")
    with vla.trace(inputs) as t:
        norms = t.save(t.resid_post[1].norm(dim=-1))
        both = t.save([t.resid_post[2], t.resid_post[3].mean()])
    assert torch.equal(norms, cache["resid_post", 1].values.norm(dim=-1))
    assert torch.equal(both[0], cache["resid_post", 2]) and both[1].ndim == 0
