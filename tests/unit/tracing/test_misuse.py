"""Is every mistake answered by an error that says what was wrong, and does it leave the policy as it was?

One test per mistake that would otherwise pass for a result.
"""

import gc
import json
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mist_interp.core.errors import UnknownName
from mist_interp.core.names import Site
from mist_interp.tracing import HookedVLA, Intervention, scale, skip
from mist_interp.tracing.changes import Ledger
from mist_interp.tracing.checks import noise_inputs

RESID = ("resid_post", 1)


def half(x, site):
    return x * 0.5


def nan(x, site):
    return x.masked_fill(torch.ones_like(x, dtype=torch.bool), float("nan"))


@pytest.fixture(autouse=True)
def unchanged(vla, inputs):
    """Whatever goes wrong, the policy answers afterwards as it did before."""
    plain = vla(inputs)
    yield
    assert vla.edits() == () and torch.equal(vla(inputs).values, plain.values)


# -- wrong names


@pytest.mark.parametrize(
    "name", ["resid_pots", ("resid_post", 9), "blocks.1.attn.hook_scores", "blocks.*.hook_nothing"]
)
def test_wrong_names(vla, inputs, name):
    calls = [
        lambda: vla.run_with_cache(inputs, names=name),
        lambda: vla.run_with_hooks(inputs, [(name, half)]),
        lambda: vla.run_with_gradients(inputs, lambda out: out.normalized.sum(), names=name),
        lambda: vla.shapes(inputs, name),
        lambda: vla.describe(name),
    ]
    for call in calls:
        with pytest.raises(UnknownName, match="possible: "):
            call()


@pytest.mark.parametrize("tokens", ["acton_read", "text:nothing", "action_read.dq", "sideview[0, 0]"])
def test_wrong_tokens(vla, inputs, tokens):
    with pytest.raises(UnknownName):
        vla.run_with_cache(inputs, names=RESID, tokens=tokens)
    with pytest.raises(UnknownName):
        vla.run_with_hooks(inputs, [(RESID, half, tokens)])


# -- empty selections


