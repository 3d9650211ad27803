"""Is a patching grid what its cells are, one forward each, and does it mean what it says?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from patching_policies import make, pairs

from mist_interp.analysis.metrics import Metric, action_delta
from mist_interp.analysis.patching import PatchGrid, averaged, mean_of, noised, patch, swapped
from mist_interp.analysis.patching.cells import PARTITION
from mist_interp.analysis.result import Result
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def by_hand(vla, base, source, site, tokens, head=None, pair=0):
    """Mean action over the chunk of one pair, with some tokens exchanged by an ordinary hook; and without."""
    base, source = base[pair], source[pair]
    _, cache = vla.run_with_cache(source, names=site)

    def exchange(values, site):
        new, selection = values.clone(), cache.layout.select(tokens).index[0]
        if head is None:
            new[:, selection] = cache[site].values[:, selection]
        else:
            new[:, selection, head] = cache[site].values[:, selection, head]
        return new

    with torch.no_grad():
        patched = vla.run_with_hooks(base, [(site, exchange)])
        return (patched.values.mean(1) - vla(base).values.mean(1))[0].numpy()


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp.post", "q"])
def test_a_cell_is_one_forward_with_one_hook(site) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean, corrupt, site=site, batch_size=7)
    assert grid.values.dims == ("pair", "layer", "segment", "dim")
    for layer, segment, pair in ((0, "wrist", 0), (1, "text", 1), (2, "action_slot", 0)):
        expected = by_hand(vla, corrupt, clean, (site, layer), segment, pair=pair)
        found = grid.sel(pair=pair, layer=layer, segment=segment).values
        np.testing.assert_allclose(found, expected, **CLOSE)
    assert np.abs(grid.values).max() > 1e-3


@pytest.mark.parametrize("variant", ["l1", "discrete", "diffusion", "base"])
def test_batches_and_starting_late_change_nothing(variant) -> None:
    vla = make(variant, attention="sdpa")
    clean, corrupt = pairs(vla)
    corrupt = corrupt if clean.noise is None else PolicyInputs(**{**vars(corrupt), "noise": clean.noise})
    options = {"site": ("resid_pre", [0, 2]), "segments": ("agentview", "text"), "over": ("layer", "segment")}
    one = patch(vla, clean, corrupt, **options, batch_size=1, reuse=False)
    many = patch(vla, clean, corrupt, **options, batch_size=5)
    np.testing.assert_allclose(many.values, one.values, **CLOSE)
    assert np.abs(one.values).max() > 1e-3, "nothing was patched"


def test_patching_everything_makes_the_other_run() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    for site in (("resid_pre", 1), ("resid_post", 2), "hook_embed"):
        for direction in ("denoise", "noise"):
            grid = patch(vla, clean, corrupt, site=site, over=(), direction=direction)
            assert grid.values.dims == ("pair", "dim")
            np.testing.assert_allclose(grid.values, grid.full, **CLOSE)
            np.testing.assert_allclose(grid.share.values, 1, atol=1e-3)


def test_patching_a_run_into_itself_changes_nothing() -> None:
    vla = make()
    clean, _ = pairs(vla)
    grid = patch(vla, clean, clean, site="attn_out")
    np.testing.assert_allclose(grid.values, 0, atol=1e-6)
    assert np.isnan(grid.share.values).all(), "a share of nothing is no number"
    assert "NaN" in grid.share.what and "0.001" in grid.share.what


@pytest.mark.parametrize("site", ["z", "result", "k"])
def test_heads(site) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean[0], corrupt[0], site=site, over=("layer", "head"), batch_size=4)
    assert grid.axes["head"] == [0, 1, 2] and grid.values.dims == ("layer", "head", "dim")
    expected = by_hand(vla, corrupt, clean, (site, 1), "all", head=2)
    np.testing.assert_allclose(grid.sel(layer=1, head=2).values, expected, **CLOSE)
    part = patch(vla, clean[0], corrupt[0], site=site, over=("head", "layer"), heads=[2], tokens="action_read")
    assert part.values.dims == ("head", "layer", "dim")
    expected = by_hand(vla, corrupt, clean, (site, 1), "action_read", head=2)
    np.testing.assert_allclose(part.sel(layer=1, head=2).values, expected, **CLOSE)


def test_heads_by_segment() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean, corrupt, site=("z", 0), over=("head", "segment"), segments=("text", "wrist"))
    assert grid.values.dims == ("pair", "head", "segment", "dim")
    expected = by_hand(vla, corrupt, clean, ("z", 0), "wrist", head=1, pair=1)
    np.testing.assert_allclose(grid.sel(pair=1, head=1, segment="wrist").values, expected, **CLOSE)


@pytest.mark.parametrize("site", ["hook_embed", "projector.out"])
def test_patches_and_blocks_of_patches(site) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean[0], corrupt[0], site=site, over=("camera", "row", "col"))
    assert grid.axes["camera"] == ["agentview", "wrist"] and grid.axes["row"] == [0, 1]
    expected = by_hand(vla, corrupt, clean, "hook_embed", "wrist[1, 0]")
    np.testing.assert_allclose(grid.sel(camera="wrist", row=1, col=0).values, expected, **CLOSE)
    blocks = patch(vla, clean[0], corrupt[0], site=site, over=("camera", "row", "col"), block=2)
    assert blocks.axes["row"] == ["0:2"]
    whole = by_hand(vla, corrupt, clean, "hook_embed", "agentview")
    np.testing.assert_allclose(blocks.values.sel(camera="agentview").squeeze(), whole, **CLOSE)


def test_tokens_of_the_prompt() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean[0], corrupt[0], over=("token", "layer"), tokens="text")
    assert len(set(grid.axes["token"])) == 9
    third = vla.layout(clean[0]).select("text").index[0, 2].item()
    _, cache = vla.run_with_cache(clean[0], names=("resid_pre", 1))

    def exchange(values, site):
        return torch.cat([values[:, :third], cache[site].values[:, third : third + 1], values[:, third + 1 :]], 1)

    expected = vla.run_with_hooks(corrupt[0], [(("resid_pre", 1), exchange)]).values - vla(corrupt[0]).values
    np.testing.assert_allclose(grid.values[2, 1], expected.mean(1)[0], **CLOSE)


def test_prompts_of_different_lengths_are_refused_where_they_differ() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    long, short = clean[0], PolicyInputs(**{name: getattr(corrupt[1], name) for name in vars(corrupt)})
    with pytest.raises(ValueError, match=r"6 tokens of 'text'.* and 9 .*equally long in both are bos, agentview"):
        patch(vla, long, short)
    segments = [name for name in PARTITION if name not in ("text", "timestep")]
    grid = patch(vla, long, short, segments=segments)
    one = patch(vla, long, short, segments=segments, reuse=False, batch_size=1)
    np.testing.assert_allclose(grid.values, one.values, **CLOSE)
    with pytest.raises(ValueError, match="same number"):
        patch(vla, clean, corrupt, over=("layer", "token"), tokens="text")


def test_slots_of_prompts_of_different_lengths_go_where_they_belong() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    long, short = clean[0], corrupt[1]
    grid = patch(vla, long, short, site=("resid_post", 2), over=(), tokens="action_read")
    # After the last block only the read positions matter, so exchanging them is all there is to exchange.
    np.testing.assert_allclose(grid.values, grid.full, **CLOSE)


def test_live_edits_stay_live() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    meetings = [("resid_post", "mlp_out"), ("resid_post", "resid_post"), ("resid_pre", "resid_post"), ("mlp_out", "z")]
    for where, site in [*meetings, ("resid_pre", "resid_pre")]:
        with vla.hooks(((where, 1), lambda values, site: 0.3 * values + 0.2)):
            options = {"site": (site, [0, 1]), "segments": ["text", "wrist"]}
            late, whole = (patch(vla, clean, corrupt, **options, reuse=reuse) for reuse in (True, False))
        np.testing.assert_allclose(late.values, whole.values, **CLOSE, err_msg=f"{where} {site}")


def test_noise_and_averages_are_runs() -> None:
    vla = make()
    clean, other = pairs(vla)
    noisy = noised(clean, tokens="agentview", std=2.0, seed=3)
    grid = patch(vla, clean, noisy, site=("resid_pre", 0))
    assert np.abs(grid.full).min() > 1e-5
    share = grid.share.sel(segment="agentview").values
    np.testing.assert_allclose(share, 1, atol=2e-2, err_msg="the noise was there and nowhere else")
    np.testing.assert_allclose(grid.sel(segment="wrist").values, 0, atol=1e-6)
    alone = patch(vla, clean[1], noised(clean[1], tokens="agentview", std=2.0, seed=3), site=("resid_pre", 0))
    np.testing.assert_allclose(alone.values, grid.sel(pair=1).values, **CLOSE)
    whole = patch(vla, clean, noisy, site=("resid_pre", 0), reuse=False)
    np.testing.assert_allclose(grid.values, whole.values, **CLOSE)
    means = patch(vla, clean, averaged(vla, clean, over=other, tokens="proprio"), site=("resid_pre", 0))
    np.testing.assert_allclose(means.sel(segment="proprio", layer=0).values, means.full, **CLOSE)
    assert "noise of std 2" in grid.source["patched"] and "mean of proprio" in means.source["patched"]


def test_mean_activations() -> None:
    vla = make()
    clean, other = pairs(vla)
    clean, many = clean[0], PolicyInputs.cat([clean[0], other[0]])
    with pytest.raises(ValueError, match="noise"):
        patch(vla, clean, mean_of(many))
    grid = patch(vla, clean, mean_of(many), site="z", over=("layer", "head"), direction="noise")
    assert np.isnan(grid.share.values).all()
    _, cache = vla.run_with_cache(many, names="z")

    def mean(values, site):
        new = values.clone()
        new[:, :, 1] = cache[site].values[:, :, 1].mean(0)
        return new

    expected = vla.run_with_hooks(clean, [(("z", 1), mean)]).values - vla(clean).values
    np.testing.assert_allclose(grid.sel(layer=1, head=1).values, expected.mean(1)[0], **CLOSE)
    with pytest.raises(ValueError, match="several"):
        mean_of(clean)
    with pytest.raises(ValueError, match="one length"):
        patch(vla, clean, mean_of(other), direction="noise")


def test_parts_of_queries_are_swapped() -> None:
    vla = make()
    clean, other = pairs(vla)
    grid = patch(vla, clean, swapped(clean, other, "proprio"), site="hook_embed", over=("segment",))
    np.testing.assert_allclose(grid.sel(segment="proprio").values, grid.full, **CLOSE)
    with pytest.raises(UnknownName, match="vision"):
        swapped(clean, other, "visoin")
    with pytest.raises(ValueError, match="batch"):
        swapped(clean, other[0], "vision")


def test_shares_are_pooled_by_what_there_is_to_explain() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean, corrupt, over=("layer", "segment"), metric=action_delta(["dx", "dz"], step="all"))
    assert grid.values.dims == ("pair", "layer", "segment", "step", "dim")
    pooled = grid.pooled("pair", "step")
    assert pooled.values.dims == ("layer", "segment", "dim")
    effect, full = grid.values.values[:, 1, 2, :, 1], grid.full.values[:, :, 1]
    np.testing.assert_allclose(pooled.values[1, 2, 1], (effect * full).sum() / (full**2).sum())
    np.testing.assert_allclose(grid.pooled().values[0].sum() > 0, True)
    with pytest.raises(UnknownName, match="pair"):
        grid.pooled("pairs")


def test_a_grid_is_saved_with_its_shares(tmp_path) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    grid = patch(vla, clean[0], corrupt[0], site=("resid_pre", [0, 1]))
    grid.save(tmp_path / "grid.json")
    again = PatchGrid.load(tmp_path / "grid.json")
    assert again.values.equals(grid.values) and again.share.values.equals(grid.share.values)
    assert Result.load(tmp_path / "grid.json").values.equals(grid.values)
    Result(grid.values).save(tmp_path / "plain.json")
    with pytest.raises(ValueError, match="no patching grid"):
        PatchGrid.load(tmp_path / "plain.json")
    np.testing.assert_array_equal(grid.sel(dim="dz").share.values, grid.share.sel(dim="dz").values)
    assert grid.sel(dim="dz").plot() is not None


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"over": ("layer", "segmnt")}, UnknownName, "segment"),
        ({"over": ("layer", "segment", "token")}, ValueError, "two ways"),
        ({"over": ("layer", "row", "col")}, ValueError, "camera"),
        ({"over": ("segment",)}, ValueError, "3 layers"),
        ({"over": ("layer", "layer")}, ValueError, "twice"),
        ({"over": ("layer", "head")}, ValueError, "not split into heads"),
        ({"over": ("layer", "head"), "site": "z", "heads": [7]}, UnknownName, "head"),
        ({"site": "hook_embed"}, ValueError, "no layers"),
        ({"site": "blocks.*.hook_resid_*"}, ValueError, "several kinds"),
        ({"site": "ln_final.hook_normalized", "over": ("segment",)}, ValueError, "after all blocks"),
        ({"site": "siglip.resid_post"}, ValueError, "inside one vision tower.*cells are tokens of the sequence"),
        ({"site": "pattern"}, ValueError, "pair of query and key.*cells are tokens of the sequence"),
        ({"site": "action_head.hook_in", "over": ("segment",)}, ValueError, "steps of a chunk"),
        ({"metric": lambda chunk: chunk.values}, TypeError, "function without a name"),
        ({"metric": "dz"}, TypeError, "a str; give action_delta"),
        ({"site": "resid_pree"}, UnknownName, "resid_pre"),
        ({"segments": ["wirst"]}, UnknownName, "wrist"),
        ({"direction": "both"}, ValueError, "denoise"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"heads": [0]}, ValueError, "no axis 'head'"),
        ({"metric": action_delta("dq")}, UnknownName, "dx"),
        ({"metric": Metric("bad", "", lambda chunk: chunk.values)}, ValueError, "with the axes it names"),
        ({"metric": Metric("nan", "", lambda chunk: chunk.values[:, 0, 0] / 0)}, ValueError, "not finite"),
    ],
)
def test_what_cannot_be_is_refused(options, error, match) -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    with pytest.raises(error, match=match):
        patch(vla, clean, corrupt, **options)


def test_one_axis_needs_no_tuple_and_the_possible_sites_are_possible() -> None:
    vla = make()
    clean, corrupt = (side[0] for side in pairs(vla))
    options = {"metric": action_delta("dz"), "tokens": "wrist"}
    one, same = (patch(vla, clean, corrupt, over=over, **options) for over in ("layer", ("layer",)))
    assert one.values.equals(same.values) and one.values.dims == ("layer",)
    names = [
        "hook_embed",
        "resid_mid",
        "attn_out",
        "mlp_out",
        "q",
        "k",
        "v",
        "z",
        "result",
        "mlp.pre",
        "ln1.normalized",
    ]
    for name in [*names, "projector.hook_out"]:
        patch(
            vla, clean, corrupt, name, over=() if name in ("hook_embed", "projector.hook_out") else "layer", **options
        )
    patch(vla, clean, corrupt, "ln_final.hook_normalized", over="segment", metric=action_delta("dz"), reuse=False)


def test_pairs_must_be_pairs() -> None:
    vla = make()
    clean, corrupt = pairs(vla)
    with pytest.raises(ValueError, match="pair by pair"):
        patch(vla, clean, corrupt[0])
    with pytest.raises(TypeError, match="no run"):
        patch(vla, "clean", corrupt)
    with pytest.raises(ValueError, match=r"inputs\.noise"):
        diffusion = make("diffusion")
        queries = [PolicyInputs(**{**vars(side), "noise": None}) for side in pairs(diffusion)]
        patch(diffusion, *queries)
