"""How is a named tensor taken out of a running module, and put back?

A port says which of a module's tensors a name means: what goes in, what comes out, an argument of the attention
function, and so on. `get` waits until the network is there; `put` is given the new tensor and the old one.

Some names stand for a tensor that the network never forms: the share of each head in what attention adds, and the scale
that a norm divides by. Their ports are virtual. They compute the tensor from the module's input, and writing changes
the module's output by the difference,

    result:   out + sum over heads of (new - old)
    scale:    out * old / new

so that writing back what was read leaves every bit as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Port:
    """One of the tensors of a module.

    Attributes:
        name: tells the ports of one module apart.
        get: takes the tracer's view of the module, gives the tensor.
        put: takes the view, a new tensor of the same shape and the old one.
        derived: whether `get` may compute a new tensor, so that the network goes on with it only once it is put back.
        virtual: whether the network itself never holds this tensor (which is then derived, too).
    """

    name: str
    get: Callable[[Any], Tensor]
    put: Callable[[Any, Tensor, Tensor], None]
    derived: bool = False
    virtual: bool = False


def _get_input(view: Any) -> Tensor:
    return view.input


def _put_input(view: Any, new: Tensor, old: Tensor) -> None:
    view.input = new


def _overwrite(view: Any, new: Tensor, old: Tensor) -> None:
    """Write into the network's own tensor, which is used again elsewhere."""
    shared = new.untyped_storage().data_ptr() == old.untyped_storage().data_ptr()
    old.copy_(new.clone() if shared else new)


def _get_output(view: Any) -> Tensor:
    return view.output


def _put_output(view: Any, new: Tensor, old: Tensor) -> None:
    view.output = new


def _get_first(view: Any) -> Tensor:
    return view.output[0]


def _put_first(view: Any, new: Tensor, old: Tensor) -> None:
    view.output = (new, *view.output[1:])


INPUT = Port("input", _get_input, _put_input)
# The block adds what enters its second norm again after the MLP.
SHARED_INPUT = Port("shared input", _get_input, _overwrite)
OUTPUT = Port("output", _get_output, _put_output)
FIRST_OUTPUT = Port("first output", _get_first, _put_first)


def _attention_call(view: Any) -> Any:
    # Operation 0 of that name is the assignment of the function, 1 is the call.
    return view.source.attention_interface_1


def _softmax(view: Any) -> Any:
    return _attention_call(view).source.nn_functional_softmax_0


def _get_query(view: Any) -> Tensor:
    return _attention_call(view).inputs[0][1]


def _put_query(view: Any, new: Tensor, old: Tensor) -> None:
    call = _attention_call(view)
    (module, _, *others), keywords = call.inputs
    call.inputs = ((module, new, *others), keywords)


def _of_this_run(name: str, place: int, cached: bool = False) -> Port:
    """Keys or values of the tokens that this run reads.

    The attention of base OpenVLA also gets those of earlier runs, and later runs get these: they are `cached`.
    """

    def get(view: Any) -> Tensor:
        arguments = _attention_call(view).inputs[0]
        read = arguments[1].shape[2]
        return arguments[place] if arguments[place].shape[2] == read else arguments[place][:, :, -read:]

    def put(view: Any, new: Tensor, old: Tensor) -> None:
        call = _attention_call(view)
        arguments, keywords = call.inputs
        call.inputs = ((*arguments[:place], new, *arguments[place + 1 :]), keywords)

    return Port(name, get, _overwrite if cached else put, derived=True)


# The arguments of the attention function, after rotation: (batch, head, token, d_head).
QUERY = Port("query", _get_query, _put_query)
KEY, VALUE = _of_this_run("key", 2), _of_this_run("value", 3)
CACHED_KEY, CACHED_VALUE = _of_this_run("key", 2, cached=True), _of_this_run("value", 3, cached=True)


def _put_scores(view: Any, new: Tensor, old: Tensor) -> None:
    _softmax(view).input = new


def _put_pattern(view: Any, new: Tensor, old: Tensor) -> None:
    _softmax(view).output = new


SCORES = Port("scores", lambda view: _softmax(view).input, _put_scores)
PATTERN = Port("pattern", lambda view: _softmax(view).output, _put_pattern)


@lru_cache(maxsize=64)
def head_results(n_heads: int) -> Port:
    """Virtual: what each head adds, read at the output projection: (batch, token, head, d_model)."""

    def get(view: Any) -> Tensor:
        z = view.input.unflatten(-1, (n_heads, -1))
        return torch.einsum("bthd,mhd->bthm", z, view.weight.unflatten(1, (n_heads, -1)))

    def put(view: Any, new: Tensor, old: Tensor) -> None:
        out = view.output
        view.output = out + (new - old).sum(-2).to(out.dtype)

    return Port("result", get, put, derived=True, virtual=True)


def _get_scale(view: Any) -> Tensor:
    """Root mean square as the norm computes it, float32: (batch, token, 1)."""
    return (view.input.float().pow(2).mean(-1, keepdim=True) + view.variance_epsilon).sqrt()


def _put_scale(view: Any, new: Tensor, old: Tensor) -> None:
    if bool((new == 0).any()):
        raise ValueError("a norm cannot divide by a scale of 0")
    out = view.output
    view.output = (out * (old / new)).to(out.dtype)


SCALE = Port("scale", _get_scale, _put_scale, derived=True, virtual=True)
