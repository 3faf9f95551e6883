"""Low-rank adapters as plain arrays: banks of experts, and their mixture applied in one pass.

A *bank* is `{path: {"a": [L, E, D, R], "b": [L, E, R, F]}}`, keyed by the path of the linear map it adapts, with the
scanned layers in front. Banks train. To be applied they are stacked into *columns*,
`{path: {"a": [L, D, K], "b": [L, K, F]}}` with K = R_shared + E * R, and each utterance gets one row of *scales*
[B, K]: alpha / R for the shared columns and g_e * alpha / R for the columns of expert e. The mixture

    y = x W + c + sum_e g_e (alpha / R) (x A_e) B_e                  (Hu et al. 2021, eq. 3, summed over experts)

is then one pair of GEMMs whatever E is; a one-hot row of gates is one expert, a zero row is the base model.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import json
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.model.precision import at_least_float32, matmul, narrow

Bank = dict[str, dict[str, jax.Array]]  # {path: {"a", "b"}}
Columns = dict[str, dict[str, jax.Array]]


class Chosen(NamedTuple):
    """Scales where an utterance uses few of many experts (top-k routing)."""

    shared: jax.Array  # [B, R_shared]
    routed: jax.Array  # [B, k * R], of the chosen experts' columns
    pick: jax.Array  # [B, k, E], one-hot: which experts they are


class LoRADense(nn.Module):
    """A frozen linear map plus low-rank columns scaled for each utterance.

    y = x W + c + ((x A) * scales) B     x [B, T, D], A [D, K], B [K, F], scales [B, K] -> [B, T, F]
    W, c are in the collection "params" (frozen); A, B in "lora", so that the two trees never mix. Without a "lora"
    entry for this map, or without scales, it is the base map. With scales of chosen experts "lora" is as `apart` gives
    it.
    """

    features: int  # F
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | Chosen | None = None) -> jax.Array:
        init = nn.initializers.lecun_normal()
        x = x.astype(self.dtype)
        if self.has_variable("params", "kernel_t"):
            y = by_rows(x, self.get_variable("params", "kernel_t").astype(self.dtype))
        else:
            kernel = given(self, "kernel", init, (x.shape[-1], self.features))
            y = matmul(x, kernel.astype(self.dtype))  # [B, T, F]
        if self.use_bias:
            bias = given(self, "bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        low_rank = lambda x, a, b, by: jnp.matmul(jnp.matmul(x, a) * by[:, None], b)  # [B, T, K], then [B, T, F]
        return self._adapted(y, low_rank, x, scales)

    def _adapted(
        self, y: jax.Array, low_rank: Callable[..., jax.Array], x: jax.Array, scales: jax.Array | Chosen | None
    ) -> jax.Array:
        """y plus low_rank(x, A [D, K] or [B, D, K], B [K, F] or [B, K, F], scales [B, K]) of the columns there are.

        Chosen experts are picked by a product with one-hot rows, whose gradient is one too: a CPU's scatter is slower.
        The backward pass picks them again, which is less work than to keep the matrices of every utterance.
        """
        read = lambda name: self.get_variable("lora", name).astype(self.dtype)
        if scales is not None and self.has_variable("lora", "a"):
            by = scales.shared if isinstance(scales, Chosen) else scales
            y = y + low_rank(x, read("a"), read("b"), by.astype(self.dtype))
        if isinstance(scales, Chosen) and self.has_variable("lora", "experts_a"):
            routed = jax.checkpoint(functools.partial(_with_chosen, low_rank), prevent_cse=False)
            pick, by = scales.pick.astype(self.dtype), scales.routed.astype(self.dtype)
            y = y + routed(x, read("experts_a"), read("experts_b"), pick, by)
        return y

    def read_by_head(self, q: jax.Array, scales: jax.Array | Chosen | None) -> jax.Array:
        """What a head's query reads of the *input* of this map: q . y(x) = read_by_head(q) . x, without a bias.

        q [B, T, H, F / H] -> [B, T, H, D].
        """
        by_head = lambda w: w.reshape(*w.shape[:-1], *q.shape[2:])
        kernel = self.get_variable("params", "kernel").astype(self.dtype)
        out = jnp.einsum("bthf,dhf->bthd", q, by_head(kernel))

        def low_rank(q: jax.Array, a: jax.Array, b: jax.Array, by: jax.Array) -> jax.Array:
            each = "b" * (a.ndim - 2)  # whether every utterance has columns of its own
            h = jnp.einsum(f"bthf,{each}khf->bthk", q, by_head(b)) * by[:, None, None]
            return jnp.einsum(f"bthk,{each}dk->bthd", h, a)

        return self._adapted(out, low_rank, q, scales)

    def write_by_head(self, x: jax.Array, scales: jax.Array | Chosen | None) -> jax.Array:
        """The part of y(x) that belongs to each head, for inputs of each head: x [B, T, H, D] -> [B, T, H, F / H]."""
        by_head = lambda w: w.reshape(*w.shape[:-1], x.shape[2], -1)
        kernel = self.get_variable("params", "kernel").astype(self.dtype)
        out = jnp.einsum("bthd,dhf->bthf", x, by_head(kernel))
        if self.use_bias:
            out = out + by_head(self.get_variable("params", "bias").astype(self.dtype))[None, None]

        def low_rank(x: jax.Array, a: jax.Array, b: jax.Array, by: jax.Array) -> jax.Array:
            each = "b" * (a.ndim - 2)
            h = jnp.einsum(f"bthd,{each}dk->bthk", x, a) * by[:, None, None]
            return jnp.einsum(f"bthk,{each}khf->bthf", h, by_head(b))

        return self._adapted(out, low_rank, x, scales)


def given(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> jax.Array:
    """`module.param`, but a parameter that is there is taken as it is.

    Flax traces `init` anew at every call to compare shapes: a seventh of the time that a program takes to start.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape, jnp.float32)


