"""Does an edit report what it did, in the forward in which it did it?"""

import pytest
import torch

from mist_interp.tracing import ablate, add, knockout, replace, scale, skip
from mist_interp.tracing.checks import noise_inputs

RESID = ("resid_post", 1)


def vector(seed=0):
    return torch.randn(64, generator=torch.Generator().manual_seed(seed))


def half(x, site):
    return x * 0.5


def changes(vla, inputs, *edits):
    with vla.hooks(*edits):
        vla(inputs)
        return vla.changes()


@pytest.mark.parametrize(("tokens", "count"), [("action_read", 56), ("action_read.dz", 8), ("proprio", 1)])
def test_the_norm_of_a_push_is_known_beforehand(vla, inputs, tokens, count):
    (change,) = changes(vla, inputs, add(RESID, vector(), tokens, -1.5))
    expected = 1.5 * float(vector().norm()) * count**0.5
    assert change.norm.tolist() == pytest.approx([expected] * 2, rel=1e-4)
    assert change.total == pytest.approx(expected * 2**0.5, rel=1e-4)
    assert change.touched.tolist() == [count] * 2 and change.tokens.tolist() == list(vla.layout(inputs).lengths)
    torch.testing.assert_close(change.fraction, torch.tensor([count / 100, count / 97]))
    row = change.to_dict(1)
    assert row["tokens"] == 97 and row["edit"].startswith("add(coef=-1.5) on blocks.1.hook_resid_post at")


def test_what_is_removed_is_what_was_there(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=["z", "attn_out", "mlp_out"])
    head, attention, mlp = changes(vla, inputs, ablate(("z", 1), head=2, tokens="text"), skip(3))
    expected = cache["z", 1].values[:, :, 2][vla.layout(inputs).mask("text")].norm()
    assert head.total == pytest.approx(float(expected), rel=1e-5)
    assert attention.site.name == "blocks.3.hook_attn_out" and mlp.site.name == "blocks.3.hook_mlp_out"
    with vla.hooks(ablate(("z", 1), head=2, tokens="text")):
        _, cache = vla.run_with_cache(inputs, names=["attn_out"])
    mask = vla.layout(inputs).attention_mask
    assert attention.total == pytest.approx(float(cache["attn_out", 3].values[mask].norm()), rel=1e-5)


def test_functions_are_measured_too(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=[RESID])
    whole, some, idle = changes(
        vla, inputs, (("resid_post", 2), half), (RESID, half, "text"), (RESID, lambda x, s: None)
    )
    mask = vla.layout(inputs).mask("text")
    assert some.total == pytest.approx(float(0.5 * cache[RESID].values[mask].norm()), rel=1e-5)
    assert some.touched.tolist() == mask.sum(1).tolist()
    assert (whole.touched > some.touched).all() and idle.total == 0 and idle.touched.tolist() == [0, 0]


def test_an_edit_that_changes_nothing_says_so(vla, inputs):
    layout = vla.layout(inputs)
    for edit in (scale(RESID, 1.0), add(RESID, torch.zeros(64), "text")):
        (change,) = changes(vla, inputs, edit)
        assert (
            change.total == 0 and change.touched.tolist() == [0, 0] and change.tokens.tolist() == list(layout.lengths)
        )


def test_two_edits_at_one_site_are_told_apart(vla, inputs):
    first, second = changes(vla, inputs, add(RESID, vector(), "text"), add(RESID, vector(1), "text", 3.0))
    assert first.norm[0] / vector().norm() == pytest.approx(float(second.norm[0] / vector(1).norm()) / 3, rel=1e-3)


def test_all_runs_of_a_query_count(make_vla):
    for variant, runs in (("base", 7), ("diffusion", 2)):
        vla = make_vla(variant, **({"diffusion_steps": 2} if variant == "diffusion" else {}))
        inputs = noise_inputs(vla)
        (change,) = changes(vla, inputs, add(RESID, vector(), "action_read"))
        tokens = runs if variant == "base" else 56 * runs
        assert change.touched.tolist() == [tokens] * 2
        assert change.norm.tolist() == pytest.approx([float(vector().norm()) * tokens**0.5] * 2, rel=1e-4)


def test_changes_are_those_of_the_last_forward_only(vla, inputs):
    assert changes(vla, inputs, add(RESID, vector()))[0].norm.shape == (2,)
    assert len(vla.changes()) == 1, "they can be read after the scope"
    with vla.hooks(add(RESID, vector())):
        vla.run_with_cache(inputs[0], names=RESID)
        assert vla.changes()[0].norm.shape == (1,)
        vla.run_with_cache(inputs, stop_at_layer=1, names=("resid_post", 0))
        assert vla.changes() == (), "nothing of the edit was reached"
        vla(inputs)
        with pytest.raises(ValueError, match="pixel_values"):
            vla(type(inputs)(inputs.input_ids, inputs.attention_mask, inputs.pixel_values[:, :5], inputs.proprio))
    vla(inputs)
    assert vla.changes() == ()


def test_a_knockout_reports_the_attention_that_it_moved(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=("pattern", 1))
    with vla.hooks(knockout("proprio", "text", layers=1, heads=2)):
        _, after = vla.run_with_cache(inputs, names=("pattern", 1))
        (change,) = vla.changes()
    moved = after["pattern", 1].values - cache["pattern", 1].values
    assert change.norm.tolist() == pytest.approx(moved.flatten(1).norm(dim=1).tolist(), rel=1e-4)
    assert change.touched.tolist() == [1, 1] and bool(change.norm.isfinite().all())


def test_a_change_whose_square_is_beyond_the_type_has_a_norm(vla, inputs):
    (change,) = changes(vla, inputs, add(RESID, torch.full((64,), 1e25), "proprio"))
    assert change.norm.tolist() == pytest.approx([8e25] * 2) and change.touched.tolist() == [1, 1]


def test_half_precision_is_measured_as_it_is_stored(make_vla):
    vla = make_vla("l1", "eager", seed=3)
    vla = type(vla)(vla.policy.__class__(vla.policy.config).to(torch.bfloat16).eval().requires_grad_(False))
    inputs = noise_inputs(vla)
    tiny = replace(RESID, torch.full((64,), 1.0), "proprio")
    for push in (add(RESID, torch.full((64,), 1e-4), "proprio"), (RESID, lambda x, site: x.double() + 1e-4, "proprio")):
        with vla.hooks(tiny, push):
            vla(inputs)
            pushed = vla.changes()[1]
        assert pushed.total == 0 and pushed.touched.tolist() == [0, 0], "1 + 1e-4 is 1 in bfloat16"
