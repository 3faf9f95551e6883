"""The window-level Q-Former: a few query tokens read each window of an encoder's features (Tang et al. 2024, 3.1).

Shapes: B batch, S positions, W windows, N positions of a window, Q queries, D width, E width of the features, L layers.
Parameters, kernels [in, out], `blocks` stacked on axis 0:
    {"ln", "blocks": {"attn", "cross_attn": {"query", "key", "value", "out"}, "attn_ln", "cross_attn_ln",
                      "mlp1", "mlp2", "mlp_ln"}}
Source: salesforce/LAVIS, blip2_models/Qformer.py, as bytedance/SALMONN uses it: BERT without embeddings or positions,
cross-attention in every layer.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmoe.model.whisper import LayerNorm

EPS = 1e-12  # of BERT's norms


@dataclasses.dataclass(frozen=True)
class QFormerDimensions:
    """Sizes; the defaults are BERT base's with two layers."""

    n_state: int = 768
    n_head: int = 12
    n_layer: int = 2
    n_mlp: int = 3072


def windows(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Windows of `size` positions every `stride`: x [B, S, E] -> [B, W, N, E]; what does not fill a window is left out.

    Raises:
      ValueError: if there is not one window.
    """
    if x.shape[1] < size:
        raise ValueError(f"{x.shape[1]} positions are less than a window of {size}; pad the audio.")
    if size == stride:  # a reshape has a cheaper gradient than a gather
        count = x.shape[1] // size
        return x[:, : count * size].reshape(x.shape[0], count, size, x.shape[2])
    starts = jnp.arange(0, x.shape[1] - size + 1, stride)
    return x[:, starts[:, None] + jnp.arange(size)[None]]


class Attention(nn.Module):
    """BERT's attention of x [B, Q, D] over y [B, N, E]; dropout acts on its weights."""

    dims: QFormerDimensions
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
        d = self.dims
        dense = partial(nn.Dense, d.n_state, dtype=self.dtype)
        split = lambda z: z.reshape(*z.shape[:2], d.n_head, -1)
        q, k, v = split(dense(name="query")(x)), split(dense(name="key")(y)), split(dense(name="value")(y))
        scores = jnp.einsum("bqhk,bnhk->bhqn", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        weights = nn.Dropout(self.dropout)(jax.nn.softmax(scores, axis=-1), deterministic=not train)
        z = jnp.einsum("bhqn,bnhk->bqhk", weights.astype(self.dtype), v)
        return dense(name="out")(z.reshape(*z.shape[:2], -1))


class Block(nn.Module):
    """Post-norm: self-attention of the queries, cross-attention to the window, MLP."""

    dims: QFormerDimensions
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, window: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        d, p = self.dims, self.dropout
        norm = partial(LayerNorm, self.dtype, EPS)
        drop = lambda y: nn.Dropout(p)(y, deterministic=not train)
        x = norm(name="attn_ln")(x + drop(Attention(d, p, self.dtype, name="attn")(x, x, train)))
        y = Attention(d, p, self.dtype, name="cross_attn")(x, window, train)
        x = norm(name="cross_attn_ln")(x + drop(y))
        h = jax.nn.gelu(nn.Dense(d.n_mlp, dtype=self.dtype, name="mlp1")(x), approximate=False)
        x = norm(name="mlp_ln")(x + drop(nn.Dense(d.n_state, dtype=self.dtype, name="mlp2")(h)))
        return x, x


class QFormer(nn.Module):
    """Queries [B, Q, D] reading windows [B, N, E] -> [B, Q, D] and every block's output [L, B, Q, D]."""

    dims: QFormerDimensions
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, window: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        x = LayerNorm(self.dtype, EPS, name="ln")(queries)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        scan = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=self.dims.n_layer,
        )
        return scan(self.dims, self.dropout, self.dtype, name="blocks")(x, window, train)


class Connector(nn.Module):
    """Features of one or two encoders -> embeddings for a language model, Q to each window.

    Norms come before the shorter of the two is padded with zeros; the padding is therefore zero, not a norm's bias.
    """

    features: int  # width of the language model
    dims: QFormerDimensions
    queries: int = 1
    window: int = 17  # positions of 20 ms: a third of a second
    stride: int = 17
    dropout: float = 0.1
    dtype: Any = jnp.float32

    def count(self, positions: int) -> int:
        """Embeddings made of so many positions."""
        return ((positions - self.window) // self.stride + 1) * self.queries

    @nn.compact
    def __call__(self, speech: jax.Array, audio: jax.Array | None = None, train: bool = False) -> jax.Array:
        """speech [B, S, E], audio [B, S', E'] -> [B, W * Q, F]."""
        x = LayerNorm(self.dtype, name="ln_speech")(speech)
        if audio is not None:
            y = LayerNorm(self.dtype, name="ln_audio")(audio)
            length = max(x.shape[1], y.shape[1])
            pad = lambda z: jnp.pad(z, ((0, 0), (0, length - z.shape[1]), (0, 0)))
            x = jnp.concatenate([pad(x), pad(y)], axis=-1)
        rows = x.shape[0]
        x = windows(x, self.window, self.stride)  # [B, W, N, E]
        tokens = self.param("query_tokens", nn.initializers.normal(0.02), (1, self.queries, self.dims.n_state))
        queries = jnp.broadcast_to(tokens, (rows * x.shape[1], *tokens.shape[1:]))
        read = QFormer(self.dims, self.dropout, self.dtype, name="qformer")
        x, _ = read(queries, x.reshape(-1, *x.shape[2:]), train)  # [B * W, Q, D]
        return nn.Dense(self.features, dtype=self.dtype, name="proj")(x).reshape(rows, -1, self.features)