def _with_chosen(
    low_rank: Callable[..., jax.Array],
    x: jax.Array,
    experts_a: jax.Array,
    experts_b: jax.Array,
    pick: jax.Array,
    by: jax.Array,
) -> jax.Array:
    """low_rank(x, A [B, D, k R], B [B, k R, F], by) with each utterance's experts side by side."""
    a = jnp.einsum("bke,edr->bdkr", pick, experts_a)
    b = jnp.einsum("bke,erf->bkrf", pick, experts_b)
    return low_rank(x, a.reshape(*a.shape[:2], -1), b.reshape(len(b), -1, b.shape[-1]), by)


def by_rows(x: jax.Array, w: jax.Array) -> jax.Array:
    """x w^T, computed as (w x^T)^T: x [..., D], w [F, D] -> [..., F].

    A CPU's GEMM packs its second operand anew at every product. For the few rows of a decoding step that should be x
    and not the weights: with 8 to 32 rows twice as fast, from about 100 as fast. One row needs no packing.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) == 1:
        return matmul(x, w.T)
    # Not matmul(w, rows.T): of bfloat16, XLA has a fast product for this form only.
    y = jax.lax.dot_general(narrow(w), narrow(rows), (((1,), (1,)), ((), ())),
                            preferred_element_type=at_least_float32(x.dtype)).astype(x.dtype)  # [F, rows]  # fmt: skip
    return jax.lax.optimization_barrier(y).T.reshape(*x.shape[:-1], -1)  # XLA would turn the product round again


def transpose_kernels(params: dict[str, Any]) -> None:
    """Turns the kernels [D, F] of linear maps that are not stacked into `kernel_t` [F, D], in place, for `by_rows`."""
    for branch in [x for x in params.values() if isinstance(x, dict)]:
        if getattr(branch.get("kernel"), "ndim", 0) == 2:
            branch["kernel_t"] = branch.pop("kernel").T  # one at a time: there is no room for all of them twice
        transpose_kernels(branch)


def linear_shapes(
    params: Mapping[str, Any], targets: Sequence[str]
) -> dict[str, tuple[int, int, int]]:
    """(L, D, F) of every stacked linear map in `params` whose path matches one of the regexes `targets`.

    Raises:
      ValueError: if a pattern matches nothing, naming it and the paths there are.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {}
    for path, leaf in leaves:
        names = [str(getattr(k, "key", k)) for k in path]
        if names[-1] == "kernel" and "blocks" in names and leaf.ndim == 3:
            shapes["/".join(names[:-1])] = tuple(leaf.shape)
    for pattern in targets:
        if not any(re.fullmatch(pattern, path) for path in shapes):
            raise ValueError(
                f"lora_targets: {pattern!r} matches no linear map; there are {', '.join(sorted(shapes))}."
            )
    return {p: s for p, s in sorted(shapes.items()) if any(re.fullmatch(t, p) for t in targets)}


