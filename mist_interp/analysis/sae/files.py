"""What of a sparse autoencoder is kept (`mist_interp.core.kept`), and how is it exchanged with sae-lens?

The layout of sae-lens differs in names and in the transposed encoder only, so its folders are written and read
without it.

Source of that layout: sae-lens 6, `SAE.save_model` and `TopKSAE`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from mist_interp.core.errors import UnknownName
from mist_interp.core.files import write_atomic
from mist_interp.core.kept import keep, kept, triples
from mist_interp.core.names import Site

if TYPE_CHECKING:
    from mist_interp.analysis.sae.autoencoder import SparseAutoencoder

ARRAYS = ("encoder_", "encoder_bias_", "decoder_", "bias_", "mean_", "covariance_")
SAE = TypeVar("SAE", bound="SparseAutoencoder")


def save_sae(sae: SparseAutoencoder, folder: Path) -> None:
    """Write `sae.safetensors`, then `sae.json`; see `SparseAutoencoder.save`."""
    facts = {
        "params": sae.get_params(),
        "site": None if sae.site_ is None else sae.site_.name,
        "tokens": sae.tokens_,
        "rows": sae.n_rows_,
        "trained_on": sorted(sae.trained_on_),
        "source": sae.source_,
    }
    keep(folder, "sae", facts, {name: getattr(sae, name) for name in ARRAYS})


def load_sae(kind: type[SAE], folder: Path) -> SAE:
    """See `SparseAutoencoder.load`."""
    content, tensors = kept(folder, "sae", "sparse autoencoder")
    sae = kind(**content["params"])
    for name, tensor in tensors.items():
        setattr(sae, name, tensor)
    sae.site_ = None if content["site"] is None else Site(content["site"])
    sae.tokens_, sae.n_rows_, sae.source_ = content["tokens"], content["rows"], content["source"]
    sae.trained_on_ = triples(content["trained_on"])
    return sae


def to_sae_lens(sae: SparseAutoencoder, folder: str | Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors`, which `sae_lens.SAE.load_from_disk` reads.

    Its hook name is our site; start states and covariance stay behind, so keep the folder of `save` as well.
    """
    folder = Path(folder)
    data = sae.source_.get("data", {})
    config = {
        "architecture": "topk",
        "d_in": sae.width_,
        "d_sae": len(sae.decoder_),
        "k": sae.k,
        "rescale_acts_by_decoder_norm": False,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": data.get("model"),
            "hook_name": None if sae.site_ is None else sae.site_.name,
            "tokens": sae.tokens_,
            "made_by": "mist-interp",
        },
    }
    weights = {"W_enc": sae.encoder_.T, "b_enc": sae.encoder_bias_, "W_dec": sae.decoder_, "b_dec": sae.bias_}
    content = {name: value.contiguous() for name, value in weights.items()}
    write_atomic(folder / "sae_weights.safetensors", save_tensors(content))
    write_atomic(folder / "cfg.json", json.dumps(config, indent=2) + "\n")


def from_sae_lens(folder: str | Path, like: SparseAutoencoder) -> SparseAutoencoder:
    """Read a TopK autoencoder trained by sae-lens (`save_inference_model`).

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        like: a fitted autoencoder of the same rows, which gives what sae-lens does not keep: site, tokens, start
            states, mean and covariance. One fitted for a single step will do.

    Raises:
        FileNotFoundError: there is none in this folder.
        ValueError: another architecture or width, one that normalises its input, or decoder rows of different lengths
            of which it takes no account.
    """
    folder = Path(folder)
    path = folder / "cfg.json"
    if not path.is_file():
        raise FileNotFoundError(f"no autoencoder of sae-lens in {folder}: cfg.json is missing")
    config: dict[str, Any] = json.loads(path.read_text())
    if config.get("architecture") != "topk":
        raise UnknownName("architecture", config.get("architecture"), ["topk"])
    if config.get("normalize_activations", "none") != "none":
        raise ValueError(f"{path} normalises its input by {config['normalize_activations']!r}; fold that first")
    weights = load_tensors((folder / "sae_weights.safetensors").read_bytes())
    encoder, encoder_bias, decoder = weights["W_enc"].T, weights["b_enc"], weights["W_dec"]
    if decoder.shape[1] != like.width_:
        raise ValueError(f"{path} is {decoder.shape[1]} wide, the rows are {like.width_}")
    norms = decoder.norm(dim=1)
    if config.get("rescale_acts_by_decoder_norm"):  # they choose by length: the same as with unit norms
        encoder, encoder_bias, decoder = encoder * norms[:, None], encoder_bias * norms, decoder / norms[:, None]
    elif not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        span = f"{float(norms.min()):.3g} to {float(norms.max()):.3g}"
        raise ValueError(f"decoder rows of {path} have norms {span} and it chooses features without them")
    sae = type(like)(**{**like.get_params(), "features": len(norms), "k": int(config["k"])})
    bias = weights["b_dec"]
    # Ours subtracts the bias from the input; where theirs does not, the encoder's bias makes up for it.
    shift = 0.0 if config.get("apply_b_dec_to_input", True) else encoder @ bias
    sae.encoder_, sae.decoder_ = encoder.contiguous(), decoder.contiguous()
    sae.encoder_bias_, sae.bias_ = encoder_bias + shift, bias
    for name in ("mean_", "covariance_", "n_rows_", "site_", "tokens_", "trained_on_"):
        setattr(sae, name, getattr(like, name))
    sae.source_ = {**like.source_, "recipe": {"trained by": "sae-lens", **config.get("metadata", {})}}
    return sae
