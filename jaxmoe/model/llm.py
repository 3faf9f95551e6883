"""Decoder-only language model: RMSNorm, RoPE, grouped-query attention, gated MLP (Qwen2, Llama, Gemma 3).

Llama lacks Qwen2's biases. Gemma 3 has norms of queries and keys and after each half of a layer, scaled embeddings, and
layers that see a window only, with a rotation of their own.

Parameters, kernels [in, out]; `blocks` is stacked on axis 0 when the layers are scanned, else it is `blocks_0`, ...:
    {"token_embedding": {"embedding" [V, D]}, "norm": {"scale" [D]}, "output": {"kernel" [D, V]} unless tied,
     "blocks": {"attn": {"query", "key", "value": {"kernel", "bias"}, "out": {"kernel"}}, "attn_norm": {"scale"},
                "mlp": {"gate", "up", "down": {"kernel"}}, "mlp_norm": {"scale"}}}
    and in Gemma's blocks "attn_post_norm", "mlp_post_norm" and, in "attn", "query_norm", "key_norm": {"scale" [K]}.
Terms: B batch, T tokens given, C slots of the key-value cache, P tokens of the shared prefix, D width, H heads,
G key-value heads, K head width, F width of the MLP, L layers, V vocabulary.

Source: Qwen2 (Yang et al. 2024, arXiv 2407.10671) as transformers' modeling_qwen2.py computes it, Gemma 3 (Gemma Team
2025, arXiv 2503.19786) as modeling_gemma3.py does.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmoe.model import cross_entropy
from jaxmoe.model.lora import LoRADense, by_rows

# {"key", "value"}, each [B, C, G, K]; a leading L where layers are scanned, else a tuple of L; a prefix has no B
Cache = Any
MASKED = -1e30  # finite: a row of padding that sees nothing gets a uniform softmax instead of NaN


@dataclasses.dataclass(frozen=True)
class LanguageModelDimensions:
    """Sizes and constants of one model; what a GGUF header or a config.json says about it.

    The last ones, by default those of Qwen2 and Llama:
      rope_divisors: what longer contexts divide the K / 2 frequencies of the rotation by; () for nothing.
      attention_scale: of the scores; 0 for 1 / sqrt(K).
      embedding_scale: of the input embeddings.
      gelu: the MLP's activation is GELU's tanh approximation, not SiLU.
      qk_norm, post_norms: norms of queries and keys; norms after attention and MLP.
      local: which layers see `window` tokens only, their own included, and turn by rope_local_base.
    """

    n_vocab: int
    n_layer: int
    n_state: int
    n_head: int
    n_kv_head: int
    n_head_state: int
    n_mlp: int
    rope_base: float
    norm_eps: float
    qkv_bias: bool
    tied: bool
    rope_divisors: tuple[float, ...] = ()
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
    gelu: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    local: tuple[bool, ...] = ()
    window: int = 0
    rope_local_base: float = 0.0


class View(NamedTuple):
    """What a layer sees of the places of its tokens.

    Attributes:
      angles: cosines and sines of the rotation, as rope_angles gives them.
      mask: [B, T, C], which slots of the cache.
      prefix: [B, T, P], which tokens of the shared prefix; None for all of them.
    """

    angles: tuple[jax.Array, jax.Array]
    mask: jax.Array
    prefix: jax.Array | None


def rope_angles(
    positions: jax.Array, head_state: int, base: float, divisors: tuple[float, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embedding at positions [B, T] -> two of [B, T, 1, K / 2].

    Source: Su et al. 2021, eq. 34.
    """
    frequencies = base ** (-jnp.arange(0, head_state, 2, dtype=jnp.float32) / head_state)
    if divisors:
        frequencies = frequencies / jnp.asarray(divisors, jnp.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn x [B, T, H, K] by its angles, element i paired with i + K / 2 (the "NEOX" order)."""
    cos, sin = angles
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32 (Zhang and Sennrich 2019, eq. 4)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


class Attention(nn.Module):
    """Grouped-query attention over [shared prefix, cache]; H / G query heads read one key-value head."""

    dims: LanguageModelDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        view: View,
        start: jax.Array,
        scales: jax.Array | None,
        cache: Cache,
        prefix: Cache,
    ) -> tuple[jax.Array, Cache]:
        """x [B, T, D] -> ([B, T, D], cache with the keys of x written from slot `start`)."""
        d = self.dims
        heads, groups, width = d.n_head, d.n_kv_head, d.n_head_state
        rows, length, _ = x.shape
        dense = partial(LoRADense, dtype=self.dtype)
        query = dense(heads * width, use_bias=d.qkv_bias, name="query")(x, scales)
        key = dense(groups * width, use_bias=d.qkv_bias, name="key")(x, scales)
        value = dense(groups * width, use_bias=d.qkv_bias, name="value")(x, scales)
        query, key = query.reshape(rows, length, heads, width), key.reshape(rows, length, groups, width)
        if d.qk_norm:
            query, key = RMSNorm(d.norm_eps, name="query_norm")(query), RMSNorm(d.norm_eps, name="key_norm")(key)
        query = rotate(query, view.angles) * (d.attention_scale or width**-0.5)
        query = query.reshape(rows, length, groups, heads // groups, width).astype(self.dtype)
        key = rotate(key, view.angles).astype(self.dtype)
        value = value.reshape(rows, length, groups, width)
        if cache is None:
            cache = {"key": key, "value": value}
        else:
            at = (0, start, 0, 0)
            cache = {
                "key": jax.lax.dynamic_update_slice(cache["key"], key, at),
                "value": jax.lax.dynamic_update_slice(cache["value"], value, at),
            }
        scores = jnp.einsum("btgrk,bsgk->bgrts", query, cache["key"]).astype(jnp.float32)
        scores = jnp.where(view.mask[:, None, None], scores, MASKED)  # [B, G, H / G, T, C]
        if prefix is None:
            weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
            y = jnp.einsum("bgrts,bsgk->btgrk", weights, cache["value"])
        else:
            # One GEMM for all rows, where a copy of the prefix in every row's cache would be read once a row.
            before = jnp.einsum("btgrk,pgk->bgrtp", query, prefix["key"]).astype(jnp.float32)
            if view.prefix is not None:
                before = jnp.where(view.prefix[:, None, None], before, MASKED)
            scores = jnp.concatenate([before, scores], axis=-1)
            weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
            span = prefix["key"].shape[0]
            y = jnp.einsum("bgrtp,pgk->btgrk", weights[..., :span], prefix["value"])
            y += jnp.einsum("bgrts,bsgk->btgrk", weights[..., span:], cache["value"])
        y = y.reshape(rows, length, heads * width)
        return dense(d.n_state, use_bias=False, name="out")(y, scales), cache


class MLP(nn.Module):
    """SwiGLU or GEGLU: (f(x W_gate) * x W_up) W_down (Shazeer 2020, eq. 6)."""

    dims: LanguageModelDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None) -> jax.Array:
        dense = partial(LoRADense, use_bias=False, dtype=self.dtype)
        gate = dense(self.dims.n_mlp, name="gate")(x, scales)  # [B, T, F]
        up = dense(self.dims.n_mlp, name="up")(x, scales)
        active = nn.gelu(gate, approximate=True) if self.dims.gelu else nn.silu(gate)
        return dense(self.dims.n_state, name="down")(active * up, scales)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)); with post_norms, what is added is normed again."""

    dims: LanguageModelDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        local: jax.Array | bool,
        views: tuple[View, ...],
        start: jax.Array,
        scales: jax.Array | None,
        cache: Cache,
        prefix: Cache,
    ) -> tuple[jax.Array, Cache]:
        """views: what a layer sees that sees everything, and, where there are `local` ones, what they see."""
        d = self.dims
        view = views[0]
        if len(views) > 1:
            view = jax.tree.map(lambda everywhere, near: jnp.where(local, near, everywhere), *views)
        norm = lambda name, x: RMSNorm(d.norm_eps, name=name)(x)
        y, cache = Attention(d, self.dtype, name="attn")(norm("attn_norm", x), view, start, scales, cache, prefix)
        x = x + (norm("attn_post_norm", y) if d.post_norms else y)
        y = MLP(d, self.dtype, name="mlp")(norm("mlp_norm", x), scales)
        return x + (norm("mlp_post_norm", y) if d.post_norms else y), cache


