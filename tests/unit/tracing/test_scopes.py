"""Does an edit live exactly as long as its scope?"""

import gc
import threading
from contextlib import ExitStack

import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.models import random_policy
from mist_interp.tracing import Edit, HookedVLA


def half(x, site):
    return x * 0.5


def shift(x, site):
    return x + 1.0


def test_a_scope_edits_and_ends(vla, inputs):
    plain = vla(inputs)
    with vla.hooks((("mlp_out", 2), half)) as same:
        assert same is vla
        inside = vla(inputs)
        assert [str(e.site) for e in vla.edits()] == ["blocks.2.hook_mlp_out"]
        assert "half on blocks.2.hook_mlp_out" in str(vla.edits()[0])
    assert not torch.equal(plain.values, inside.values)
    assert vla.edits() == () and torch.equal(vla(inputs).values, plain.values)


def test_scopes_nest(vla, inputs):
    outer, inner = (("attn_out", 1), half), (("mlp_out", 2), shift)
    alone = vla.run_with_hooks(inputs, [outer])
    both = vla.run_with_hooks(inputs, [outer, inner])
    with vla.hooks(outer):
        with vla.hooks(inner):
            assert torch.equal(vla(inputs).values, both.values) and len(vla.edits()) == 2
        assert torch.equal(vla(inputs).values, alone.values)


def test_scopes_may_end_in_any_order(vla, inputs):
    first, second = vla.hooks((("attn_out", 1), half)), vla.hooks((("attn_out", 1), half))
    alone = vla.run_with_hooks(inputs, [(("attn_out", 1), half)])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(vla(inputs).values, alone.values)
    second.__exit__(None, None, None)
    assert vla.edits() == ()


def test_the_same_edit_twice_is_two_edits(vla, inputs):
    pair = (("mlp_out", 2), half)
    quarter = vla.run_with_hooks(inputs, [(("mlp_out", 2), lambda x, site: x * 0.25)])
    with vla.hooks(pair), vla.hooks(pair):
        assert torch.equal(vla(inputs).values, quarter.values)
        with vla.hooks(pair):
            assert len(vla.edits()) == 3
        assert torch.equal(vla(inputs).values, quarter.values)


def test_caching_inside_a_scope_sees_the_edit_and_leaves_it_alive(vla, inputs):
    _, before = vla.run_with_cache(inputs, names=["mlp_out", "resid_post"])
    with vla.hooks((("mlp_out", 1), shift)):
        edited = vla(inputs)
        for _ in range(2):
            out, cache = vla.run_with_cache(inputs, names=["mlp_out", "resid_post"])
            assert torch.equal(out.values, edited.values)
            assert torch.equal(cache["mlp_out", 1], before["mlp_out", 1] + 1)
            assert torch.equal(cache["mlp_out", 0], before["mlp_out", 0])
        assert len(vla.edits()) == 1 and torch.equal(vla(inputs).values, edited.values)


def test_run_with_hooks_inside_a_scope_adds_and_leaves(vla, inputs):
    both = vla.run_with_hooks(inputs, [(("attn_out", 0), shift), (("mlp_out", 1), half)])
    with vla.hooks((("attn_out", 0), shift)):
        scoped = vla(inputs)
        assert torch.equal(vla.run_with_hooks(inputs, [(("mlp_out", 1), half)]).values, both.values)
        assert torch.equal(vla(inputs).values, scoped.values)


class Broken(Exception):
    pass


def broken(x, site):
    raise Broken("by the user")


def test_an_exception_inside_ends_the_scope(vla, inputs):
    plain = vla(inputs)
    with pytest.raises(Broken), vla.hooks((("mlp_out", 1), half)):
        raise Broken
    assert vla.edits() == () and torch.equal(vla(inputs).values, plain.values)


def test_an_exception_in_a_hook_comes_out_unchanged_and_names_the_site(vla, inputs):
    plain = vla(inputs)
    with vla.hooks((("attn_out", 0), half)):
        scoped = vla(inputs)
        with pytest.raises(Broken, match="by the user") as error:
            vla.run_with_hooks(inputs, [(("mlp_out", 1), broken)])
        assert "in a hook at blocks.1.hook_mlp_out" in error.value.__notes__
        assert len(vla.edits()) == 1 and torch.equal(vla(inputs).values, scoped.values)
        with pytest.raises(Broken), vla.hooks((("mlp_out", 1), broken)):
            vla.run_with_cache(inputs)
        assert torch.equal(vla(inputs).values, scoped.values)
    assert torch.equal(vla(inputs).values, plain.values)


def test_an_exception_in_the_network_leaves_the_scope_alive(vla, inputs):
    with vla.hooks((("mlp_out", 1), half)):
        scoped = vla(inputs)
        with pytest.raises(ValueError, match="pixel_values"):
            vla(type(inputs)(inputs.input_ids, inputs.attention_mask, inputs.pixel_values[:, :5], inputs.proprio))
        assert torch.equal(vla(inputs).values, scoped.values)


