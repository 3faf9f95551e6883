"""Marian in Flax Linen: the encoder-decoder of Helsinki-NLP's opus-mt models, post-norm, one embedding for both sides.

Parameters: {"embedding" [V, D], "final_bias" [V], "encoder": {"blocks": {"attn", "attn_ln", "mlp1", "mlp2", "mlp_ln"}},
"decoder": {"blocks": the same with "cross_attn", "cross_attn_ln"}}, layers stacked on axis 0. Low-rank columns
(model/lora.py) come in as the collection "lora". Shapes: B batch, S source tokens, T target tokens, D width, V
vocabulary, L layers.

Source: Junczys-Dowmunt et al. 2018 (Marian), as transformers' modeling_marian.py computes it.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmoe.model import beam
from jaxmoe.model.lora import LoRADense
from jaxmoe.model.whisper import Cache, LayerNorm, MultiHeadAttention

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swish": jax.nn.silu,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class MarianDimensions:
    """Sizes and constants of one model, as its config.json says them."""

    n_vocab: int
    n_state: int
    n_head: int
    n_mlp: int
    n_encoder_layer: int
    n_decoder_layer: int
    activation: str
    scale_embedding: bool  # input embeddings are multiplied by sqrt(D)
    pad: int  # also the token that decoding starts from
    eos: int
    n_ctx: int  # most tokens of a source or a target


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Positional embedding [..., D] of positions [...] (Vaswani et al. 2017), the sines in the first half."""
    angles = positions[..., None] * 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class _Block(nn.Module):
    """What both kinds of layer share: the parts, and the MLP at the end."""

    dims: MarianDimensions
    dtype: Any = jnp.float32
    cross: bool = False

    def setup(self) -> None:
        d = self.dims
        attention = functools.partial(MultiHeadAttention, d.n_state, d.n_head, self.dtype)
        self.attn, self.attn_ln = attention(), LayerNorm(self.dtype)
        if self.cross:
            self.cross_attn, self.cross_attn_ln = attention(), LayerNorm(self.dtype)
        self.mlp1 = LoRADense(d.n_mlp, dtype=self.dtype)
        self.mlp2 = LoRADense(d.n_state, dtype=self.dtype)
        self.mlp_ln = LayerNorm(self.dtype)

    def mlp(self, x: jax.Array, scales: jax.Array | None) -> jax.Array:
        h = ACTIVATIONS[self.dims.activation](self.mlp1(x, scales))
        return self.mlp_ln(x + self.mlp2(h, scales))


class EncoderBlock(_Block):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __call__(self, x: jax.Array, mask: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, None]:
        y = self.attn(x, *self.attn.keys_values(x, scales), scales, mask)
        return self.mlp(self.attn_ln(x + y), scales), None