def test_empty_selections(vla, inputs):
    for call, text in (
        (lambda: vla.run_with_cache(inputs, names=[]), "no site was named"),
        (lambda: vla.run_with_cache(inputs, names=("resid_post", slice(7, 9))), "are none"),
        (lambda: vla.run_with_cache(inputs, names=RESID, tokens=[]), "selects nothing"),
        (lambda: vla.run_with_hooks(inputs, [(RESID, half, [])]), "selects nothing"),
        (lambda: vla.layout(inputs).region("wrist", torch.zeros(4, 4)), "no patch"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(IndexError, match="is empty"):
        vla.run_with_cache(inputs, names=RESID, tokens="wrist[3:3, :]")
    with pytest.raises(IndexError, match="is empty"):
        vla.run_with_cache(inputs, names=RESID)[1][2:2]


# -- stale scopes


def test_a_scope_that_has_ended_is_not_entered_again(vla, inputs):
    scope = vla.hooks((RESID, half))
    with scope:
        edited = vla(inputs)
    assert not torch.equal(vla(inputs).values, edited.values)
    with pytest.raises(RuntimeError, match="has ended; a scope is used once"), scope:
        pass


def test_a_scope_is_not_entered_twice(vla):
    scope = vla.hooks((RESID, half))
    with scope, pytest.raises(RuntimeError, match="is entered already"), scope:
        pass
    assert vla.edits() == ()


def test_a_scope_that_was_never_entered_warns(vla, inputs):
    with pytest.warns(RuntimeWarning, match="never entered"):
        vla.hooks((RESID, half))
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vla.run_with_hooks(inputs, [(RESID, half)])
        vla.hooks()
        gc.collect()


def test_the_policy_that_a_scope_hands_out_outlives_it_without_its_edits(vla, inputs):
    plain = vla(inputs)
    with vla.hooks((RESID, half)) as edited:
        pass
    assert edited is vla and torch.equal(edited(inputs).values, plain.values)


# -- exceptions inside scopes


def test_exceptions_inside_nested_scopes(vla, inputs):
    outer, inner = (RESID, half), (("mlp_out", 2), half)
    alone = vla.run_with_hooks(inputs, [outer])
    with vla.hooks(outer):
        with pytest.raises(ZeroDivisionError), vla.hooks(inner):
            vla.run_with_cache(inputs, names="resid_post")
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            vla.run_with_hooks(inputs, [(("attn_out", 3), lambda x, site: 1 / 0)])
        with pytest.raises(ZeroDivisionError):
            vla.run_with_gradients(inputs, lambda out: 1 / 0, names="embed")
        assert torch.equal(vla(inputs).values, alone.values)


# -- prompts of different length


@pytest.mark.parametrize("short", ["result", "ln1.scale", "attn_scores", "mlp_out"])
def test_edits_in_a_batch_of_different_lengths_are_those_of_single_queries(vla, inputs, short):
    layout = vla.layout(inputs)
    assert len(set(layout.lengths)) == 2
    pair = ((short, 1), lambda x, site: x * 1.5, "action_read")
    both = vla.run_with_hooks(inputs, [pair])
    assert not torch.equal(both.values, vla(inputs).values)
    for sample in (0, 1):
        alone = vla.run_with_hooks(inputs[sample], [pair])
        torch.testing.assert_close(both.normalized[sample], alone.normalized[0], atol=2e-5, rtol=1e-4)


def test_padding_has_no_say(vla, inputs):
    """What an edit writes at the padding of the shorter prompt changes no action."""
    padding = ~vla.layout(inputs).attention_mask
    assert bool(padding.any())

    def shout(x, site):
        return x.masked_fill(padding[..., None], 100.0)

    shouted = vla.run_with_hooks(inputs, [("resid_post", shout)])
    torch.testing.assert_close(shouted.normalized, vla(inputs).normalized, atol=2e-5, rtol=1e-4)


# -- values that are not finite


@pytest.mark.parametrize(
    "site", [RESID, ("q", 2), ("result", 0), ("ln2.scale", 3), ("attn_scores", 1), "action_head.in"]
)
@pytest.mark.parametrize("tokens", [None, "first"])
def test_an_edit_that_writes_nan_is_an_error_that_names_the_site(vla, inputs, site, tokens):
    tokens = tokens and ("t0" if site == "action_head.in" else "bos")
    pair = (site, nan) if tokens is None else (site, nan, tokens)
    with pytest.raises(FloatingPointError, match="check_finite = False") as error:
        vla.run_with_hooks(inputs, [pair])
    assert str(vla.site(site)) in " ".join([str(error.value), *error.value.__notes__])


def test_infinities_are_refused_and_a_mask_of_scores_is_not(vla, inputs):
    with pytest.raises(FloatingPointError):
        vla.run_with_hooks(inputs, [(RESID, lambda x, site: x / 0)])
    with pytest.raises(FloatingPointError):
        vla.run_with_hooks(inputs, [(("attn_scores", 1), lambda x, site: x + torch.inf)])

    def blind(x, site):
        x = x.clone()
        x[..., 5] = -torch.inf
        return x

    with vla.hooks((("attn_scores", 1), blind)):
        out, cache = vla.run_with_cache(inputs, names=["attn_scores", "pattern"])
    assert bool(out.values.isfinite().all()) and not bool(cache["pattern", 1].values[..., 5].any())


def test_the_check_can_be_turned_off(vla, inputs):
    vla.check_finite = False
    try:
        assert bool(vla.run_with_hooks(inputs, [(RESID, nan)]).values.isnan().all())
    finally:
        vla.check_finite = True


def test_what_was_not_finite_before_may_stay_so():
    """An edit answers for what it brings in, not for what it found."""
    edit = SimpleNamespace(site=Site("blocks.0.hook_resid_post"))
    old = torch.tensor([[[1.0], [torch.inf], [-torch.inf], [torch.nan]]])
    Ledger(1).note(edit, old, old + 1, None, None)
    padding = torch.tensor([[False, True, True, True]])
    for new in (torch.tensor([torch.nan, torch.inf, 0.0, 0.0]), torch.tensor([torch.inf, 0.0, 0.0, 0.0])):
        for valid in (None, padding):  # padding is a key of the attention, so what is written there counts
            with pytest.raises(FloatingPointError, match=r"wrote NaN or infinite values .*\(1 of 4\)"):
                Ledger(1).note(edit, old, new[None, :, None], valid, None)
        Ledger(1).note(edit, old, new[None, :, None], padding, None, chosen=True)  # and is not where tokens were chosen


# -- several policies, several threads


def test_two_policies_in_one_process_share_nothing(vla, inputs, make_vla):
    other = make_vla("discrete")
    plain = other(inputs)
    pairs = [("result", half), ("ln1.scale", half), ("resid_post", half)]
    with vla.hooks(*pairs):
        edited = vla(inputs)
        out, cache = other.run_with_cache(inputs, names=["result", "ln1.scale"])
        assert torch.equal(out.values, plain.values) and other.edits() == ()
        with other.hooks(*pairs):
            assert torch.equal(vla(inputs).values, edited.values)
            assert not torch.equal(other.run_with_cache(inputs, "result")[1]["result", 0], cache["result", 0])
    assert torch.equal(other(inputs).values, plain.values)


def test_a_thread_does_not_run_under_the_edits_of_another(vla, inputs):
    found = {}

    def work(name, view):
        try:
            found[name] = view(inputs)
        except RuntimeError as error:
            found[name] = str(error)

    with vla.hooks((RESID, half)):
        for name, view in (("same", vla), ("own", HookedVLA(vla.policy))):
            thread = threading.Thread(target=work, args=(name, view))
            thread.start()
            thread.join()
    assert "edits of another thread are live" in found["same"]
    assert torch.equal(found["own"].values, vla(inputs).values)
    thread = threading.Thread(target=work, args=("later", vla))
    thread.start()
    thread.join()
    assert torch.equal(found["later"].values, vla(inputs).values)


def test_a_thread_does_not_add_to_the_edits_of_another(vla):
    errors = []

    def work():
        try:
            with vla.hooks((RESID, half)):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with vla.hooks((RESID, half)):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert len(vla.edits()) == 1
    assert len(errors) == 1


def test_a_trace_knows_the_names(make_vla):
    vla = make_vla("base")
    inputs = noise_inputs(vla)
    _, cache = vla.run_with_cache(inputs, names=["embed", "resid_post", "result"])
    plain = vla(inputs)
    with vla.trace(inputs) as t:
        embed = t.embed
        second = t.resid_post[1]
        t.resid_post[2] = t.resid_post[2] * 1.0
        heads = t["result", 3]
        action = t.action
    assert torch.equal(embed, cache["embed"]) and torch.equal(second, cache["resid_post", 1])
    assert torch.equal(heads, cache["result", 3]) and torch.equal(action.values, plain.values)
    with pytest.raises(AttributeError, match="'resid_pots'"), vla.trace(inputs) as t:
        t.resid_pots[1]


# -- positions and numbers where names are meant


def test_positions_are_answered_with_names(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=[RESID, "action_head.in"])
    named = cache[RESID]
    for tokens in (3, slice(0, 4), [0, 1]):
        for call in (
            lambda tokens=tokens: vla.run_with_cache(inputs, names=RESID, tokens=tokens),
            lambda tokens=tokens: vla.run_with_hooks(inputs, [(RESID, half, tokens)]),
            lambda tokens=tokens: scale(RESID, 2.0, tokens),
            lambda tokens=tokens: named.at(tokens),
        ):
            with pytest.raises(ValueError, match="tokens have names here"):
                call()
    for key in (0, ("t3", "dz")):
        with pytest.raises(ValueError, match='is no action token; write "t3"'):
            named.action[key]
    for place in (3, (1, 2, 3)):
        with pytest.raises(TypeError, match="a patch has a row and a column"):
            named.agentview[place]


def test_layers_are_whole_numbers_of_any_kind(vla, inputs):
    for layers in (np.int64(2), [np.int64(2)], (2,), np.int32(-2), range(2, 3)):
        assert vla.sites(("resid_post", layers)) == vla.sites(("resid_post", 2))
        edit = scale(("resid_post", layers), 2.0)
        assert Intervention.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit
    assert vla.sites([("resid_post", 1), "embed"]) == vla.sites(("embed", ("resid_post", 1)))
    assert skip(np.int64(2)) == skip(2) and skip([np.int64(2)]) == skip([2])
    _, stopped = vla.run_with_cache(inputs, names="embed", stop_at_layer=np.int64(1))
    assert len(stopped[np.int64(1)]["embed"]) == 1


@pytest.mark.parametrize("layers", [True, [], (), range(0), [1.5], 1.0, None, [True], ["attn_out"]])
def test_what_is_no_layer(vla, inputs, layers):
    for call in (
        lambda: vla.run_with_cache(inputs, names=("resid_post", layers)),
        lambda: vla.run_with_cache(inputs, names=["embed", ("resid_post", layers)]),
        lambda: vla.run_with_hooks(inputs, [(("resid_post", layers), half)]),
        lambda: scale(("resid_post", layers), 2.0),
        lambda: scale(["embed", ("resid_post", layers)], 2.0),
    ):
        with pytest.raises(ValueError, match=r"\('resid_post', .*\) (names no layer|has no such layers): give a whole"):
            call()
    for nothing in ([], ()):
        with pytest.raises(ValueError, match="names no layer"):
            vla.skip(nothing)
    with pytest.raises(ValueError, match="has no such layers"):
        vla.skip(True)


def test_samples_backwards(vla, inputs):
    _, cache = vla.run_with_cache(inputs, names=[RESID, "pattern"])
    back = cache[::-1]
    assert torch.equal(back[RESID], cache[RESID].values.flip(0)) and back.layout == cache.layout[::-1]
    assert torch.equal(back[1]["pattern", 0], cache[0]["pattern", 0])