def test_a_scope_that_cannot_be_adds_nothing(vla):
    for pairs, error in (
        ([(("mlp_out", 1), half), (("mlp_outt", 1), half)], UnknownName),
        ([(("mlp_out", 9), half)], UnknownName),
        ([("mlp_out", 3)], TypeError),
        ([half], TypeError),
    ):
        with pytest.raises(error), vla.hooks(*pairs):
            pass
        assert vla.edits() == ()


def test_many_scopes_in_a_stack(vla, inputs):
    plain = vla(inputs)
    with ExitStack() as stack:
        for layer in range(4):
            stack.enter_context(vla.hooks((("mlp_out", layer), half)))
        stacked = vla(inputs)
    assert torch.equal(stacked.values, vla.run_with_hooks(inputs, [("mlp_out", half)]).values)
    assert torch.equal(vla(inputs).values, plain.values)


def test_edits_at_one_site_apply_in_order_and_the_order_of_sites_does_not_matter(vla, inputs):
    at_one = vla.run_with_hooks(inputs, [(("mlp_out", 1), half), (("mlp_out", 1), shift)])
    same = vla.run_with_hooks(inputs, [(("mlp_out", 1), lambda x, site: x * 0.5 + 1.0)])
    assert torch.equal(at_one.values, same.values)
    forward = vla.run_with_hooks(inputs, [(("attn_out", 0), half), (("mlp_out", 3), shift)])
    backward = vla.run_with_hooks(inputs, [(("mlp_out", 3), shift), (("attn_out", 0), half)])
    assert torch.equal(forward.values, backward.values)


def test_a_hook_may_name_several_sites_and_learns_which(vla, inputs):
    seen = []
    vla.run_with_hooks(inputs, [("resid_post", lambda x, site: seen.append((site.layer, tuple(x.shape))))])
    length = vla.layout(inputs).length
    assert seen == [(i, (2, length, 64)) for i in range(4)]


def test_tokens_limit_an_edit(vla, inputs):
    _, before = vla.run_with_cache(inputs, names=("resid_post", 1))
    with vla.hooks((("resid_post", 1), shift, "action_read.dz")):
        _, after = vla.run_with_cache(inputs, names=("resid_post", 1))
    changed = (after["resid_post"] != before["resid_post"]).any(-1)
    assert torch.equal(changed, vla.layout(inputs).mask("action_read.dz"))
    with vla.hooks(Edit(vla.site(("resid_post", 1)), lambda x, site: torch.zeros_like(x), "text")):
        _, after = vla.run_with_cache(inputs, names=("resid_post", 1))
    assert torch.equal((after["resid_post"] == 0).all(-1), vla.layout(inputs).mask("text"))


def test_a_hook_that_returns_the_wrong_thing(vla, inputs):
    for wrong, text in ((lambda x, s: x[:, :1], "shape"), (lambda x, s: 3.0, "float"), (lambda x, s: x[0], "shape")):
        with pytest.raises(ValueError, match=f"blocks.1.hook_mlp_out must return a tensor.*{text}"):
            vla.run_with_hooks(inputs, [(("mlp_out", 1), wrong)])
        with pytest.raises(ValueError, match="must return a tensor"):
            vla.run_with_hooks(inputs, [(("mlp_out", 1), wrong, "action_read")])


def test_another_type_is_brought_back(vla, inputs):
    same = vla.run_with_hooks(inputs, [("resid_post", lambda x, site: x.double())])
    assert torch.equal(same.values, vla(inputs).values)


def test_two_models_do_not_mix(vla, inputs, make_vla):
    other = make_vla(seed=5)
    plain, other_plain = vla(inputs), other(inputs)
    assert not torch.equal(plain.values, other_plain.values)
    with vla.hooks((("mlp_out", 1), half)):
        scoped = vla(inputs)
        assert torch.equal(other(inputs).values, other_plain.values) and other.edits() == ()
        with other.hooks((("mlp_out", 1), shift)):
            assert torch.equal(vla(inputs).values, scoped.values)
            assert not torch.equal(other(inputs).values, other_plain.values)
        assert torch.equal(vla(inputs).values, scoped.values)


def test_two_views_of_one_model_keep_their_own_edits(vla, inputs):
    twin = HookedVLA(vla.policy)
    plain = vla(inputs)
    with vla.hooks((("mlp_out", 1), half)):
        assert torch.equal(twin(inputs).values, plain.values)
        _, cache = twin.run_with_cache(inputs, names="mlp_out")
    _, same = vla.run_with_cache(inputs, names="mlp_out")
    assert torch.equal(cache["mlp_out", 1], same["mlp_out", 1])


