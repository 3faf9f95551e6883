"""Decoder-only language model: RMSNorm, RoPE, grouped-query attention, SwiGLU (Qwen2; Llama lacks its biases).

Parameters, kernels [in, out]; `blocks` is stacked on axis 0 when the layers are scanned, else it is `blocks_0`, ...:
    {"token_embedding": {"embedding" [V, D]}, "norm": {"scale" [D]}, "output": {"kernel" [D, V]} unless tied,
     "blocks": {"attn": {"query", "key", "value": {"kernel", "bias"}, "out": {"kernel"}}, "attn_norm": {"scale"},
                "mlp": {"gate", "up", "down": {"kernel"}}, "mlp_norm": {"scale"}}}
Terms: B batch, T tokens given, C slots of the key-value cache, P tokens of the shared prefix, D width, H heads,
G key-value heads, K head width, F width of the MLP, L layers, V vocabulary.

Source: Qwen2 (Yang et al. 2024, arXiv 2407.10671) as transformers' modeling_qwen2.py computes it.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmoe.model.lora import LoRADense, by_rows

# {"key", "value"}, each [B, C, G, K]; a leading L where layers are scanned, else a tuple of L; a prefix has no B
Cache = Any
MASKED = -1e30  # finite: a row of padding that sees nothing gets a uniform softmax instead of NaN


@dataclasses.dataclass(frozen=True)
class LanguageModelDimensions:
    """Sizes and constants of one model; what a GGUF header or a config.json says about it."""

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


def rope_angles(positions: jax.Array, head_state: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embedding at positions [B, T] -> two of [B, T, 1, K / 2].

    Source: Su et al. 2021, eq. 34.
    """
    frequencies = base ** (-jnp.arange(0, head_state, 2, dtype=jnp.float32) / head_state)
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
        angles: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        start: jax.Array,
        scales: jax.Array | None,
        cache: Cache,
        prefix: Cache,
    ) -> tuple[jax.Array, Cache]:
        """x [B, T, D], mask [B, T, C] -> ([B, T, D], cache with the keys of x written from slot `start`)."""
        d = self.dims
        heads, groups, width = d.n_head, d.n_kv_head, d.n_head_state
        rows, length, _ = x.shape
        dense = partial(LoRADense, dtype=self.dtype)
        query = dense(heads * width, use_bias=d.qkv_bias, name="query")(x, scales)
        key = dense(groups * width, use_bias=d.qkv_bias, name="key")(x, scales)
        value = dense(groups * width, use_bias=d.qkv_bias, name="value")(x, scales)
        query = rotate(query.reshape(rows, length, heads, width), angles) * width**-0.5
        query = query.reshape(rows, length, groups, heads // groups, width).astype(self.dtype)
        key = rotate(key.reshape(rows, length, groups, width), angles).astype(self.dtype)
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
        scores = jnp.where(mask[:, None, None], scores, MASKED)  # [B, G, H / G, T, C]
        if prefix is None:
            weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
            y = jnp.einsum("bgrts,bsgk->btgrk", weights, cache["value"])
        else:
            # One GEMM for all rows, where a copy of the prefix in every row's cache would be read once a row.
            before = jnp.einsum("btgrk,pgk->bgrtp", query, prefix["key"]).astype(jnp.float32)
            scores = jnp.concatenate([before, scores], axis=-1)
            weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
            span = prefix["key"].shape[0]
            y = jnp.einsum("bgrtp,pgk->btgrk", weights[..., :span], prefix["value"])
            y += jnp.einsum("bgrts,bsgk->btgrk", weights[..., span:], cache["value"])
        y = y.reshape(rows, length, heads * width)
        return dense(d.n_state, use_bias=False, name="out")(y, scales), cache


class MLP(nn.Module):
    """SwiGLU: (silu(x W_gate) * x W_up) W_down (Shazeer 2020, eq. 6)."""

    dims: LanguageModelDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, scales: jax.Array | None = None) -> jax.Array:
        dense = partial(LoRADense, use_bias=False, dtype=self.dtype)
        gate = dense(self.dims.n_mlp, name="gate")(x, scales)  # [B, T, F]
        up = dense(self.dims.n_mlp, name="up")(x, scales)
        return dense(self.dims.n_state, name="down")(nn.silu(gate) * up, scales)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    dims: LanguageModelDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        angles: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        start: jax.Array,
        scales: jax.Array | None,
        cache: Cache,
        prefix: Cache,
    ) -> tuple[jax.Array, Cache]:
        d = self.dims
        attn = Attention(d, self.dtype, name="attn")
        y, cache = attn(RMSNorm(d.norm_eps, name="attn_norm")(x), angles, mask, start, scales, cache, prefix)
        x = x + y
        x = x + MLP(d, self.dtype, name="mlp")(RMSNorm(d.norm_eps, name="mlp_norm")(x), scales)
        return x, cache


