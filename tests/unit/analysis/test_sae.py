"""A sparse autoencoder finds planted features, counts dead ones, can be cut, kept and cloned, and refuses clearly."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone

from mist_interp.analysis.sae.autoencoder import SparseAutoencoder
from mist_interp.analysis.sae.files import from_sae_lens, to_sae_lens
from mist_interp.analysis.sae.quality import report
from mist_interp.analysis.sae.rows import TokenRows
from mist_interp.analysis.sae.training import Recipe, begin, folded, top_k, update
from mist_interp.core.names import Site
from mist_interp.data.activation_set import ActivationSet
from mist_interp.data.records import Unit
from tests.unit.analysis.sae_fixtures import best_cosines, planted

torch.set_num_threads(1)
SMALL = {"features": 64, "k": 3, "steps": 600, "batch_size": 256, "learning_rate": 3e-3, "dead_after": 5000}


def rows_of(x: np.ndarray, init_state: int = 0) -> TokenRows:
    """The rows as tokens of some queries of one start state."""
    units = tuple(Unit("libero_spatial", 0, init_state) for _ in x)
    return TokenRows.of_set(ActivationSet(x, units, Site("blocks.1.hook_resid_post"), "vision", "mean", {"model": "m"}))


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    return planted()


@pytest.fixture(scope="module")
def fitted(data: tuple[np.ndarray, np.ndarray]) -> SparseAutoencoder:
    return SparseAutoencoder(**SMALL).fit(rows_of(data[0][:5000]))


def test_a_planted_dictionary_is_recovered(fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]) -> None:
    cosines = best_cosines(fitted.decoder_.numpy(), data[1])
    assert cosines.min() > 0.98
    judged = report(fitted, rows_of(data[0][5000:], init_state=1))
    assert judged.explained_variance > 0.95 and judged.explained_variance > judged.pca_explained_variance + 0.4
    assert judged.l0 <= 3 and judged.held_out is True and "held-out" in str(judged)


def test_codes_are_sparse_positive_and_lengths_in_units_of_the_rows(
    fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]
) -> None:
    x = torch.from_numpy(data[0][5000:5100])
    codes = fitted.encode(x)
    assert (codes >= 0).all() and ((codes > 0).sum(1) <= 3).all()
    torch.testing.assert_close(fitted.decoder_.norm(dim=1), torch.ones(64))
    added = fitted.decode(codes) - fitted.bias_
    torch.testing.assert_close(added, sum(codes[:, [f]] * fitted.decoder_[f] for f in range(64)), rtol=1e-4, atol=1e-4)
    batched = fitted.encode(x.reshape(4, 25, -1))
    torch.testing.assert_close(batched.reshape(100, -1), codes)
    np.testing.assert_allclose(fitted.transform(x.numpy()), codes.numpy())
    np.testing.assert_allclose(fitted.inverse_transform(codes.numpy()), fitted.decode(codes).numpy(), rtol=1e-6)


def test_weights_in_units_of_the_rows_say_the_same_as_those_in_scaled_units(
    data: tuple[np.ndarray, np.ndarray],
) -> None:
    x = torch.from_numpy(data[0][:512])
    training = begin(Recipe(16, 3, 10, 512, 0.1, None, 1 / 32, 5000, 0), x)
    for _ in range(3):
        update(training, x)
    own, kept = training.weights, folded(training)
    scaled = (x - training.shift) / training.scale
    codes = top_k((scaled - own["bias"]) @ own["encoder"].T + own["encoder_bias"], 3)
    outside = top_k((x - kept["bias"]) @ kept["encoder"].T + kept["encoder_bias"], 3)
    assert float(own["encoder_bias"].detach().abs().min()) > 0.01
    torch.testing.assert_close(outside, codes.detach() * training.scale, rtol=1e-3, atol=1e-3)
    rebuilt = (codes @ own["decoder"] + own["bias"]) * training.scale + training.shift
    torch.testing.assert_close(outside @ kept["decoder"] + kept["bias"], rebuilt.detach(), rtol=1e-3, atol=1e-3)


def test_top_k_keeps_the_largest_of_the_positive() -> None:
    pre = torch.tensor([[-1.0, -2.0, 3.0, 0.5], [-1.0, -3.0, -2.0, -4.0], [5.0, 4.0, 6.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 6.0, 0.0]])
    assert torch.equal(top_k(pre, 2), expected) and torch.equal(top_k(pre, 9), pre.relu())


def test_the_explained_variance_is_what_it_says(fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]) -> None:
    x = data[0][5000:].astype(np.float64)
    rest = x - fitted.inverse_transform(fitted.transform(data[0][5000:]))
    expected = 1 - (rest**2).sum() / ((x - x.mean(0)) ** 2).sum()
    judged = report(fitted, data[0][5000:])
    assert judged.explained_variance == pytest.approx(expected, abs=1e-6) == fitted.score(data[0][5000:])
    assert judged.held_out is None
    centred = (x - fitted.mean_.numpy()) @ np.linalg.svd(fitted.covariance_.numpy())[0][:, :3]
    squares = ((x - fitted.mean_.numpy()) ** 2).sum() - (centred**2).sum()
    assert judged.pca_explained_variance == pytest.approx(1 - squares / ((x - x.mean(0)) ** 2).sum(), abs=1e-5)


def test_dead_features_are_counted_and_living_ones_are_not(
    fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]
) -> None:
    x = data[0][5000:]
    frequency = (fitted.transform(x) > 0).mean(0)
    judged = report(fitted, x)
    np.testing.assert_allclose(judged.frequency.values.values, frequency)
    assert judged.dead == (frequency == 0).sum() and judged.l0 == pytest.approx(frequency.sum())
    silenced = copy.deepcopy(fitted)
    silenced.encoder_bias_[:] = -1e4
    silenced.encoder_bias_[:10] = 1e4
    assert report(silenced, x).dead >= 54


def test_the_term_of_the_dead_features_brings_them_back(data: tuple[np.ndarray, np.ndarray]) -> None:
    settings = SMALL | {"features": 32, "dead_after": 2000, "learning_rate": 1e-2}
    without = SparseAutoencoder(**settings, aux_k=0).fit(data[0][:5000])
    with_term = SparseAutoencoder(**settings).fit(data[0][:5000])
    assert with_term.score(data[0][5000:]) > without.score(data[0][5000:]) + 0.01


def test_a_training_that_was_cut_ends_at_the_same_numbers(
    tmp_path: Path, data: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mist_interp.analysis.sae.autoencoder.STEPS_PER_CHECKPOINT", 25)
    settings = SMALL | {"steps": 45}  # 19 batches an epoch: the checkpoint is inside the second
    whole = SparseAutoencoder(**settings).fit(rows_of(data[0][:5000]))
    path = tmp_path / "training.safetensors"

    def cut(progress: object) -> None:
        if progress.step == 33:  # type: ignore[attr-defined]  # a FitProgress
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SparseAutoencoder(**settings).fit(rows_of(data[0][:5000]), checkpoint=path, on_progress=cut)
    steps: list[int] = []
    again = SparseAutoencoder(**settings).fit(
        rows_of(data[0][:5000]), checkpoint=path, on_progress=lambda progress: steps.append(progress.step)
    )
    assert steps == list(range(26, 46))
    for name in ("encoder_", "encoder_bias_", "decoder_", "bias_", "mean_", "covariance_"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    with pytest.raises(ValueError, match=r"recipe\.k: 3 there, 4 now"):
        SparseAutoencoder(**settings | {"k": 4}).fit(rows_of(data[0][:5000]), checkpoint=path)
    with pytest.raises(ValueError, match="start_states"):
        SparseAutoencoder(**settings).fit(rows_of(data[0][:5000], init_state=7), checkpoint=path)


def test_the_same_seed_gives_the_same_features_and_leaves_torch_alone(data: tuple[np.ndarray, np.ndarray]) -> None:
    settings = SMALL | {"steps": 20}
    torch.manual_seed(3)
    one = SparseAutoencoder(**settings).fit(data[0]).decoder_
    drawn = torch.rand(3)
    assert torch.equal(one, SparseAutoencoder(**settings).fit(data[0]).decoder_)
    assert not torch.equal(one, SparseAutoencoder(**settings | {"seed": 1}).fit(data[0]).decoder_)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


def test_batches_from_any_iterator_train_as_well(data: tuple[np.ndarray, np.ndarray]) -> None:
    sae = SparseAutoencoder(**SMALL)
    for _ in range(16):
        for start in range(0, 5000, 250):
            sae.partial_fit(torch.from_numpy(data[0][start : start + 250]))
    assert sae.n_rows_ == 80_000 and sae.score(data[0][5000:]) > 0.9
    with pytest.raises(ValueError, match="rows are 5 wide, this autoencoder 24"):
        sae.partial_fit(data[0][:, :5])


def test_scikit_learn_knows_it(fitted: SparseAutoencoder) -> None:
    other = clone(fitted)
    assert other.get_params() == fitted.get_params() and not hasattr(other, "decoder_")
    assert other.set_params(k=5).k == 5


def test_a_saved_autoencoder_is_equal(tmp_path: Path, fitted: SparseAutoencoder) -> None:
    fitted.save(tmp_path)
    again = SparseAutoencoder.load(tmp_path)
    for name in ("encoder_", "encoder_bias_", "decoder_", "bias_", "mean_", "covariance_"):
        assert torch.equal(getattr(again, name), getattr(fitted, name)), name
    for name in ("site_", "tokens_", "trained_on_", "source_", "n_rows_"):
        assert getattr(again, name) == getattr(fitted, name), name
    assert again.get_params() == fitted.get_params() and repr(again) == repr(fitted)
    with pytest.raises(FileNotFoundError, match=r"sae\.json is missing"):
        SparseAutoencoder.load(tmp_path / "nothing")
    (tmp_path / "sae.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="has format 99"):
        SparseAutoencoder.load(tmp_path)


def test_folders_of_sae_lens_are_written_and_read(
    tmp_path: Path, fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]
) -> None:
    to_sae_lens(fitted, tmp_path)
    x = torch.from_numpy(data[0][:50])
    again = from_sae_lens(tmp_path, like=fitted)
    torch.testing.assert_close(again.encode(x), fitted.encode(x))
    assert again.site_ == fitted.site_
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"], config["k"]) == ("topk", 24, 64, 3)
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    whole = from_sae_lens(tmp_path, like=fitted)
    pre = x @ fitted.encoder_.T + fitted.encoder_bias_
    torch.testing.assert_close((x - whole.bias_) @ whole.encoder_.T + whole.encoder_bias_, pre, rtol=1e-3, atol=1e-3)
    norms = torch.linspace(0.5, 2, 64)
    weights = {"W_enc": (fitted.encoder_ / norms[:, None]).T, "b_enc": fitted.encoder_bias_ / norms}
    weights |= {"W_dec": fitted.decoder_ * norms[:, None], "b_dec": fitted.bias_}
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"rescale_acts_by_decoder_norm": True}))
    torch.testing.assert_close(from_sae_lens(tmp_path, like=fitted).encode(x), fitted.encode(x), rtol=1e-4, atol=1e-4)
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"norms 0\.5 to 2"):
        from_sae_lens(tmp_path, like=fitted)
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"architecture": "jumprelu"}))
    with pytest.raises(ValueError, match="unknown architecture 'jumprelu'"):
        from_sae_lens(tmp_path, like=fitted)


def test_sae_lens_itself_computes_the_same(
    tmp_path: Path, fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    to_sae_lens(fitted, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path))
    x = torch.from_numpy(data[0][:200])
    torch.testing.assert_close(theirs.encode(x), fitted.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(x), fitted.decode(fitted.encode(x)), rtol=1e-4, atol=1e-4)


def test_a_feature_is_a_direction_whose_unit_is_a_standard_deviation(
    fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]
) -> None:
    feature = int(fitted.sigma_.argmax())
    direction = fitted.direction(feature)
    projection = data[0][:5000].astype(np.float64) @ fitted.decoder_[feature].numpy()
    # Moments are of the rows seen in training, of which the last of each epoch are left out.
    assert direction.norm == pytest.approx(projection.std(), rel=0.01)
    assert float(torch.nn.functional.cosine_similarity(direction.vector, fitted.decoder_[feature], dim=0)) > 0.9999
    assert (direction.site.name, direction.tokens) == ("blocks.1.hook_resid_post", "vision")
    assert direction.trained_on == {("libero_spatial", 0, 0)} and direction.source["feature"] == feature
    assert float(fitted.sigma_.min()) < 0.97 * direction.norm == pytest.approx(0.97 * float(fitted.sigma_[feature]))
    with pytest.raises(IndexError, match="feature 64: the dictionary has 0 to 63"):
        fitted.direction(64)
    bare = SparseAutoencoder(**SMALL | {"steps": 2}).fit(data[0])
    with pytest.raises(ValueError, match="no site"):
        bare.direction(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 65}, "k is 65, but there are only 64 features"),
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"aux_k": -1}, "aux_k is -1"),
    ],
)
def test_impossible_settings_are_refused_in_fit(
    settings: dict[str, float], message: str, data: tuple[np.ndarray, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match=message):
        SparseAutoencoder(**SMALL | settings).fit(data[0])


def test_impossible_rows_are_refused(fitted: SparseAutoencoder, data: tuple[np.ndarray, np.ndarray]) -> None:
    sae = SparseAutoencoder(**SMALL)
    broken = data[0].copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match="1 of the activations are not finite"):
        sae.fit(broken)
    with pytest.raises(ValueError, match=r"shape \(24,\)"):
        sae.fit(data[0][0])
    with pytest.raises(ValueError, match="all equal"):
        sae.fit(np.ones((50, 24)))
    with pytest.raises(ValueError, match="all equal"):
        report(fitted, np.ones((50, 24)))
    with pytest.raises(ValueError, match="rows are 7 wide"):
        report(fitted, data[0][:, :7])
    with pytest.raises(AttributeError):
        _ = sae.width_
