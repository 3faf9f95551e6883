"""Multi-head attention on arrays; long ones go through a CPU's caches in chunks.

B batch, T queries, S keys, D width, H heads, D' = D / H.
"""

import functools

import jax
import jax.numpy as jnp

from jaxmoe.model.precision import at_least_float32

QUERY_CHUNK = 500  # encoder positions attended at once on CPU; larger scores fall out of its caches


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """softmax(q k^T + mask) v, scores at least float32: q [B, T, H, D'], k, v [B, S, H, D'], mask as [B, H, T, S]."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=at_least_float32(q.dtype))
    weights = jax.nn.softmax(masked(scores, mask), axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def masked(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Scores of attention under a mask: True where a key may be seen, or numbers that are added."""
    if mask is None:
        return scores
    return jnp.where(mask, scores, -1e30) if mask.dtype == bool else scores + mask.astype(scores.dtype)


def _attend_chunked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """As _attend without a mask, one head and QUERY_CHUNK queries at a time: scores stay in a CPU's caches."""
    b, t, h, d = q.shape
    chunk = next(c for c in range(min(QUERY_CHUNK, t), 0, -1) if t % c == 0)
    by_head = lambda x: x.transpose(0, 2, 1, 3).reshape(b * h, -1, d)

    def head(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        qs, kt, vs = args  # [T / chunk, chunk, D'], [D', S], [S, D']

        def one(qc: jax.Array) -> jax.Array:
            s = (qc @ kt).astype(at_least_float32(qc.dtype))
            e = jnp.exp(s - s.max(-1, keepdims=True))
            return (e.astype(vs.dtype) @ vs) / e.sum(-1, keepdims=True).astype(vs.dtype)

        return jax.lax.map(one, qs)

    qs = by_head(q).reshape(b * h, t // chunk, chunk, d)
    out = jax.lax.map(head, (qs, by_head(k).swapaxes(1, 2), by_head(v)))
    return out.reshape(b, h, t, d).transpose(0, 2, 1, 3)


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, n_head: int, mask: jax.Array | None = None
) -> jax.Array:
    """Multi-head attention of q [B, T, D] over k, v [B, S, D] -> [B, T, D]; mask as `masked` takes it."""
    split = lambda x: x.reshape(*x.shape[:2], n_head, -1)
    q, k, v = split(q) * (q.shape[-1] // n_head) ** -0.5, split(k), split(v)
    if mask is None and q.shape[1] >= QUERY_CHUNK // 4 and q.shape[1] * k.shape[1] >= (QUERY_CHUNK // 2) ** 2:
        plain = functools.partial(_attend, mask=None)
        out = jax.lax.platform_dependent(q, k, v, cpu=_attend_chunked, default=plain)
    else:
        out = _attend(q, k, v, mask)
    return out.reshape(*out.shape[:2], -1)