class LanguageModel(nn.Module):
    """tokens -> logits over the next token.

    scan_layers compiles one layer instead of L. On a CPU it costs a copy of every layer's weights each call, since a
    slice of the stack is read into a buffer before its GEMM: 67 against 28 ms for 12 kernels of 1536 x 8960 at 16 rows.
    Training and accelerators scan; CPU inference does not.
    """

    dims: LanguageModelDimensions
    scan_layers: bool = True
    dtype: Any = jnp.float32

    def setup(self) -> None:
        d = self.dims
        self.token_embedding = nn.Embed(d.n_vocab, d.n_state, dtype=self.dtype)
        if self.scan_layers:
            self.blocks = nn.scan(
                nn.remat(Block, prevent_cse=False),  # a scan keeps its iterations apart already
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                in_axes=(*(nn.broadcast,) * 4, 0, 0),
                length=d.n_layer,
            )(d, self.dtype)
        else:
            self.blocks = [Block(d, self.dtype) for _ in range(d.n_layer)]
        self.norm = RMSNorm(d.norm_eps)
        if not d.tied:
            self.output = LoRADense(d.n_vocab, use_bias=False, dtype=self.dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Input embeddings [B, T, D] of tokens [B, T]."""
        return self.token_embedding(tokens)

    def __call__(self, tokens: jax.Array, *where: jax.Array, **more: Any) -> tuple[jax.Array, Cache]:
        """Logits and the cache after tokens [B, T]; the rest as `from_embeddings` takes it."""
        return self.from_embeddings(self.embed(tokens), *where, **more)

    def from_embeddings(
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
        """Logits and the cache after x [B, T, D] at positions [B, T] (counted from the start of the prefix).

        x: embeddings of tokens (`embed`) or whatever else is to be read in their place.
        mask [B, C]: which slots hold a token, these included; a token sees those of them up to its own slot. Padding
        may stand on either side. Without a cache C = T, and the cache returned holds just these tokens. A mask
        [B, T, C] says for each token what it sees, whatever the order of the slots.
        scales [B, K]: of the low-rank columns in the collection "lora" (model/lora.py); None leaves them out.
        read [B] or [B, N]: give logits only at these indices of each row, [B, V] or [B, N, V]; otherwise [B, T, V].
        """
        d = self.dims
        x = x.astype(self.dtype)
        angles = rope_angles(positions, d.n_head_state, d.rope_base)
        if mask.ndim == 2:
            slots = jnp.arange(mask.shape[1])[None, None, :]
            own = start + jnp.arange(x.shape[1])[None, :, None]
            mask = (slots <= own) & mask[:, None, :]  # [B, T, C]
        x, cache = self._layers(x, angles, mask, jnp.asarray(start), scales, cache, prefix)
        if read is not None:
            at = read.reshape(read.shape[0], -1, 1)
            x = jnp.take_along_axis(x, at, axis=1).reshape(*read.shape, x.shape[-1])
        x = self.norm(x)
        if not d.tied:
            logits = self.output(x)
        elif self.scan_layers:
            logits = self.token_embedding.attend(x)
        else:  # on a CPU
            logits = by_rows(x, self.token_embedding.embedding.astype(self.dtype))
        return logits.astype(jnp.float32), cache

    def _layers(self, x: jax.Array, *shared: Any) -> tuple[jax.Array, Cache]:
        if self.scan_layers:
            return self.blocks(x, *shared)
        *same, cache, prefix = shared
        after = []
        for i, block in enumerate(self.blocks):
            x, layer = block(x, *same, *(None if kept is None else kept[i] for kept in (cache, prefix)))
            after.append(layer)
        return x, tuple(after)


def empty_cache(model: LanguageModel, rows: int, slots: int) -> Cache:
    """A cache of zeros for `rows` sequences of at most `slots` tokens after the prefix."""
    d = model.dims
    shape: tuple[int, ...] = (rows, slots, d.n_kv_head, d.n_head_state)
    if model.scan_layers:
        shape = (d.n_layer, *shape)
        return {"key": jnp.zeros(shape, model.dtype), "value": jnp.zeros(shape, model.dtype)}
    return tuple(
        {"key": jnp.zeros(shape, model.dtype), "value": jnp.zeros(shape, model.dtype)} for _ in range(d.n_layer)
    )


@partial(jax.jit, static_argnames="model")
def make_prefix(model: LanguageModel, params: Any, tokens: jax.Array) -> Cache:
    """Keys and values of a prompt tokens [P] that every row begins with, computed once: `prefix` of the calls below."""
    row = tokens[None, :]
    # `read` spares the vocabulary's GEMM at all places but one.
    _, cache = model.apply(
        {"params": params},
        row,
        jnp.arange(row.shape[1])[None, :],
        jnp.ones(row.shape, bool),
        read=jnp.zeros(1, jnp.int32),
    )
    return jax.tree.map(lambda leaf: leaf[:, 0] if model.scan_layers else leaf[0], cache)


def greedy(
    model: LanguageModel,
    params: Any,
    prompt: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike,
    limit: jax.typing.ArrayLike,
    stop: jax.typing.ArrayLike,
    prefix: Cache = None,
    *,
    slots: int,
) -> tuple[jax.Array, jax.Array]:
    """The likeliest continuation, token by token, of each row.

    prompt: tokens [B, T] or embeddings [B, T, D]; mask [B, T]: True where there is something, padding on either side.
    limit [B]: most new tokens of a row (0 leaves it out), at most slots - T; stop [n]: tokens that end a row. Ends when
    every row has. Adapters are merged into `params` beforehand (lora.merge): they then cost nothing a token.
    `prefill` is compiled for every (B, T, slots), `decode` for every (B, slots): few of each make few compilations.
    Returns (new tokens [B, slots], their number [B], the stop token not counted); what follows the number is undefined.
    """
    prompt = jnp.asarray(prompt)
    rows, length = prompt.shape[:2]
    new = jnp.ones((rows, slots - length), bool)
    mask = jnp.concatenate([jnp.asarray(mask), new], axis=1)  # [B, C]
    logits, cache = prefill(model, params, prompt, mask, prefix)
    limit = jnp.minimum(jnp.asarray(limit), slots - length)
    return decode(model, params, logits, cache, mask, jnp.asarray(length), limit, jnp.asarray(stop), prefix)


def _prefix_length(prefix: Cache) -> int:
    return 0 if prefix is None else jax.tree.leaves(prefix)[0].shape[-3]


@partial(jax.jit, static_argnames="model")
def prefill(
    model: LanguageModel, params: Any, prompt: jax.Array, mask: jax.Array, prefix: Cache
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after the prompts [B, T(, D)], and a cache as wide as mask [B, C], of which they fill T slots."""
    rows, length = prompt.shape[:2]
    given = mask[:, :length]
    positions = _prefix_length(prefix) + jnp.maximum(jnp.cumsum(given, axis=1) - 1, 0)
    last = length - 1 - jnp.argmax(given[:, ::-1], axis=1)  # index of each row's last token
    cache = empty_cache(model, rows, mask.shape[1])
    method = "from_embeddings" if prompt.ndim == 3 else None
    return model.apply(
        {"params": params}, prompt, positions, mask, cache=cache, prefix=prefix, read=last, method=method
    )


@partial(jax.jit, static_argnames="model")
def decode(
    model: LanguageModel,
    params: Any,
    logits: jax.Array,
    cache: Cache,
    mask: jax.Array,
    length: jax.Array,
    limit: jax.Array,
    stop: jax.Array,
    prefix: Cache,
) -> tuple[jax.Array, jax.Array]:
    """What `greedy` says, from the logits and the cache after prompts of `length` slots."""
    rows, slots = mask.shape
    given = mask & (jnp.arange(slots) < length)[None, :]
    first = _prefix_length(prefix) + given.sum(axis=1)  # [B], position of each row's first new token

    def emit(
        n: jax.Array, logits: jax.Array, done: jax.Array, out: jax.Array, number: jax.Array
    ) -> tuple[jax.Array, ...]:
        new = jnp.argmax(logits, axis=-1).astype(jnp.int32)  # [B]
        done = done | (new[:, None] == stop[None, :]).any(axis=1)
        out = jax.lax.dynamic_update_slice(out, new[:, None], (0, n))
        number = number + ~done
        return new, done | (number >= limit), out, number

    def step(carry: tuple) -> tuple:
        n, new, cache, done, out, number = carry
        logits, cache = model.apply(
            {"params": params},
            new[:, None],
            (first + n)[:, None],
            mask,
            start=length + n,
            cache=cache,
            prefix=prefix,
            read=jnp.zeros(rows, jnp.int32),
        )
        new, done, out, number = emit(n + 1, logits, done, out, number)
        return n + 1, new, cache, done, out, number

    zero = jnp.zeros((), jnp.int32)
    out = jnp.zeros((rows, slots), jnp.int32)
    new, done, out, number = emit(zero, logits, limit <= 0, out, jnp.zeros(rows, jnp.int32))
    carry = (zero, new, cache, done, out, number)
    *_, out, number = jax.lax.while_loop(lambda c: ~c[3].all(), step, carry)
    return out, number
