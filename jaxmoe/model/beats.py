"""BEATs: an audio encoder over patches of a filter bank (Chen et al. 2022, arXiv 2212.09058), in Flax Linen.

A patch is 16 frames by 16 mel bins; tokens run over the 8 bands of one stretch of 160 ms, then over time. Blocks are
post-norm with DeepNorm; attention carries a relative position bias, shared by all layers and gated in each.
Shapes: B batch, N samples, F frames, T tokens (8 * (F // 16)), D width, H heads, K head width, L layers.

Parameters, kernels [in, out], `blocks` stacked on axis 0:
    {"patch_embedding": {"kernel" [16, 16, 1, P]}, "patch_ln", "patch_proj": {"kernel", "bias"},
     "pos_conv": {"kernel" [128, D / groups, D], "bias"}, "ln", "relative_bias": {"embedding" [buckets, H]},
     "blocks": {"attn": {"query", "key", "value", "out", "gate": {"kernel" [K, 8], "bias"}, "gate_scale" [H]},
                "attn_ln", "mlp1", "mlp2", "mlp_ln"}}
Source: microsoft/unilm, beats/{BEATs,backbone,modules}.py.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.model.whisper import LayerNorm


@dataclasses.dataclass(frozen=True)
class BeatsDimensions:
    """Sizes; the defaults are those of BEATs_iter3_plus_AS2M, whose file overrides its class's max_distance."""

    n_layer: int = 12
    n_state: int = 768
    n_head: int = 12
    n_mlp: int = 3072
    n_patch_state: int = 512
    n_patch: int = 16  # frames and mel bins of a patch
    conv_width: int = 128  # tokens seen by the positional convolution
    conv_groups: int = 16
    n_buckets: int = 320
    max_distance: int = 800

    @property
    def residual_scale(self) -> float:
        """DeepNorm's alpha (Wang et al. 2022, table 1): x * alpha + f(x)."""
        return (2 * self.n_layer) ** 0.25


def coarsen_mask(mask: jax.Array, length: int) -> jax.Array:
    """A padding mask [B, S], True where there is padding, over `length` steps: True where all of a step is padding.

    A step is S // length entries, so that it drifts against the frames it stands for; the last S mod length entries
    are dropped. Trained weights saw it so.
    """
    rows, size = mask.shape
    kept = mask[:, : size - size % length]
    return kept.reshape(rows, length, -1).all(-1)


def buckets(distance: np.ndarray, n_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each distance key - query: exact near 0, logarithmic up to max_distance, a half for each sign."""
    half = n_buckets // 2
    exact = half // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.log(max_distance / exact)
    far = np.minimum(exact + (ratio * (half - exact)).astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, far)


class RelativeBias(nn.Module):
    """The bias of attention before its gate: [H, T, T], query then key; distances are counted in tokens."""

    dims: BeatsDimensions

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        d = self.dims
        table = self.param("embedding", nn.initializers.normal(0.02), (d.n_buckets, d.n_head))
        distance = np.arange(1 - length, length)
        by_distance = jnp.asarray(table)[buckets(distance, d.n_buckets, d.max_distance)]  # [2 T - 1, H]
        at = jnp.arange(length)
        return by_distance[at[None, :] - at[:, None] + length - 1].transpose(2, 0, 1)


class Attention(nn.Module):
    """Self-attention whose relative bias [H, T, T] is scaled for each head and query by a gate that reads the query.

    (ga, gb) = sigmoid(sums of four of q W + c), gate = ga (gb scale - 1) + 2    (Chen et al. 2021, WavLM, eq. 6)
    with q after its projection.
    """

    dims: BeatsDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, padding: jax.Array) -> jax.Array:
        d = self.dims
        rows, length, _ = x.shape
        dense = partial(nn.Dense, dtype=self.dtype)
        split = lambda y: y.reshape(rows, length, d.n_head, -1)
        q, k, v = (split(dense(d.n_state, name=name)(x)) for name in ("query", "key", "value"))
        gate = dense(8, name="gate")(q).astype(jnp.float32)  # [B, T, H, 8]
        gate = jax.nn.sigmoid(gate.reshape(*gate.shape[:3], 2, 4).sum(-1))
        scale = self.param("gate_scale", nn.initializers.ones, (d.n_head,))
        gate = gate[..., 0] * (gate[..., 1] * scale[None, None] - 1.0) + 2.0  # [B, T, H]
        scores = jnp.einsum("bthk,bshk->bhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        scores = scores + gate.transpose(0, 2, 1)[..., None] * bias[None]
        scores = jnp.where(padding[:, None, None, :], -1e30, scores)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        y = jnp.einsum("bhts,bshk->bthk", weights, v).reshape(rows, length, -1)
        return dense(d.n_state, name="out")(y)


class Block(nn.Module):
    """Post-norm: LN(alpha x + attention(x)), then LN(alpha x + mlp(x)). Returns its output twice, for nn.scan."""

    dims: BeatsDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array, padding: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = self.dims
        y = Attention(d, self.dtype, name="attn")(x, bias, padding)
        x = LayerNorm(self.dtype, name="attn_ln")(d.residual_scale * x + y)
        h = jax.nn.gelu(nn.Dense(d.n_mlp, dtype=self.dtype, name="mlp1")(x), approximate=False)
        y = nn.Dense(d.n_state, dtype=self.dtype, name="mlp2")(h)
        x = LayerNorm(self.dtype, name="mlp_ln")(d.residual_scale * x + y)
        return x, x


class Beats(nn.Module):
    """Filter bank [B, F, 128] and its padding [B, F] -> features [B, T, D] and every block's output [L, B, T, D].

    Padded tokens are not attended to, but have outputs like the others.
    """

    dims: BeatsDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fbank: jax.Array, padding: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.patches(fbank)
        padding = coarsen_mask(padding, x.shape[1])  # [B, T]
        d = self.dims
        x = jnp.where(padding[..., None], 0.0, x).astype(self.dtype)
        conv = nn.Conv(
            d.n_state,
            (d.conv_width,),
            padding=((d.conv_width // 2, d.conv_width // 2 - 1),),  # an even width: one less after
            feature_group_count=d.conv_groups,
            dtype=self.dtype,
            name="pos_conv",
        )
        x = LayerNorm(self.dtype, name="ln")(x + jax.nn.gelu(conv(x), approximate=False))
        scan = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=d.n_layer,
        )
        bias = RelativeBias(d, name="relative_bias")(x.shape[1])
        return scan(d, self.dtype, name="blocks")(x, bias, padding)

    def patches(self, fbank: jax.Array) -> jax.Array:
        """[B, F, 128] -> [B, T, D]: eight bands of one time, then the next time."""
        d = self.dims
        conv = nn.Conv(
            d.n_patch_state, (d.n_patch,) * 2, (d.n_patch,) * 2, padding="VALID", use_bias=False, dtype=self.dtype,
            name="patch_embedding",
        )  # fmt: skip
        x = conv(fbank[..., None].astype(self.dtype))  # [B, F // 16, 8, P]
        x = LayerNorm(self.dtype, name="patch_ln")(x.reshape(x.shape[0], -1, x.shape[-1]))
        return nn.Dense(d.n_state, dtype=self.dtype, name="patch_proj")(x)
