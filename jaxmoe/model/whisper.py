"""Whisper in Flax Linen: encoder and decoder with scanned layers, named as in openai/whisper (whisper/model.py).

The base parameters are the collection "params"; low-rank columns (model/lora.py) come in as the collection "lora" and
act where a row of `scales` is given. All shapes use: B batch, M mel bins, N mel frames (3000), S encoder positions
(1500), T text tokens, D width, H heads, L layers, V vocabulary, K low-rank columns.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.model import cross_entropy
from jaxmoe.model.attention import attention, masked
from jaxmoe.model.lora import LoRADense, given
from jaxmoe.model.precision import at_least_float32

Cache = dict[str, jax.Array]  # {"k", "v"}: [L, B, T, D]
READ_LATENTS_UP_TO = 48  # tokens of a text whose queries read the latents themselves


@dataclasses.dataclass(frozen=True)
class ModelDimensions:
    """The ten sizes of a Whisper model (openai/whisper, whisper/model.py)."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    @property
    def is_multilingual(self) -> bool:
        return self.n_vocab >= 51865


def sinusoids(length: int, channels: int, max_timescale: float = 10000.0) -> np.ndarray:
    """The encoder's fixed positional embedding [length, channels] (openai/whisper, whisper/model.py)."""
    step = np.log(max_timescale) / (channels // 2 - 1)
    angles = np.arange(length)[:, None] * np.exp(-step * np.arange(channels // 2))[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class LayerNorm(nn.Module):
    """LayerNorm over D in float32 or better."""

    dtype: Any = jnp.float32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = given(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = given(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(at_least_float32(x.dtype))
        mean = x.mean(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + self.eps)
        return (x * scale + bias).astype(self.dtype)


class MultiHeadAttention(nn.Module):
    """query, key, value, out of one attention; the key has no bias."""

    n_state: int
    n_head: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        dense = functools.partial(LoRADense, self.n_state, dtype=self.dtype)
        self.query, self.value, self.out = dense(), dense(), dense()
        self.key = dense(use_bias=False)

    def keys_values(self, x: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return self.key(x, scales), self.value(x, scales)

    def __call__(
        self,
        x: jax.Array,
        k: jax.Array,
        v: jax.Array,
        scales: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        y = attention(self.query(x, scales), k, v, self.n_head, mask)
        return self.out(y, scales)

    def read(self, x: jax.Array, source: jax.Array, scales: Any, mask: jax.Array | None) -> jax.Array:
        """As __call__ over the keys and values of `source` [B, S, D], which are never made: x [B, T, D].

        The maps of key and value act on queries and outcomes instead, T rows for each head rather than S. With few
        tokens that is less work, above all in training: no gradient is kept or computed for S rows.
        """
        b, t, d = x.shape
        q = self.query(x, scales).reshape(b, t, self.n_head, -1) * (d // self.n_head) ** -0.5
        q = self.key.read_by_head(q, scales).reshape(b, t * self.n_head, d)
        scores = jnp.einsum("bqd,bsd->bqs", q, source, preferred_element_type=at_least_float32(q.dtype))
        weights = jax.nn.softmax(masked(scores, mask), axis=-1).astype(source.dtype)
        y = jnp.matmul(weights, source).reshape(b, t, self.n_head, d)
        return self.out(self.value.write_by_head(y, scales).reshape(b, t, d), scales)


class EncoderBlock(nn.Module):
    """One pre-norm block; also returns the moments of its output, which cost nothing beside it.

    `padding`: keys and values [S', D] of positions behind x. Its own are sown as "attention".
    """

    dims: ModelDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, weights: jax.Array, padding: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, jax.Array]:
        d = self.dims
        attn = MultiHeadAttention(d.n_audio_state, d.n_audio_head, self.dtype, name="attn")
        h = LayerNorm(self.dtype, name="attn_ln")(x)
        kv = attn.keys_values(h, None)
        self.sow("attention", "kv", kv)
        if padding is not None:
            behind = lambda own, p: jnp.concatenate([own, jnp.broadcast_to(p[None], (len(own), *p.shape))], axis=1)
            kv = behind(kv[0], padding[0]), behind(kv[1], padding[1])
        x = x + attn(h, *kv)
        h = LayerNorm(self.dtype, name="mlp_ln")(x)
        h = LoRADense(4 * d.n_audio_state, dtype=self.dtype, name="mlp1")(h)
        h = LoRADense(d.n_audio_state, dtype=self.dtype, name="mlp2")(
            jax.nn.gelu(h, approximate=False)
        )
        x = x + h
        return x, moments(x, weights)


def moments(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean and standard deviation of x [B, S, D] over the positions weighted by weights [B, S] -> [B, 2, D] float32."""
    x = x.astype(jnp.float32)
    count = jnp.maximum(weights.sum(1, keepdims=True), 1.0)
    mean = jnp.einsum("bsd,bs->bd", x, weights) / count
    variance = jnp.einsum("bsd,bs->bd", jnp.square(x - mean[:, None]), weights) / count
    return jnp.stack([mean, jnp.sqrt(variance)], axis=1)


class Encoder(nn.Module):
    """Log-mel [B, M, N] -> latents H [B, N / 2, D], N up to 3000 frames.

    With `weights` [B, N / 2], also mean and standard deviation of every depth [B, L + 2, 2, D]: the embedding output,
    each block, the final norm (the mean of the last is the embedding e of the gate).

    padding: keys and values [L, S', D] of positions behind those of `mel`, which then hears them without computing
      them; apply with mutable=["attention"] to get a recording's own.
    """

    dims: ModelDimensions
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        mel: jax.Array,
        weights: jax.Array | None = None,
        padding: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        d = self.dims
        if mel.shape[1] != d.n_mels or mel.shape[2] > 2 * d.n_audio_ctx or mel.shape[2] % 2:
            raise ValueError(
                f"log-mel {mel.shape}: expected [B, {d.n_mels}, an even number of frames <= {2 * d.n_audio_ctx}]."
            )
        conv = functools.partial(
            nn.Conv, d.n_audio_state, (3,), padding=((1, 1),), dtype=self.dtype
        )
        x = mel.swapaxes(1, 2).astype(self.dtype)  # [B, N, M]
        x = jax.nn.gelu(conv(name="conv1")(x), approximate=False)
        x = jax.nn.gelu(conv(strides=2, name="conv2")(x), approximate=False)  # [B, S, D]
        table = self.param(
            "positional_embedding", lambda _: jnp.asarray(sinusoids(d.n_audio_ctx, d.n_audio_state))
        )
        x = x + table[: x.shape[1]].astype(self.dtype)
        if weights is None:
            weights = jnp.ones(x.shape[:2], jnp.float32)
        first = moments(x, weights)
        scan = nn.scan(
            nn.remat(EncoderBlock, prevent_cse=False) if self.remat else EncoderBlock,
            variable_axes={"params": 0, "attention": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=d.n_audio_layer,
        )
        x, blocks = scan(d, self.dtype, name="blocks")(x, weights, padding)
        x = LayerNorm(self.dtype, name="ln_post")(x)
        depths = jnp.concatenate([first[None], blocks, moments(x, weights)[None]])  # [L + 2, B, 2, D]
        return x, depths.swapaxes(0, 1)


class DecoderBlock(nn.Module):
    """One pre-norm block: causal self-attention, cross-attention, MLP; every linear map may carry low-rank columns."""

    dims: ModelDimensions
    dtype: Any = jnp.float32

    def setup(self) -> None:
        d = self.dims
        self.attn = MultiHeadAttention(d.n_text_state, d.n_text_head, self.dtype)
        self.attn_ln = LayerNorm(self.dtype)
        self.cross_attn = MultiHeadAttention(d.n_text_state, d.n_text_head, self.dtype)
        self.cross_attn_ln = LayerNorm(self.dtype)
        self.mlp1 = LoRADense(4 * d.n_text_state, dtype=self.dtype)
        self.mlp2 = LoRADense(d.n_text_state, dtype=self.dtype)
        self.mlp_ln = LayerNorm(self.dtype)

    def cross_kv(
        self, latents: jax.Array, _: None, scales: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return latents, self.cross_attn.keys_values(latents, scales)

    def __call__(
        self,
        x: jax.Array,
        cross: tuple[jax.Array, jax.Array] | None,
        cache: Cache | None,
        position: jax.Array | int,
        self_mask: jax.Array,
        cross_mask: jax.Array | None,
        scales: jax.Array | None,
        latents: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        h = self.attn_ln(x)
        k, v = self.attn.keys_values(h, scales)
        if cache is not None:
            write = functools.partial(
                jax.lax.dynamic_update_slice_in_dim, start_index=position, axis=1
            )
            k, v = write(cache["k"], k), write(cache["v"], v)
            cache = {"k": k, "v": v}
        x = x + self.attn(h, k, v, scales, self_mask)
        h = self.cross_attn_ln(x)
        if latents is not None:
            x = x + self.cross_attn.read(h, latents, scales, None if cross_mask is None else cross_mask[:, 0])
        else:
            assert cross is not None, "one of cross and latents"
            x = x + self.cross_attn(h, *cross, scales, cross_mask)
        h = self.mlp1(self.mlp_ln(x), scales)
        return x + self.mlp2(jax.nn.gelu(h, approximate=False), scales), cache


class Decoder(nn.Module):
    """Tokens and latents -> logits [B, T, V] float32."""

    dims: ModelDimensions
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        d = self.dims
        self.token_embedding = nn.Embed(d.n_vocab, d.n_text_state, dtype=self.dtype)
        self.positional_embedding = self.param(
            "positional_embedding", nn.initializers.normal(0.01), (d.n_text_ctx, d.n_text_state)
        )
        block = nn.remat(DecoderBlock, prevent_cse=False) if self.remat else DecoderBlock
        axes = dict(
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            length=d.n_text_layer,
        )
        cross = dict(in_axes=(0, nn.broadcast), **axes)
        call = dict(in_axes=(0, 0, *(nn.broadcast,) * 5), **axes)
        self.blocks = nn.scan(block, methods={"cross_kv": cross, "__call__": call})(d, self.dtype)
        self.ln = LayerNorm(self.dtype)

    def cross_kv(
        self, latents: jax.Array, scales: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values of cross-attention for all layers, computed once: latents [B, S, D] -> 2 x [L, B, S, D]."""
        return self.blocks.cross_kv(latents.astype(self.dtype), None, scales)[1]

    def __call__(self, *args: Any, **more: Any) -> tuple[jax.Array, Cache | None]:
        """Logits [B, T, V] after each of the tokens [B, T] that `states` takes with the rest, and the cache."""
        x, cache = self.states(*args, **more)
        return self.token_embedding.attend(x).astype(at_least_float32(self.dtype)), cache

    def token_nll(self, targets: jax.Array, *args: Any, **more: Any) -> jax.Array:
        """-log p of each target [B, T], the token after those that `states` takes with the rest."""
        x = self.states(*args, **more)[0]
        flat = x.reshape(-1, x.shape[-1]), self.token_embedding.embedding, targets.reshape(-1)
        return cross_entropy.token_nll(*flat).reshape(targets.shape)

    def states(
        self,
        tokens: jax.Array,
        cross: tuple[jax.Array, jax.Array] | None,
        scales: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
        cache: Cache | None = None,
        position: jax.Array | int = 0,
        token_mask: jax.Array | None = None,
        latents: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """What the vocabulary is multiplied with, [B, T, D], after tokens [B, T] at `position` .. `position` + T - 1.

        Args:
          cross: from cross_kv; None to read `latents` [B, S, D].
          scales: [B, K], the columns' scales; None for the base model.
          cross_mask: [B, S], True where latents may be attended to; None for all.
          cache: keys and values of earlier tokens, static length; returned with these tokens written in.
          token_mask: [B, T_cache or T], False for tokens that nobody may attend to (left padding); positions then
            count from each row's first real token.
        """
        t = tokens.shape[1]
        query_at = position + jnp.arange(t)  # [T]
        if token_mask is None:
            table = jax.lax.dynamic_slice_in_dim(self.positional_embedding, position, t)[None]
        else:
            offset = (jnp.cumsum(token_mask, axis=1) == 0).sum(1)  # [B], leading padding
            table = self.positional_embedding[jnp.maximum(query_at[None] - offset[:, None], 0)]
        x = self.token_embedding(tokens) + table.astype(self.dtype)  # [B, T, D]
        length = t if cache is None else cache["k"].shape[2]
        self_mask = jnp.arange(length)[None, :] <= query_at[:, None]  # [T, S], causal
        self_mask = self_mask[None, None]
        if token_mask is not None:
            self_mask = self_mask & token_mask[:, None, None, :]
        if cross_mask is not None:
            cross_mask = cross_mask[:, None, None, :]
        latents = None if latents is None else latents.astype(self.dtype)
        x, cache = self.blocks(x, cross, cache, position, self_mask, cross_mask, scales, latents)
        return self.ln(x), cache

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of `length` tokens."""
        d = self.dims
        shape = (d.n_text_layer, batch, length, d.n_text_state)
        return {"k": jnp.zeros(shape, self.dtype), "v": jnp.zeros(shape, self.dtype)}


class Whisper(nn.Module):
    """Encoder and decoder under one parameter tree {"encoder", "decoder"}."""

    dims: ModelDimensions
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        self.encoder = Encoder(self.dims, self.dtype, self.remat)
        self.decoder = Decoder(self.dims, self.dtype, self.remat)

    def __call__(self, mel: jax.Array, tokens: jax.Array) -> jax.Array:
        latents, _ = self.encoder(mel)
        return self.logits(latents, tokens)

    def logits(
        self,
        latents: jax.Array,
        tokens: jax.Array,
        scales: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher-forced logits [B, T, V] of tokens [B, T] over latents [B, S, D]."""
        return self.decoder(tokens, **self._heard(latents, tokens, scales, cross_mask))[0]

    def token_nll(
        self,
        latents: jax.Array,
        tokens: jax.Array,
        targets: jax.Array,
        scales: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
    ) -> jax.Array:
        """-log p of each target [B, T] after tokens [B, T] over latents [B, S, D]; no logits are kept."""
        return self.decoder.token_nll(targets, tokens, **self._heard(latents, tokens, scales, cross_mask))

    def _heard(
        self, latents: jax.Array, tokens: jax.Array, scales: jax.Array | None, cross_mask: jax.Array | None
    ) -> dict[str, Any]:
        """What the decoder takes beside `tokens`: short texts read the latents, longer ones their keys and values."""
        short = tokens.shape[1] <= READ_LATENTS_UP_TO and not self.is_initializing()
        heard = {"cross": None, "latents": latents} if short else {"cross": self.decoder.cross_kv(latents, scales)}
        return {"scales": scales, "cross_mask": cross_mask, **heard}