class DecoderBlock(_Block):
    """As the encoder's, causal, with attention over the source's keys and values between."""

    def cross_kv(
        self, source: jax.Array, _: None, scales: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return source, self.cross_attn.keys_values(source, scales)

    def __call__(
        self,
        x: jax.Array,
        cross: tuple[jax.Array, jax.Array],
        cache: Cache | None,
        at: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array,
        scales: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        k, v = self.attn.keys_values(x, scales)
        if cache is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=1)
            k, v = write(cache["k"], k), write(cache["v"], v)
            cache = {"k": k, "v": v}
        x = self.attn_ln(x + self.attn(x, k, v, scales, mask))
        x = self.cross_attn_ln(x + self.cross_attn(x, *cross, scales, cross_mask))
        return self.mlp(x, scales), cache


class _Half(nn.Module):
    """The scanned layers of one side, under the name "blocks"."""

    dims: MarianDimensions
    dtype: Any
    decoder: bool

    def setup(self) -> None:
        axes: dict[str, Any] = dict(variable_axes={"params": 0, "lora": 0}, split_rngs={"params": True})
        if self.decoder:
            axes["length"] = self.dims.n_decoder_layer
            methods = {
                "cross_kv": dict(in_axes=(0, nn.broadcast), **axes),
                "__call__": dict(in_axes=(0, 0, *(nn.broadcast,) * 4), **axes),
            }
            self.blocks = nn.scan(DecoderBlock, methods=methods)(self.dims, self.dtype, cross=True)
        else:
            scan = nn.scan(EncoderBlock, in_axes=nn.broadcast, length=self.dims.n_encoder_layer, **axes)
            self.blocks = scan(self.dims, self.dtype)

    def __call__(self, *args: Any) -> tuple[jax.Array, Any]:
        return self.blocks(*args)

    def cross_kv(self, source: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return self.blocks.cross_kv(source, None, scales)[1]


class Marian(nn.Module):
    """Source tokens and the target so far -> logits of the next target token."""

    dims: MarianDimensions
    dtype: Any = jnp.float32

    def setup(self) -> None:
        d = self.dims
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (d.n_vocab, d.n_state))
        self.final_bias = self.param("final_bias", nn.initializers.zeros, (d.n_vocab,))
        self.encoder = _Half(d, self.dtype, decoder=False)
        self.decoder = _Half(d, self.dtype, decoder=True)

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        d = self.dims
        x = self.embedding[tokens] * (d.n_state**0.5 if d.scale_embedding else 1.0)
        return (x + sinusoids(positions, d.n_state)).astype(self.dtype)  # [B, T, D]

    def encode(
        self, source: jax.Array, mask: jax.Array, scales: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values of the source for the decoder's layers, 2 x [L, B, S, D].

        source [B, S]; mask [B, S]: True where a token stands, padding on either side.
        """
        positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        x, _ = self.encoder(self._embed(source, positions), mask[:, None, None, :], scales)
        return self.decoder.cross_kv(x, scales)

    def decode(
        self,
        tokens: jax.Array,
        cross: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        scales: jax.Array | None = None,
        cache: Cache | None = None,
        at: jax.Array | int = 0,
        beams: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Logits [B, T, V] after tokens [B, T] at places `at` .. `at` + T - 1, and the cache [L, B, C, D] with them.

        beams: where the tokens are hypotheses beside each other: their one place, and the slots each sees [B, T, C].
        """
        slots = at + jnp.arange(tokens.shape[1])
        length = tokens.shape[1] if cache is None else cache["k"].shape[2]
        place, seen = beams or (slots, (jnp.arange(length)[None, :] <= slots[:, None])[None])
        x = self._embed(tokens, jnp.broadcast_to(place, tokens.shape))
        x, cache = self.decoder(x, cross, cache, jnp.asarray(at), seen[:, None], mask[:, None, None, :], scales)
        logits = x @ self.embedding.T.astype(self.dtype) + self.final_bias
        return logits.astype(jnp.float32), cache

    def __call__(
        self, source: jax.Array, mask: jax.Array, tokens: jax.Array, scales: jax.Array | None = None
    ) -> jax.Array:
        """Teacher-forced logits [B, T, V]."""
        return self.decode(tokens, self.encode(source, mask, scales), mask, scales)[0]


def _empty_cache(model: Marian, rows: int, slots: int) -> Cache:
    shape = (model.dims.n_decoder_layer, rows, slots, model.dims.n_state)
    return {"k": jnp.zeros(shape, model.dtype), "v": jnp.zeros(shape, model.dtype)}


def _without_padding(model: Marian, logits: jax.Array) -> jax.Array:
    """Logits [.., V] in which padding is never said, as opus-mt's generation_config.json forbids it."""
    never = jnp.arange(model.dims.n_vocab) == model.dims.pad
    return jnp.where(jnp.broadcast_to(never, logits.shape), -jnp.inf, logits)


@functools.partial(jax.jit, static_argnames=("model", "slots"))
def greedy(
    model: Marian, params: Any, source: jax.Array, mask: jax.Array, limit: jax.Array, slots: int
) -> tuple[jax.Array, jax.Array]:
    """The likeliest target of each source, token by token, at most limit [B] <= slots tokens.

    Returns (tokens [B, slots], their number [B], the end token not counted); what follows the number is undefined.
    """
    d, variables, rows = model.dims, {"params": params}, source.shape[0]
    cross = model.apply(variables, source, mask, method="encode")
    cache = _empty_cache(model, rows, slots)

    def step(carry: tuple) -> tuple:
        n, token, cache, done, out, number = carry
        logits, cache = model.apply(variables, token[:, None], cross, mask, cache=cache, at=n, method="decode")
        token = jnp.argmax(_without_padding(model, logits[:, 0]), axis=-1).astype(jnp.int32)
        done = done | (token == d.eos)
        out = jax.lax.dynamic_update_slice(out, token[:, None], (0, n))
        number = number + ~done
        return n + 1, token, cache, done | (number >= limit), out, number

    start = jnp.full(rows, d.pad, jnp.int32)
    out = jnp.zeros((rows, slots), jnp.int32)
    carry = (jnp.zeros((), jnp.int32), start, cache, limit <= 0, out, jnp.zeros(rows, jnp.int32))
    *_, out, number = jax.lax.while_loop(lambda c: ~c[3].all() & (c[0] < slots), step, carry)
    return out, number


@functools.partial(jax.jit, static_argnames=("model", "beams", "slots"))
def beam_search(
    model: Marian,
    params: Any,
    source: jax.Array,
    mask: jax.Array,
    limit: jax.Array,
    rules: beam.Rules,
    *,
    beams: int,
    slots: int,
) -> tuple[jax.Array, jax.Array]:
    """What `greedy` returns, of the best of `beams` hypotheses a row."""
    variables, rows = {"params": params}, source.shape[0]
    cross = model.apply(variables, source, mask, method="encode")
    # Slot 0 is the start token's, which all hypotheses see; then one for each of them a step.
    cache = _empty_cache(model, rows, 1 + beams * slots)
    start = jnp.full((rows, 1), model.dims.pad, jnp.int32)
    logits, cache = model.apply(variables, start, cross, mask, cache=cache, method="decode")
    normalised = lambda logits: jax.nn.log_softmax(_without_padding(model, logits))

    def advance(carry: Any, hypothesis: jax.Array, token: jax.Array, step: jax.Array) -> tuple[jax.Array, Any]:
        cache, seen = carry
        slot = 1 + step * beams
        seen = beam.past(seen, hypothesis, slot)
        logits, cache = model.apply(
            variables, token, cross, mask, cache=cache, at=slot, beams=(1 + step, seen), method="decode"
        )
        return normalised(logits), (cache, seen)

    seen = jnp.broadcast_to(jnp.arange(1 + beams * slots) == 0, (rows, beams, 1 + beams * slots))
    return beam.search(
        advance, normalised(logits[:, 0]), (cache, seen), limit, rules, beams=beams, max_tokens=slots
    )
