"""Does every name find its site, and every wrong name an answer?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mist_interp.core.errors import UnknownName
from mist_interp.core.hooks import BY_PATTERN, HOOKS
from mist_interp.core.names import Catalogue, Site

DEPTHS = {"dino": 3, "siglip": 2, "llm": 4, "head": 2}
ABSENT = {"blocks.{i}.attn.hook_pattern": "attention weights exist only with attn_implementation='eager'"}
FULL = Catalogue(DEPTHS)
SDPA = Catalogue(DEPTHS, ABSENT)


@given(st.sampled_from(HOOKS), st.integers(0, 99), st.booleans())
def test_name_to_site_to_name(hook, layer, drop_hook):
    name = hook.pattern.replace("{i}", str(layer))
    given_name = name.replace("hook_", "") if drop_hook else name
    site = Site(given_name)
    assert str(site) == name
    assert Site(str(site)) == site and hash(Site(str(site))) == hash(site)
    assert site.hook is hook
    assert site.layer == (layer if hook.stack else None)


@given(st.sampled_from(HOOKS), st.data())
def test_all_forms_of_a_key_mean_the_same_site(hook, data):
    if hook.stack is None:
        expected = Site(hook.pattern)
        keys = [hook.short, hook.pattern, expected, hook.pattern.replace("hook_", "")]
    else:
        depth = DEPTHS[hook.stack]
        layer = data.draw(st.integers(0, depth - 1))
        expected = Site(hook.pattern.replace("{i}", str(layer)))
        from_end = hook.pattern.replace("{i}", str(layer - depth))
        keys = [
            (hook.short, layer),
            (hook.short, layer - depth),
            (hook.pattern, layer),
            expected,
            str(expected),
            from_end,
        ]
    assert {FULL.one(key) for key in keys} == {expected}
    assert FULL.one(expected.key) == expected


def test_every_short_form_is_unique_and_every_row_says_something():
    assert len({hook.short for hook in HOOKS}) == len(HOOKS) == len(BY_PATTERN)
    for hook in HOOKS:
        assert hook.meaning.endswith(".") and hook.shape.startswith("(batch")
        assert ("{i}" in hook.pattern) == (hook.stack is not None)


def test_the_catalogue_lists_sites_in_the_order_of_the_network():
    names = FULL.names
    assert len(names) == len(set(names)) == 5 * (3 + 2) + 1 + 2 + 1 + 19 * 4 + 3 + 1 + 2 + 1
    expected = ["projector.hook_out", "hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_q"]
    expected += [
        "blocks.0.hook_attn_out",
        "blocks.0.hook_resid_mid",
        "blocks.0.hook_mlp_out",
        "blocks.0.hook_resid_post",
    ]
    expected += ["blocks.1.hook_resid_pre", "ln_final.hook_normalized", "action_head.hook_in", "action_head.hook_out"]
    assert [names.index(name) for name in expected] == sorted(names.index(name) for name in expected)


def test_several_layers():
    four = [f"blocks.{i}.hook_resid_post" for i in range(4)]
    assert [str(s) for s in FULL.expand("resid_post")] == four
    assert [str(s) for s in FULL.expand(("resid_post", range(1, 3)))] == four[1:3]
    assert [str(s) for s in FULL.expand(("resid_post", [0, -1]))] == [four[0], four[3]]
    assert [str(s) for s in FULL.expand(("resid_post", slice(2, None)))] == four[2:]
    assert [str(s) for s in FULL.expand([("resid_post", 3), "embed", ("resid_post", -1)])] == ["hook_embed", four[3]]


def test_patterns():
    heads = ("q", "k", "v", "attn_scores", "pattern", "z", "result")
    found = {str(s) for s in FULL.expand("blocks.*.attn.*")}
    assert found == {f"blocks.{i}.attn.hook_{n}" for i in range(4) for n in heads}
    assert len(FULL.expand("blocks.[12].resid_p*")) == 4
    assert FULL.expand("*") == FULL.sites
    assert "blocks.0.attn.hook_pattern" not in {str(s) for s in SDPA.expand("blocks.*.attn.*")}


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("resid_pots", "'resid_post'"),
        ("blocks.3.hook_resid_pst", "'blocks.3.hook_resid_post'"),
        ("hook_embd", "'hook_embed'"),
        (("atn_out", 3), "'attn_out'"),
        ("blocks.*.hook_mlp_ut", "hook_mlp_out'"),
        ("projector.hook_in", "'projector.hook_out'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(key, nearest):
    with pytest.raises(UnknownName) as error:
        FULL.expand(key)
    assert "did you mean" in str(error.value) and nearest in str(error.value)


def test_the_three_closest_are_named():
    with pytest.raises(UnknownName, match=r"did you mean '\S+', '\S+' or '\S+'\?"):
        FULL.expand("blocks.2.hook_resid_pot")


@pytest.mark.parametrize(
    "key", [("resid_post", 4), ("resid_post", -5), "blocks.4.hook_resid_post", ("dino.resid_post", 3)]
)
def test_a_layer_outside_is_refused(key):
    with pytest.raises(UnknownName, match="layer of"):
        FULL.expand(key)


@pytest.mark.parametrize("key", [3, None, object(), [3], ("resid_post", "3", 1)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(UnknownName):
        FULL.expand(key)


@pytest.mark.parametrize("key", [[], (), ("resid_post", slice(4, None)), ("embed", 0)])
def test_nothing_ever_means_nothing(key):
    with pytest.raises(ValueError, match=r"no site was named|are none|has no layers"):
        FULL.expand(key)


def test_a_site_that_this_policy_lacks_says_why():
    for key in ("pattern", ("pattern", 0), "blocks.0.attn.hook_pattern", Site("blocks.0.attn.hook_pattern")):
        with pytest.raises(ValueError, match="attn_implementation='eager'"):
            SDPA.expand(key)


def test_one_refuses_several():
    with pytest.raises(ValueError, match="names 4 sites"):
        FULL.one("resid_post")


def test_a_site_alone_cannot_count_from_the_end():
    with pytest.raises(ValueError, match="needs a policy"):
        Site("blocks.-1.hook_resid_post")
