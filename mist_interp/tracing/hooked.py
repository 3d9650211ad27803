"""How does one look into a policy, and reach into it, while it acts?

`HookedVLA` wraps a policy without changing it. Calling it answers a query like the policy itself; `run_with_cache` also
hands over named activations, `run_with_hooks` and the scope `hooks` replace them on the way:

    vla = HookedVLA.from_pretrained("mini")
    action, cache = vla.run_with_cache(inputs, names=["resid_post", "attn_out"], tokens="action_read")
    with vla.hooks((("mlp_out", 2), lambda x, site: 0.5 * x)):
        vla(inputs)

An edit lives exactly as long as its scope; captured values are those after all edits, unless asked otherwise. With no
edit alive, calling the object runs the plain network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch

from mist_interp.core.actions import ActionChunk
from mist_interp.core.errors import UnknownName
from mist_interp.core.inputs import PolicyInputs
from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Catalogue, Choice, Layers, Site, SiteKey
from mist_interp.core.selectors import Selector
from mist_interp.models.validation import check_inputs
from mist_interp.tracing.cache import ActivationCache
from mist_interp.tracing.capture import Capture
from mist_interp.tracing.changes import Change, Ledger
from mist_interp.tracing.checks import Report, check
from mist_interp.tracing.edits import Edit, edits_of
from mist_interp.tracing.engine import Engine
from mist_interp.tracing.facts import Facts
from mist_interp.tracing.gradients import Metric, differentiate
from mist_interp.tracing.keywords import refuse
from mist_interp.tracing.locations import catalogue as catalogue_of
from mist_interp.tracing.locations import locate
from mist_interp.tracing.modules import module_path, sites_at
from mist_interp.tracing.plan import edit_workers, read_workers
from mist_interp.tracing.runs import pick_run
from mist_interp.tracing.scopes import EditScope, LiveEdits
from mist_interp.tracing.shapes import shapes_of
from mist_interp.tracing.verbs import skip

# What a user hands over as names: one key or several, or a function of the full name.
Names = SiteKey | Choice | Iterable[SiteKey]
When = Literal["before", "after"]


class HookedVLA:
    """A policy whose activations have names, to be read and replaced.

    Attributes:
        policy: the network itself, untouched.
    """

    def __init__(self, policy: Any):
        self.policy = policy
        self._engine = Engine(policy)
        self.check_finite = True
        """Whether an edit that writes a NaN or an infinity over a finite value is an error (FloatingPointError)."""
        self._live = LiveEdits()
        self._changes: tuple[Change, ...] = ()
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

    @staticmethod
    def tiny(seed: int = 0, **sizes: Any) -> HookedVLA:
        """A small random policy with the same module tree, for tests; see `mist_interp.models.random_policy`."""
        from mist_interp.models import random_policy

        return HookedVLA(random_policy(seed=seed, **sizes).requires_grad_(False))

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
        return self.catalogue.describe(names)

    def shapes(self, inputs: PolicyInputs, names: Names = "*", step: int | str = 0) -> dict[str, tuple[int, ...]]:
        """Shape of every site in such a query, by full name; nothing is run."""
        return shapes_of(self.sites(names), self.policy, self.layout(inputs), pick_run(self.policy, step))

    def module(self, name: str) -> torch.nn.Module:
        """A part of the policy as a plain torch module: "blocks.5.attn", "ln_final", ...; or where a site is read.

        Raises:
            UnknownName: no such part; `mist_interp.tracing.modules` lists the names.
        """
        return self.policy.get_submodule(module_path(name, self.policy, self.catalogue))

    def sites_at(self, name: str) -> tuple[Site, ...]:
        """The sites that are read at this very module, named as for `module`."""
        return sites_at(module_path(name, self.policy, self.catalogue), self.policy, self.catalogue)

    def layout(self, inputs: PolicyInputs) -> TokenLayout:
        """Names of all tokens of the sequence that these inputs become."""
        return self.policy.layout(self._ready(inputs))

    def edits(self) -> tuple[Edit, ...]:
        """Edits that are live now, in the order in which they apply where they meet."""
        return self._live.all

    def changes(self) -> tuple[Change, ...]:
        """What each live edit did in the last forward: norm of the change and tokens touched, per sample.

        In the order of `edits()` at that forward; empty after a forward without edits, and after one that failed.
        """
        return self._changes

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
        live, self._changes = self._live.here(), ()
        if not live:
            return self._engine.plain(partial(self.policy, inputs))
        ledger = Ledger(inputs.batch_size, self.check_finite)
        workers = edit_workers(live, self.policy, inputs, ledger)
        out = self._engine.traced(partial(self.policy, inputs), workers, inputs.batch_size)
        self._changes = ledger.changes(live)
        return out

    @overload
    def run_with_cache(
        self,
        inputs: PolicyInputs,
        names: Names | None = ...,
        tokens: Selector | None = ...,
        stop_at_layer: None = ...,
        device: torch.device | str | None = ...,
        dtype: torch.dtype | str | None = ...,
        step: int | str | None = ...,
        when: When = ...,
    ) -> tuple[ActionChunk, ActivationCache]: ...

    @overload
    def run_with_cache(
        self,
        inputs: PolicyInputs,
        names: Names | None = ...,
        tokens: Selector | None = ...,
        stop_at_layer: int = ...,
        device: torch.device | str | None = ...,
        dtype: torch.dtype | str | None = ...,
        step: int | str | None = ...,
        when: When = ...,
    ) -> tuple[None, ActivationCache]: ...

    def run_with_cache(
        self,
        inputs: PolicyInputs,
        names: Names | None = None,
        tokens: Selector | None = None,
        stop_at_layer: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        step: int | str | None = None,
        when: When = "after",
        **others: object,
    ) -> tuple[ActionChunk | None, ActivationCache]:
        """Answer a query and keep activations on the way.

        Args:
            inputs: the query.
            names: sites to keep; None keeps every stream (embeddings, residual stream, what attention and MLP add,
                projectors, head) and leaves out the insides of attention and MLP. A function of the full name picks.
            tokens: keep only these tokens; None keeps all.
            stop_at_layer: end the forward before this block of the language model, in its first run; the action is then
                None.
            device: where to keep the values; None leaves them where they are.
            dtype: type to keep them in, torch.float16 or "float16"; None leaves it.
            step: which run of the language model to keep, where one query takes several; negative counts from the end,
                and of base OpenVLA the name of the action number that a run generates, "dz", says it too. Default: the
                prefill of base OpenVLA, the last denoising step of a diffusion head; always the first run with a stop.
            when: keep the values "after" the live edits at the same site, as the network goes on with them, or "before"
                these, as the edits found them (the effect of edits further up is in them either way).
            others: refused, with what to write instead.

        Returns:
            The action chunk, and the cache.

        Raises:
            UnknownName: a name or a token that does not exist here.
            ValueError: a site that this policy lacks, or that comes after `stop_at_layer`, or a later run with it.
        """
        refuse("run_with_cache", others)
        inputs = self._ready(inputs)
        if when not in ("before", "after"):
            raise UnknownName("time of capture, before or after the edits at a site:", when, ["before", "after"])
        stop = None if stop_at_layer is None else self.catalogue.one(("resid_pre", stop_at_layer))
        capture = Capture.plan(self.policy, inputs, self.catalogue, names, tokens, step, stop, device, dtype)
        # An edit behind the stop has nothing to change in this forward.
        live = [edit for edit in self._live.here() if stop is None or edit.site.order < stop.order]
        ledger, self._changes = Ledger(inputs.batch_size, self.check_finite), ()
        edits = edit_workers(live, self.policy, inputs, ledger)
        readers = read_workers(capture.sites, self.policy, capture.run, capture.keep)
        workers = [*edits, *readers] if when == "after" else [*readers, *edits]
        stop_path = None if stop is None else locate(stop, self.policy).path
        out = self._engine.traced(partial(self.policy, inputs), workers, inputs.batch_size, stop_path)
        self._changes = ledger.changes(live)
        return out, capture.cache()

    def run_with_gradients(
        self,
        inputs: PolicyInputs,
        metric: Metric,
        names: Names | None = None,
        tokens: Selector | None = None,
        step: int | str | None = None,
        of: SiteKey | None = None,
    ) -> tuple[ActionChunk, ActivationCache, ActivationCache]:
        """Answer a query; keep activations, and the gradient of a number with respect to each of them.

        Args:
            inputs: the query.
            metric: takes the `ActionChunk` and gives one number, or one per query of the batch.
            names: sites, as in `run_with_cache`.
            tokens: keep only these tokens; None keeps all.
            step: which run of the language model, as in `run_with_cache`.
            of: let `metric` take the values of this site instead of the action, for example "logits" of a policy whose
                action tokens are chosen and not computed, or "ln_final.normalized".

        Returns:
            The action chunk, the cache, and a second cache of the same shape with the gradients; values and gradients
            are those after the live edits. Where it misleads: see `mist_interp.tracing.gradients`.

        Raises:
            ValueError: the metric has the wrong shape, or no gradient.
            UnknownName: a name or a token that does not exist here.
        """
        inputs = self._ready(inputs)
        source = None if of is None else self.site(of)
        capture = Capture.plan(self.policy, inputs, self.catalogue, names, tokens, step)
        live, ledger, self._changes = self._live.here(), Ledger(inputs.batch_size, self.check_finite), ()
        edits = edit_workers(live, self.policy, inputs, ledger)
        answer = differentiate(self._engine, inputs, capture, edits, metric, source)
        self._changes = ledger.changes(live)
        return answer

    def run_with_hooks(self, inputs: PolicyInputs, fwd_hooks: Iterable[Any], **others: object) -> ActionChunk:
        """Answer a query under some more edits, for this query only; see `hooks`."""
        refuse("run_with_hooks", others)
        with self.hooks(*fwd_hooks):
            return self(inputs)

    def hooks(self, *pairs: Any, fwd_hooks: Iterable[Any] = (), **others: object) -> EditScope[HookedVLA]:
        """Scope in which edits are live: `with vla.hooks((site, fn), (site, fn, tokens)): ...`, or a list of them.

        A hook is fn(tensor, site) -> tensor of the same shape, or None to leave it alone (`mist_interp.tracing.edits`),
        or an edit that is data, `add(...)`, `ablate(...)`, ... (`mist_interp.tracing.verbs`); both may be mixed.
        Scopes nest, in any order and across exceptions: leaving one removes exactly the edits that it added.

        A scope is entered once and by the thread that then runs the policy (`mist_interp.tracing.scopes`).

        Raises:
            UnknownName, ValueError, TypeError: for a site or a hook that cannot be.
        """
        refuse("hooks", others)
        return EditScope(self, self._live, edits_of([*pairs, *fwd_hooks], self.catalogue, self.policy))

    def skip(self, layers: Layers) -> EditScope[HookedVLA]:
        """Scope in which some blocks leave the residual stream as it is: `with vla.skip([2, 3]): vla(inputs)`."""
        return self.hooks(skip(layers))

    def trace(self, inputs: PolicyInputs) -> Any:
        """Escape hatch: a plain nnsight trace of the policy, whose tracer also knows the names.

        `with vla.trace(inputs) as t: h = t["resid_post", 3]` reads, `t["resid_post", 3] = new` writes; so do
        `t.resid_post[3]`, `t.embed` and, for reading, `t.action`, the policy's answer. Everything else of nnsight works
        on `t`. What is read by name is kept after the block; keep what you compute from it with `x = t.save(x)`, since
        tensors have no method `save` here. The rules of nnsight apply: the block must stand in a file, and sites must
        be asked for in the order of the network.

        Raises:
            RuntimeError: edits are live, which this trace would ignore.
        """
        if live := self._live.here():
            raise RuntimeError(f"trace() runs without the {len(live)} live edits; leave their scope first")
        inputs = self._ready(inputs)
        return self._engine.block(inputs, lambda key: locate(self.site(key), self.policy), inputs.batch_size)

    def _ready(self, inputs: PolicyInputs) -> PolicyInputs:
        """Inputs that the policy can read, on its device."""
        check_inputs(inputs, self.policy.config)
        return inputs if inputs.input_ids.device == self.policy.device else inputs.to(self.policy.device)

    def __repr__(self) -> str:
        cfg = self.cfg
        width = f"{cfg.n_layers} layers of {cfg.d_model}, {cfg.chunk} x {cfg.action_dim} actions, {cfg.attention}"
        return f"HookedVLA({cfg.model_id!r}, {cfg.variant}, {width}, {len(self._live.all)} live edits)"