def test_the_policy_itself_is_never_edited(vla, inputs):
    plain = vla(inputs)
    with vla.hooks((("mlp_out", 1), half)):
        assert torch.equal(vla.policy(inputs).values, plain.values)


def test_a_hook_may_not_run_its_own_policy(vla, inputs):
    with pytest.raises(RuntimeError, match="hooked into"):
        vla.run_with_hooks(inputs, [(("mlp_out", 1), lambda x, site: vla(inputs))])
    assert vla(inputs).values.shape == (2, 8, 7)


def test_a_hook_may_run_another_policy(vla, inputs, make_vla):
    other = make_vla(seed=5)
    seen = []
    vla.run_with_hooks(inputs, [(("mlp_out", 1), lambda x, site: seen.append(other(inputs).values))])
    assert torch.equal(seen[0], other(inputs).values)


def test_threads_take_turns(vla, inputs):
    plain, edited = vla(inputs), vla.run_with_hooks(inputs, [(("mlp_out", 1), half)])
    failures = []
    twin = HookedVLA(vla.policy)

    def work(view, pairs, expected):
        try:
            with view.hooks(*pairs):
                for _ in range(5):
                    assert torch.equal(view(inputs).values, expected.values)
                    assert torch.equal(view.run_with_cache(inputs)[0].values, expected.values)
        except BaseException as error:  # a thread must hand its failure over
            failures.append(error)

    jobs = [(vla, [(("mlp_out", 1), half)], edited), (twin, [], plain), (HookedVLA(vla.policy), [], plain)]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_queries_leave_nothing_behind(inputs):
    vla = HookedVLA(random_policy(seed=6).requires_grad_(False))

    def query():
        with vla.hooks((("mlp_out", 1), half), (("resid_post", 2), shift, "action_read")):
            vla(inputs)
            vla.run_with_cache(inputs, names=["resid_post", "q"])

    def objects():
        gc.collect()
        return len(gc.get_objects())

    for _ in range(3):
        query()
    before = objects()
    for _ in range(30):
        query()
    assert objects() - before < 60, "every query leaves objects behind"


def test_gradients_pass_through_hooks(vla, inputs):
    """The weights are frozen; a hook that brings in a tensor with a gradient is enough to build the graph."""
    assert not vla(inputs).values.requires_grad
    push = torch.zeros(vla.cfg.d_model, requires_grad=True)
    out = vla.run_with_hooks(inputs, [(("resid_mid", 1), lambda x, site: x + push)])
    (gradient,) = torch.autograd.grad(out.normalized[..., 2].sum(), push)
    assert bool(gradient.isfinite().all()) and float(gradient.norm()) > 0
    step = 1e-3 * gradient / gradient.norm()
    moved = vla.run_with_hooks(inputs, [(("resid_mid", 1), lambda x, site: x + step)]).normalized[..., 2].sum()
    expected = float(gradient @ step)
    assert abs(float(moved - vla(inputs).normalized[..., 2].sum()) - expected) < 0.05 * abs(expected)


@pytest.mark.parametrize("answers", ["the tensor", "None"])
@pytest.mark.parametrize("tokens", [None, "text", "action_read"])
@pytest.mark.parametrize("name", ["result", "z", "resid_post", "resid_mid", "ln1.scale", "pattern", "q"])
def test_a_hook_may_change_its_tensor_in_place(vla, inputs, name, tokens, answers):
    def in_place(x, site):
        x[:, :, :2] *= 1.5
        return x if answers == "the tensor" else None

    def aside(x, site):
        x = x.clone()
        x[:, :, :2] *= 1.5
        return x

    seen = []
    for fn in (aside, in_place):
        with vla.hooks(((name, 2), fn, tokens)):
            seen.append((vla(inputs), vla.changes()[0]))
    (wanted, change), (got, measured) = seen
    assert torch.equal(wanted.values, got.values) and not torch.equal(vla(inputs).values, got.values)
    assert change.norm.min() > 0 and torch.equal(change.norm, measured.norm)
    assert torch.equal(change.touched, measured.touched)


@pytest.mark.parametrize("name", ["result", "resid_post"])
def test_nan_written_in_place_is_refused(vla, inputs, name):
    def spoil(x, site):
        x[:, 3] = float("nan")

    with pytest.raises(FloatingPointError, match="NaN"):
        vla.run_with_hooks(inputs, [((name, 1), spoil)])


def test_a_hook_that_only_looks_changes_nothing(vla, inputs):
    plain, seen = vla(inputs), []
    with vla.hooks((("resid_post", 1), lambda x, site: seen.append(x))):
        assert torch.equal(vla(inputs).values, plain.values)
        assert vla.changes()[0].total == 0 and len(seen) == 1