def init_bank(
    key: jax.Array, shapes: Mapping[str, tuple[int, int, int]], *, num_experts: int, rank: int
) -> Bank:
    """A bank that starts as the base model: A uniform within sqrt(1 / D) (PEFT's kaiming_uniform(sqrt 5)), B zero."""
    bank = {}
    for i, (path, (layers, d, f)) in enumerate(shapes.items()):
        bound = d**-0.5
        shape = (layers, num_experts, d, rank)
        a = jax.random.uniform(jax.random.fold_in(key, i), shape, jnp.float32, -bound, bound)
        bank[path] = {"a": a, "b": jnp.zeros((layers, num_experts, rank, f), jnp.float32)}
    return bank


def num_experts(bank: Bank) -> int:
    """E of a bank; 0 for an empty one."""
    return next(iter(bank.values()))["a"].shape[1] if bank else 0


def rank(bank: Bank) -> int:
    """R of a bank; 0 for an empty one."""
    return next(iter(bank.values()))["a"].shape[-1] if bank else 0


def _columns(bank: Bank) -> Columns:
    def fold(ab: dict[str, jax.Array]) -> dict[str, jax.Array]:
        a, b = ab["a"], ab["b"]
        layers, e, d, r = a.shape
        return {
            "a": a.transpose(0, 2, 1, 3).reshape(
                layers, d, e * r
            ),  # [L, D, E * R], expert-major columns
            "b": b.reshape(layers, e * r, b.shape[-1]),  # [L, E * R, F]
        }

    return {path: fold(ab) for path, ab in bank.items()}


def stack(shared: Bank, experts: Bank) -> Columns:
    """Shared and routed banks as one set of columns, the shared ones first. Either may be empty."""
    s, e = _columns(shared), _columns(experts)
    join = lambda *parts: jnp.concatenate(parts, axis=1)
    both = {
        p: {"a": jnp.concatenate([s[p]["a"], e[p]["a"]], axis=2), "b": join(s[p]["b"], e[p]["b"])}
        for p in s.keys() & e.keys()
    }
    return dict(sorted({**s, **e, **both}.items()))


def scales(
    gates: jax.Array, *, rank: int, shared_rank: int, alpha: float, shared_alpha: float
) -> jax.Array:
    """What multiplies each column: gates [B, E] -> [B, shared_rank + E * rank].

    Args:
      gates: mixing weights, rows summing to 1 (or one-hot, or 0).
      rank, alpha: of the experts; their scale is alpha / rank.
      shared_rank, shared_alpha: of the always-on path; shared_rank 0 where there is none.
    """
    shared = jnp.full(
        (gates.shape[0], shared_rank), shared_alpha / max(shared_rank, 1), gates.dtype
    )
    if gates.shape[1] == 0:
        return shared
    routed = jnp.repeat(gates * (alpha / rank), rank, axis=1)  # [B, E * R]
    return jnp.concatenate([shared, routed], axis=1)


def apart(shared: Bank, experts: Bank) -> Columns:
    """Shared columns and experts side by side, as LoRADense reads them with the scales of chosen experts.

    {path: {"a": [L, D, R_shared], "b", "experts_a": [L, E, D, R], "experts_b"}}; either may be missing.
    """
    columns = _columns(shared)
    routed = {path: {"experts_a": ab["a"], "experts_b": ab["b"]} for path, ab in experts.items()}
    return {path: columns.get(path, {}) | routed.get(path, {}) for path in sorted({*columns, *routed})}


