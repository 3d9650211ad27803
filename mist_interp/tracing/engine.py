"""How are tensors read and replaced inside a running network?

With nnsight, in this file and nowhere else. Its `with` block is cut out of the source and run beside the network; here
there is exactly one such block, the functions of the user are called from it as ordinary functions, and each edit has a
worker of its own. So users never meet the rules of source capture, and the order in which edits are listed does not
have to follow the order in which the network runs.

    wrapped.trace(fn=call)
        worker per edit:    at every run of its module: read, call the function, write back
        worker per chain:   captured sites, read in the order of the network, after the edits at the same place
        worker for a stop:  ends the forward before a layer
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# Importing nnsight gives every Python object a method `save`, which nothing here needs and which misleads code that
# asks `hasattr(x, "save")`. Whoever imported nnsight before us keeps it.
_MOUNTED_BY_OTHERS = "nnsight" in sys.modules
from nnsight import NNsight  # noqa: E402
from nnsight import save as keep_after_trace  # noqa: E402
from nnsight._c import unmount  # noqa: E402
from nnsight.intervention.interleaver import OutOfOrderError  # noqa: E402
from nnsight.intervention.tracer import InterleavingTracer  # noqa: E402

from mist_interp.core.hooks import HOOKS  # noqa: E402
from mist_interp.tracing.locations import Location  # noqa: E402

if unmount is not None and not _MOUNTED_BY_OTHERS:
    unmount("save")

Tensor = torch.Tensor
SHORT = {hook.short: hook for hook in HOOKS}


@dataclass(frozen=True)
class Tap:
    """One function at one place.

    Attributes:
        name: of the site, for error messages.
        location: where the tensor is.
        see: gets the tensor in the registry's shape and the number of the module's run; what it returns replaces the
            tensor, None leaves it alone.
        whole: whether `see` gets the module's own tensor instead, as it is and unchecked.
    """

    name: str
    location: Location
    see: Callable[[Tensor, int], Tensor | None]
    whole: bool = False


@dataclass
class Worker:
    """Taps that are served one after the other, in the order in which the network reaches them.

    Attributes:
        taps: what to do.
        run: at which run of the modules within one query; None for every run.
        reached: how many taps have been served.
    """

    taps: Sequence[Tap]
    run: int | None = None
    reached: int = 0


@dataclass
class Turn:
    """Who may run a network now; shared by all engines of one network."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    taken: bool = False


_TURNS: weakref.WeakKeyDictionary[torch.nn.Module, Turn] = weakref.WeakKeyDictionary()
_TURNS_LOCK = threading.Lock()


@dataclass
class Forward:
    """What the workers of one forward have in common.

    Attributes:
        batch: samples of the query, for the shapes.
        written: by name and run, the last value that was written to a tensor which the network itself never holds.
    """

    batch: int
    written: dict[tuple[str, int], Tensor] = field(default_factory=dict)


