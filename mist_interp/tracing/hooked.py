"""How does one look into a policy, and reach into it, while it acts?

`HookedVLA` wraps a policy without changing it. Calling it answers a query like the policy itself; `run_with_cache` also
hands over named activations, `run_with_hooks` and the scope `hooks` replace them on the way:

    vla = HookedVLA.from_pretrained("mini")
    action, cache = vla.run_with_cache(inputs, names=["resid_post", "attn_out"], tokens="action_read")
    with vla.hooks((("mlp_out", 2), lambda x, site: 0.5 * x)):
        vla(inputs)

An edit lives exactly as long as its scope; captured values are those after all edits. With no edit alive, calling the
object runs the plain network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, overload

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.axes import TokenAxis, axis_of
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Catalogue, Site, SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.models.validation import check_inputs
from mist_interp.tracing.activation import take, token_dim
from mist_interp.tracing.cache import ActivationCache, Entry
from mist_interp.tracing.checks import Report, check
from mist_interp.tracing.edits import Edit, edits_of
from mist_interp.tracing.engine import Engine
from mist_interp.tracing.facts import Facts
from mist_interp.tracing.locations import catalogue as catalogue_of
from mist_interp.tracing.locations import locate
from mist_interp.tracing.plan import edit_workers, pick_run, pick_sites, read_workers

# What a user hands over as names: one key or several.
Names = SiteKey | Iterable[SiteKey]


class HookedVLA:
    """A policy whose activations have names, to be read and replaced.

    Attributes:
        policy: the network itself, untouched.
    """

    def __init__(self, policy: Any):
        self.policy = policy
        self._engine = Engine(policy)
        self._live: list[Edit] = []
        self._catalogue: tuple[str, Catalogue] | None = None

    @staticmethod
    def from_pretrained(
        path_or_id: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        attn_implementation: str | None = None,
        unnorm_key: str | None = None,
        num_images: int | None = None,
        use_proprio: bool | None = None,
        **options: Any,
    ) -> HookedVLA:
        """Load a published or shipped policy; see `mist_interp.models.load_policy` for the arguments and errors.

        The weights are frozen, so a forward builds no graph unless a hook brings in a tensor that requires a gradient.
        """
        from mist_interp.models import load_policy

        options |= {"dtype": dtype, "device": device, "attn_implementation": attn_implementation}
        options |= {"unnorm_key": unnorm_key, "num_images": num_images, "use_proprio": use_proprio}
        policy = load_policy(path_or_id, **{name: value for name, value in options.items() if value is not None})
        return HookedVLA(policy.eval().requires_grad_(False))

    # -- what there is ----------------------------------------------------------------------------------------------

    @property
    def cfg(self) -> Facts:
        """Sizes and settings: n_layers, d_model, chunk, cameras, ..."""
        return Facts.of(self.policy)

    @property
    def catalogue(self) -> Catalogue:
        """The names that this policy has, as it is configured now."""
        attention = self.policy.config.llm._attn_implementation
        if self._catalogue is None or self._catalogue[0] != attention:
            self._catalogue = (attention, catalogue_of(self.policy))
        return self._catalogue[1]

    def site(self, key: SiteKey) -> Site:
        """The one site that `key` names, layers counted from either end."""
        return self.catalogue.one(key)

    def sites(self, names: Names = "*") -> tuple[Site, ...]:
        """All sites that `names` match, in the order of the network."""
        return self.catalogue.expand(names)

    def describe(self, names: Names = "*") -> str:
        """One line per name: shape and meaning, the layers of one name together. To be printed."""
        rows: dict[str, list[Site]] = {}
        for site in self.sites(names):
            rows.setdefault(site.hook.pattern, []).append(site)
        lines = []
        for pattern, sites in rows.items():
            layers = [site.layer for site in sites if site.layer is not None]
            span = f"  [{layers[0]}..{layers[-1]}]" if len(layers) > 1 else ""
            name = pattern if len(layers) > 1 else str(sites[0])
            lines.append(f"{name}{span}  {sites[0].hook.shape}\n    {sites[0].hook.meaning}")
        return "\n".join(lines)

    def layout(self, inputs: PolicyInputs) -> TokenLayout:
        """Names of all tokens of the sequence that these inputs become."""
        return self.policy.layout(self._ready(inputs))

    def edits(self) -> tuple[Edit, ...]:
        """Edits that are live now, in the order in which they apply where they meet."""
        return tuple(self._live)

    def check(self, inputs: PolicyInputs | None = None) -> Report:
        """Verify the attention regime, the layout and that reading changes nothing; see `mist_interp.tracing.checks`.

        Raises:
            RuntimeError: one of them does not hold.
        """
        return check(self, inputs)

    # -- running ----------------------------------------------------------------------------------------------------

    def prepare(self, obs: dict[str, Any] | Sequence[dict[str, Any]], instruction: str | Sequence[str]) -> PolicyInputs:
        """Inputs of a LIBERO observation dict and an instruction, or of lists of both."""
        return self.policy.prepare(obs, instruction)

    def __call__(self, inputs: PolicyInputs) -> ActionChunk:
        """Answer a query under the live edits; without any, exactly the plain network."""
        inputs = self._ready(inputs)
        if not self._live:
            return self._engine.plain(partial(self.policy, inputs))
        workers = edit_workers(self._live, self.policy, inputs)
        return self._engine.traced(partial(self.policy, inputs), workers, inputs.batch_size)

    @overload
    def run_with_cache(
        self,
        inputs: PolicyInputs,
        names: Names | None = ...,
        tokens: Selector | None = ...,
        stop_at_layer: None = ...,
        device: torch.device | str | None = ...,
        dtype: torch.dtype | None = ...,
        step: int | None = ...,
    ) -> tuple[ActionChunk, ActivationCache]: ...

    @overload
    def run_with_cache(
        self,
        inputs: PolicyInputs,
        names: Names | None = ...,
        tokens: Selector | None = ...,
        stop_at_layer: int = ...,
        device: torch.device | str | None = ...,
        dtype: torch.dtype | None = ...,
        step: int | None = ...,
    ) -> tuple[None, ActivationCache]: ...

    def run_with_cache(
        self,
        inputs: PolicyInputs,
        names: Names | None = None,
        tokens: Selector | None = None,
        stop_at_layer: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        step: int | None = None,
    ) -> tuple[ActionChunk | None, ActivationCache]:
        """Answer a query and keep activations on the way, as they are after all live edits.

        Args:
            inputs: the query.
            names: sites to keep; None keeps every stream (embeddings, residual stream, what attention and MLP add,
                projectors, head) and leaves out the insides of attention and MLP.
            tokens: keep only these tokens; None keeps all.
            stop_at_layer: end the forward before this block of the language model; the action is then None.
            device: where to keep the values; None leaves them where they are.
            dtype: type to keep them in; None leaves it.
            step: which run of the language model to keep, where one query takes several; negative counts from the end.
                Default: the prefill of base OpenVLA, the last denoising step of a diffusion head.

        Returns:
            The action chunk, and the cache.

        Raises:
            UnknownName: a name or a token that does not exist here.
            ValueError: a site that this policy lacks, or that comes after `stop_at_layer`.
        """
        inputs = self._ready(inputs)
        stop = None if stop_at_layer is None else self.catalogue.one(("resid_pre", stop_at_layer))
        layout, run = self.policy.layout(inputs), pick_run(self.policy, step)
        sites = pick_sites(self.catalogue, names, tokens, stop, layout)
        kept: dict[Site, Entry] = {}
        axes: dict[tuple[str, int], TokenAxis] = {}

        def keep(site: Site, values: torch.Tensor) -> None:
            dim = token_dim(site)
            kind, length = site.hook.axis, values.shape[dim]
            if (kind, length) not in axes:
                axes[kind, length] = axis_of(kind, layout, length, run)
            axis, values = axes[kind, length], values.detach()
            # A copy, because the network may go on writing into its own memory.
            values = values.clone() if tokens is None else take(values, axis.select(tokens), dim)
            kept[site] = Entry(values.to(device=device, dtype=dtype).contiguous(), axis)

        # An edit behind the stop has nothing to change in this forward.
        live = [edit for edit in self._live if stop is None or edit.site.order < stop.order]
        workers = edit_workers(live, self.policy, inputs) + read_workers(sites, self.policy, run, keep)
        stop_path = None if stop is None else locate(stop, self.policy).path
        out = self._engine.traced(partial(self.policy, inputs), workers, inputs.batch_size, stop_path)
        kept_tokens = tokens if tokens is None or isinstance(tokens, str) else tuple(tokens)
        entries = {site: kept[site] for site in sites}
        return out, ActivationCache(entries, layout, self.catalogue, kept_tokens, run, self.policy.model_id)

    def run_with_hooks(self, inputs: PolicyInputs, fwd_hooks: Iterable[Any]) -> ActionChunk:
        """Answer a query under some more edits, for this query only; see `hooks`."""
        with self.hooks(*fwd_hooks):
            return self(inputs)

    @contextmanager
    def hooks(self, *pairs: Any) -> Iterator[HookedVLA]:
        """Scope in which edits are live: `with vla.hooks((site, fn), (site, fn, tokens)): ...`.

        A hook is fn(tensor, site) -> tensor of the same shape, or None to leave it alone (`mist_interp.tracing.edits`).
        Scopes nest, in any order and across exceptions: leaving one removes exactly the edits that it added.

        Raises:
            UnknownName, ValueError, TypeError: on entry, for a site or a hook that cannot be.
        """
        edits = edits_of(pairs, self.catalogue)
        self._live = [*self._live, *edits]
        try:
            yield self
        finally:
            self._live = [edit for edit in self._live if not any(edit is mine for mine in edits)]

    def trace(self, inputs: PolicyInputs) -> Any:
        """Escape hatch: a plain nnsight trace of the policy, whose tracer also knows the names.

        `with vla.trace(inputs) as t: h = t["resid_post", 3]` reads, `t["resid_post", 3] = new` writes, and everything
        else of nnsight works on `t`. What is read by name is kept after the block. The rules of nnsight apply: the
        block must stand in a file, and sites must be asked for in the order of the network.

        Raises:
            RuntimeError: edits are live, which this trace would ignore.
        """
        if self._live:
            raise RuntimeError(f"trace() runs without the {len(self._live)} live edits; leave their scope first")
        inputs = self._ready(inputs)
        return self._engine.block(inputs, lambda key: locate(self.site(key), self.policy), inputs.batch_size)

    def _ready(self, inputs: PolicyInputs) -> PolicyInputs:
        """Inputs that the policy can read, on its device."""
        check_inputs(inputs, self.policy.config)
        return inputs if inputs.input_ids.device == self.policy.device else inputs.to(self.policy.device)

    def __repr__(self) -> str:
        cfg = self.cfg
        width = f"{cfg.n_layers} layers of {cfg.d_model}, {cfg.chunk} x {cfg.action_dim} actions, {cfg.attention}"
        return f"HookedVLA({cfg.model_id!r}, {cfg.variant}, {width}, {len(self._live)} live edits)"