def choose(scales: jax.Array, gates: jax.Array, top_k: int, *, rank: int, shared_rank: int) -> Chosen:
    """The shared columns' scales and those of the `top_k` experts with the largest gates [B, E], of scales [B, K].

    Exact where all other gates are zero, as after top-k routing.
    """
    experts = jax.lax.top_k(gates, top_k)[1]  # [B, k]
    routed = scales[:, shared_rank:].reshape(*gates.shape, rank)  # [B, E, R]
    routed = jnp.take_along_axis(routed, experts[..., None], axis=1).reshape(len(gates), -1)
    return Chosen(scales[:, :shared_rank], routed, jax.nn.one_hot(experts, gates.shape[1]))


def nested(columns: Columns) -> dict[str, Any]:
    """Columns as the nested "lora" collection that a Linen module reads: "decoder/ln" -> {"decoder": {"ln": ...}}."""
    tree: dict[str, Any] = {}
    for path, leaves in columns.items():
        node = tree
        *parents, last = path.split("/")
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = dict(leaves)
    return tree


def unstack(columns: Columns) -> Columns:
    """Columns of a model that does not scan, {"blocks_0/attn/query": {"a": [D, K], "b": [K, F]}, ...}."""
    return {
        re.sub(r"\bblocks\b", f"blocks_{i}", path): {name: leaf[i] for name, leaf in ab.items()}
        for path, ab in columns.items()
        for i in range(len(ab["a"]))
    }


def merge(params: Mapping[str, Any], columns: Columns, row: jax.Array) -> dict[str, Any]:
    """Base parameters with one utterance's mixture folded in: W + A diag(row) B. row [K]; other leaves are shared."""

    def add(path: Sequence[Any], leaf: jax.Array) -> jax.Array:
        names = [str(getattr(k, "key", k)) for k in path]
        target = columns.get("/".join(names[:-1])) if names[-1] == "kernel" else None
        if target is None:
            return leaf
        return leaf + ((target["a"] * row) @ target["b"]).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(add, dict(params))


def save(path: Path, bank: Bank, *, alpha: float, base: str) -> None:
    """One adapter (a bank of one expert) as a safetensors file that says what it is for: base, the weights' SHA-256."""
    from safetensors.numpy import save_file

    tensors = {f"{name}/{k}": np.asarray(leaf) for name, ab in bank.items() for k, leaf in ab.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, {"lora": json.dumps({"alpha": alpha, "base": base})})
    os.replace(temporary, path)  # whole or not at all


def load(path: Path, base: str) -> tuple[Columns, jax.Array]:
    """What `save` wrote, as columns and their scales [K].

    Raises:
      ValueError: it is no such file, or for other weights than those of SHA-256 `base`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get("lora", "{}"))
            tensors = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as adapters ({error}); --phase=mt makes them.") from error
    if about.get("base") != base:
        raise ValueError(
            f"{path} adapts weights of SHA-256 {about.get('base')}, but these have {base}; "
            "give the model that the adapters were trained on, or train again."
        )
    bank: Bank = {}
    for name, leaf in tensors.items():
        target, _, side = name.rpartition("/")
        bank.setdefault(target, {})[side] = leaf
    return stack(bank, {}), one_scale(bank, about["alpha"])[0]


def one_scale(bank: Bank, alpha: float, rows: int = 1) -> jax.Array:
    """The scales [rows, R] of one adapter alone, alpha / R in every column."""
    r = rank(bank)
    return scales(jnp.zeros((rows, 0)), rank=0, shared_rank=r, alpha=0.0, shared_alpha=alpha)


def map_experts(fn: Callable[[jax.Array], jax.Array], bank: Bank) -> Bank:
    """Applies `fn` to every leaf of a bank; leaves keep the experts on axis 1."""
    return {path: {k: fn(v) for k, v in ab.items()} for path, ab in bank.items()}


def count(tree: Any) -> int:
    """Number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