class Engine:
    """The tracing side of one network. Wrapping it changes neither its weights nor what it computes.

    Attributes:
        module: the network.
    """

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self._wrapped: NNsight | None = None
        self._views: dict[str, Any] = {}
        with _TURNS_LOCK:
            self._turn = _TURNS.setdefault(module, Turn())

    def plain(self, call: Callable[[], Any]) -> Any:
        """Run without reading or replacing anything: the network alone, at its own speed."""
        with self._taking_turns():
            return call()

    def traced(self, call: Callable[[], Any], workers: Sequence[Worker], batch: int, stop: str | None = None) -> Any:
        """Run `call` with the workers at their places.

        Args:
            call: runs the network once and gives its answer.
            workers: edits first; they are served in this order where several meet at one place.
            batch: samples of the query, for the shapes.
            stop: path of the module before which the forward ends.

        Returns:
            What `call` gave, or None after a stop.

        Raises:
            RuntimeError: a site that the network never reached, or a call from inside a hook.
            Any error of the network or of a function, unchanged.
        """
        with self._taking_turns():
            answer: list[Any] = []
            wrapped = self._wrap()
            forward = Forward(batch)
            # fmt: off
            with wrapped.trace(fn=lambda: answer.append(call())) as tracer:
                for worker in workers:
                    with tracer.invoke():
                        _follow(worker, self._view, tracer, forward)
                if stop is not None:
                    with tracer.invoke():
                        _halt(wrapped, tracer, stop)
            # fmt: on
        _all_reached(workers)
        return answer[0] if answer else None

    def block(self, inputs: Any, find: Callable[[Any], Location], batch: int) -> Any:
        """A nnsight `with` block in the caller's own source; see `HookedVLA.trace`."""
        wrapped = self._wrap()

        class NamedTracer(InterleavingTracer):
            """Plain nnsight tracer whose items, and attributes by their short names, are the named activations."""

            def save(self, value: Any) -> Any:
                """The same value, kept after the block."""
                return keep_after_trace(value)

            def __getattr__(self, name: str) -> Any:
                if name == "action":
                    return keep_after_trace(wrapped.output)
                if name not in SHORT:
                    raise AttributeError(f"a trace has neither a method nor a named activation {name!r}")
                return self[name] if SHORT[name].stack is None else Layers(self, name)

            def __setattr__(self, name: str, value: Any) -> None:
                if name in SHORT and SHORT[name].stack is None:
                    self[name] = value
                else:
                    super().__setattr__(name, value)

            def __getitem__(self, key: Any) -> Tensor:
                location = find(key)
                return keep_after_trace(location.show(location.port.get(wrapped.get(location.path)), batch))

            def __setitem__(self, key: Any, new: Tensor) -> None:
                location = find(key)
                view = wrapped.get(location.path)
                raw = location.port.get(view)
                location.port.put(view, location.hide(new, raw), raw)

        return wrapped.trace(inputs, tracer_cls=NamedTracer)

    def _wrap(self) -> NNsight:
        if self._wrapped is None:
            self._wrapped = NNsight(self.module)
        return self._wrapped

    def _view(self, path: str) -> Any:
        """The tracer's view of a module, looked up once: walking a path costs as much as reading a tensor."""
        if path not in self._views:
            self._views[path] = self._wrap().get(path)
        return self._views[path]

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        with self._turn.lock:
            if self._turn.taken:
                raise RuntimeError("a hook may not run the policy that it is hooked into; compute it before, outside")
            self._turn.taken = True
            try:
                yield
            finally:
                self._turn.taken = False


@dataclass(frozen=True)
class Layers:
    """The layers of one name in a trace: `t.resid_post[3]`."""

    tracer: Any
    name: str

    def __getitem__(self, layer: int) -> Tensor:
        return self.tracer[self.name, layer]

    def __setitem__(self, layer: int, new: Tensor) -> None:
        self.tracer[self.name, layer] = new


def _follow(worker: Worker, find: Callable[[str], Any], tracer: Any, forward: Forward) -> None:
    runs = tracer.iter[:] if worker.run is None else tracer.iter[worker.run]
    try:
        for run in runs:
            for tap in worker.taps:
                _serve(tap, find(tap.location.path), forward, run)
                worker.reached += 1
    except OutOfOrderError:
        # The forward is over while this worker still waits: expected for an edit that follows every run of its module.
        return


def _serve(tap: Tap, view: Any, forward: Forward, run: int) -> None:
    location, port = tap.location, tap.location.port
    raw = port.get(view)
    if port.virtual:  # an edit that came before can only be seen in what it wrote
        raw = forward.written.get((tap.name, run), raw)
    try:
        if tap.whole:
            new = tap.see(raw, run)
        else:
            shown = location.show(raw, forward.batch)
            new = tap.see(shown, run)
            if new is not None:
                new = location.hide(new.to(device=raw.device, dtype=raw.dtype), raw)
        if new is None:
            return
        if port.virtual:
            forward.written[tap.name, run] = new
        port.put(view, new, raw)
    except Exception as error:
        error.add_note(f"in a hook at {tap.name}")
        raise


def _halt(wrapped: NNsight, tracer: Any, path: str) -> None:
    wrapped.get(path).input  # noqa: B018  # waits until the forward is there
    tracer.stop()


def _all_reached(workers: Sequence[Worker]) -> None:
    for worker in workers:
        if worker.reached < len(worker.taps):
            name = worker.taps[worker.reached].name
            raise RuntimeError(f"{name} was never reached in this forward, so nothing was read or changed there")