class LanguageModel(nn.Module):
    """tokens -> logits over the next token.

    scan_layers compiles one layer instead of L. On a CPU it costs a copy of every layer's weights each call, since a
    slice of the stack is read into a buffer before its GEMM: 67 against 28 ms for 12 kernels of 1536 x 8960 at 16 rows.
    Training and accelerators scan; CPU inference does not. remat: a scanned layer is computed again for its gradient.
    """

    dims: LanguageModelDimensions
    scan_layers: bool = True
    dtype: Any = jnp.float32
    remat: bool = True

    def setup(self) -> None:
        d = self.dims
        self.token_embedding = nn.Embed(d.n_vocab, d.n_state, dtype=self.dtype)
        if self.scan_layers:
            self.blocks = nn.scan(
                nn.remat(Block, prevent_cse=False) if self.remat else Block,  # a scan keeps its iterations apart
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=(0, *(nn.broadcast,) * 3, 0, 0),
                length=d.n_layer,
            )(d, self.dtype)
        else:
            self.blocks = [Block(d, self.dtype) for _ in range(d.n_layer)]
        self.norm = RMSNorm(d.norm_eps)
        if not d.tied:
            self.output = LoRADense(d.n_vocab, use_bias=False, dtype=self.dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Input embeddings [B, T, D] of tokens [B, T]."""
        x = self.token_embedding(tokens)
        return x if self.dims.embedding_scale == 1.0 else x * jnp.asarray(self.dims.embedding_scale, x.dtype)

    def __call__(self, tokens: jax.Array, *where: jax.Array, **more: Any) -> tuple[jax.Array, Cache]:
        """Logits and the cache after tokens [B, T]; the rest as `from_embeddings` takes it."""
        return self.from_embeddings(self.embed(tokens), *where, **more)

    def from_embeddings(self, *where: jax.Array, **more: Any) -> tuple[jax.Array, Cache]:
        """Logits [B, T, V], or what `read` leaves of them, and the cache; arguments as `states` takes them."""
        x, cache = self.states(*where, **more)
        if not self.dims.tied:
            logits = self.output(x)
        elif self.scan_layers:
            logits = self.token_embedding.attend(x)
        else:  # on a CPU
            logits = by_rows(x, self.token_embedding.embedding.astype(self.dtype))
        return logits.astype(jnp.float32), cache

    def token_nll(self, targets: jax.Array, *where: jax.Array, **more: Any) -> jax.Array:
        """-log p of each target [B, T] where `states` reads with the rest; no logits are kept."""
        x, _ = self.states(*where, **more)
        words = self.token_embedding.embedding if self.dims.tied else self.output.get_variable("params", "kernel").T
        return cross_entropy.token_nll(x.reshape(-1, x.shape[-1]), words, targets.reshape(-1)).reshape(targets.shape)

    def states(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        scales: jax.Array | None = None,
        start: jax.Array | int = 0,
        cache: Cache = None,
        prefix: Cache = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """What the vocabulary is multiplied with, [B, T, D], and the cache after x [B, T, D] at positions [B, T].

        Positions count from the start of the prefix.

        x: embeddings of tokens (`embed`) or whatever else is to be read in their place.
        mask [B, C]: which slots hold a token, these included; a token sees those of them up to its own slot. Padding
        may stand on either side. Without a cache C = T, and the cache returned holds just these tokens. A mask
        [B, T, C] says for each token what it sees, whatever the order of the slots.
        scales [B, K]: of the low-rank columns in the collection "lora" (model/lora.py); None leaves them out.
        read [B] or [B, N]: give only these indices of each row, [B, D] or [B, N, D].
        """
        x = x.astype(self.dtype)
        if mask.ndim == 2:
            slots = jnp.arange(mask.shape[1])[None, None, :]
            own = start + jnp.arange(x.shape[1])[None, :, None]
            mask = (slots <= own) & mask[:, None, :]  # [B, T, C]
        views = self._views(positions, mask, prefix_length(prefix))
        x, cache = self._layers(x, views, jnp.asarray(start), scales, cache, prefix)
        if read is not None:
            at = read.reshape(read.shape[0], -1, 1)
            x = jnp.take_along_axis(x, at, axis=1).reshape(*read.shape, x.shape[-1])
        return self.norm(x), cache

    def _views(self, positions: jax.Array, mask: jax.Array, span: int) -> tuple[View, ...]:
        """What layers see that see everything, and what local ones do, from positions [B, T] and mask [B, T, C]."""
        d = self.dims
        angles = rope_angles(positions, d.n_head_state, d.rope_base, d.rope_divisors)
        if not any(d.local):
            return (View(angles, mask, None),)
        near = positions[:, :, None] - d.window  # [B, T, 1], the nearest position that is out of sight
        before = jnp.broadcast_to(jnp.arange(span), (*positions.shape, span))
        place = span + jnp.cumsum(mask, axis=2) - 1  # of a slot, where it is seen
        turned = rope_angles(positions, d.n_head_state, d.rope_local_base)
        return View(angles, mask, before >= 0), View(turned, mask & (place > near), before > near)

    def _layers(self, x: jax.Array, *shared: Any) -> tuple[jax.Array, Cache]:
        d = self.dims
        local = d.local or (False,) * d.n_layer
        if self.scan_layers:
            return self.blocks(x, jnp.asarray(local), *shared)
        *same, cache, prefix = shared
        after = []
        for i, block in enumerate(self.blocks):
            x, layer = block(x, local[i], *same, *(None if kept is None else kept[i] for kept in (cache, prefix)))
            after.append(layer)
        return x, tuple(after)


def prefix_length(prefix: Cache) -> int:
    """Tokens of a shared prefix."""
    return 0 if prefix is None else jax.tree.leaves(prefix)[0].shape[-3]
