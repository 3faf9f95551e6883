"""Cross-entropy over a vocabulary without the logits of all of it: they would be [tokens, V], several times each.

The vocabulary is read in chunks, as flash attention reads keys: each chunk's logits update the running maximum and sum
of the softmax, and the mean embedding under it, which is the gradient. What comes out is what logits and softmax give,
to rounding; on a CPU, whose caches hold a chunk's logits, in two thirds of the time.
Source: the recurrence of Milakov and Gimelshein 2018 (arXiv 1805.02867), algorithm 3; over a vocabulary, Wijmans et al.
2024 (arXiv 2411.09009).
Terms: N tokens, D width, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoe.model.precision import at_least_float32

CHUNK = 4096  # words read at a time


@jax.custom_vjp
def token_nll(x: jax.Array, embedding: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(x embedding^T)[target] of each token: x [N, D], embedding [V, D], targets [N] -> [N], in nats.

    The embedding is frozen: no gradient reaches it.
    """
    return _stream(x, embedding, targets)[0]


def _forward(x: jax.Array, embedding: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _stream(x, embedding, targets, gradient=True)


def _backward(dx: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    return g.astype(dx.dtype)[:, None] * dx, None, None


token_nll.defvjp(_forward, _backward)


def _stream(x: jax.Array, embedding: jax.Array, targets: jax.Array, *, gradient: bool = False) -> tuple[jax.Array, Any]:
    """(negative log-likelihood [N], its gradient with respect to x [N, D] or None)."""
    vocab, dtype = len(embedding), at_least_float32(x.dtype)
    size = min(CHUNK, vocab)
    product = functools.partial(jnp.matmul, preferred_element_type=dtype)

    def read(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, *mean = carry  # maximum [N], sum [N] of exp(logits - maximum), the embeddings so weighted [N, D]
        start = jnp.minimum(i * size, vocab - size)  # the last chunk reaches back to be as large as the others
        words = jax.lax.dynamic_slice_in_dim(embedding, start, size).astype(x.dtype)  # [C, D]
        logits = product(x, words.T)  # [N, C]
        logits = jnp.where(start + jnp.arange(size) >= i * size, logits, -jnp.inf)
        higher = jnp.maximum(top, logits.max(-1))
        scale, weights = jnp.exp(top - higher), jnp.exp(logits - higher[:, None])
        new = [m * scale[:, None] + product(weights.astype(x.dtype), words) for m in mean]
        return higher, total * scale + weights.sum(-1), *new

    # Of x's own rows, so that the loop's state is laid out over devices as x is.
    rows = jnp.zeros_like(x[:, 0], dtype)
    start = (rows - jnp.inf, rows) + (jnp.zeros_like(x, dtype),) * gradient
    top, total, *mean = jax.lax.fori_loop(0, -(-vocab // size), read, start)
    said = embedding[targets].astype(dtype)  # [N, D]
    nll = top + jnp.log(total) - (x.astype(dtype) * said).sum(-1)
    return nll, (mean[0] / total[:, None] - said).astype(x.dtype) if gradient else None
