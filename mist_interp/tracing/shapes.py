"""Which shape has every named activation, without running the network?

The registry writes shapes as arithmetic on names of sizes, "(batch, camera * (prefix + patches), d_dino)". Here the
sizes come from the policy's configuration and the layout of a batch, and the arithmetic is carried out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from mist_interp.core.layout import TokenLayout
from mist_interp.core.names import Site


def shapes_of(sites: Iterable[Site], policy: Any, layout: TokenLayout, run: int = 0) -> dict[str, tuple[int, ...]]:
    """Shape of every site, by full name, in a query with this layout.

    Args:
        sites: which.
        policy: whose configuration gives the sizes.
        layout: of the batch.
        run: which run of the language model; base OpenVLA reads one token in each after the first.
    """
    sizes = sizes_of(policy, layout, run)
    return {str(site): evaluate(site.hook.shape, sizes) for site in sites}


def sizes_of(policy: Any, layout: TokenLayout, run: int = 0) -> dict[str, int]:
    """What the names of sizes in the registry stand for."""
    config, llm = policy.config, policy.config.llm
    dino, siglip = config.towers
    decoding = layout.autoregressive and run > 0
    return {
        "batch": layout.batch_size,
        "token": 1 if decoding else layout.length,
        "query": 1 if decoding else layout.length,
        "key": layout.length + run if decoding else layout.length,
        "d_model": llm.hidden_size,
        "head": llm.num_attention_heads,
        "kv_head": llm.num_key_value_heads,
        "d_head": llm.head_dim,
        "d_mlp": llm.intermediate_size,
        "vocab": llm.vocab_size,
        "camera": layout.n_images,
        "prefix": 1 + dino.registers if dino.registers else 0,
        "patches": layout.n_patches,
        "d_dino": dino.width,
        "d_siglip": siglip.width,
        "state": config.proprio_dim,
        "chunk": layout.chunk,
        "dim": layout.action_dim,
        "read": 1 if layout.autoregressive else layout.n_slots,
    }


def evaluate(shape: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Numbers of a shape that is written as a tuple of sums and products of names and numbers."""
    tree = ast.parse(shape, mode="eval").body
    assert isinstance(tree, ast.Tuple)
    return tuple(_number(term, sizes) for term in tree.elts)


def _number(term: ast.expr, sizes: Mapping[str, int]) -> int:
    match term:
        case ast.Name(id=name):
            return sizes[name]
        case ast.Constant(value=int(number)):
            return number
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _number(left, sizes) * _number(right, sizes)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _number(left, sizes) + _number(right, sizes)
    raise ValueError(f"a shape may hold names, numbers, + and *, not {ast.unparse(term)}")
