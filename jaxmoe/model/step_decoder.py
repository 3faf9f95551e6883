"""Whisper's decoder one token at a time, for G hypotheses of every row: the inner step of search.

The G hypotheses of a row stand on the query axis of one pass. They share the row's cross-attention keys, laid out by
head once, and one self-attention cache whose slots are written once and never moved: a mask [B, G, slots] says which
slots are a hypothesis's own past, so a beam that changes its parent moves booleans instead of keys.
Parameters are those of model/whisper.py's Decoder, unchanged.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmoe.model.attention import masked
from jaxmoe.model.whisper import Cache, Decoder, DecoderBlock, LayerNorm


class CrossByHead(NamedTuple):
    """Cross-attention's keys and values as its matrix products read them; K' is the width of a head."""

    k: jax.Array  # [L, B, H, K', S]
    v: jax.Array  # [L, B, H, S, K']


def by_head(cross: tuple[jax.Array, jax.Array], n_head: int) -> CrossByHead:
    """Keys and values [L, B, S, D] of Decoder.cross_kv, split into heads."""
    # Otherwise each step of each layer transposes them: twice the time of a greedy step of tiny.en, batch 8, on a CPU.
    k, v = (x.reshape(*x.shape[:3], n_head, -1) for x in cross)
    return CrossByHead(k.transpose(0, 1, 3, 4, 2), v.transpose(0, 1, 3, 2, 4))


class StepBlock(DecoderBlock):
    """A decoder block whose queries are hypotheses: x [B, G, D], cache [B, slots, D], seen [B, 1, G, slots]."""

    def __call__(  # type: ignore[override]
        self,
        x: jax.Array,
        cross: CrossByHead,
        cache: Cache,
        slot: jax.Array,
        seen: jax.Array,
        cross_mask: jax.Array | None,
        scales: jax.Array | None,
    ) -> tuple[jax.Array, Cache]:
        h = self.attn_ln(x)
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=1)
        k, v = map(write, (cache["k"], cache["v"]), self.attn.keys_values(h, scales))
        x = x + self.attn(h, k, v, scales, seen)
        x = x + self._cross(self.cross_attn_ln(x), cross, cross_mask, scales)
        h = self.mlp1(self.mlp_ln(x), scales)
        return x + self.mlp2(jax.nn.gelu(h, approximate=False), scales), {"k": k, "v": v}

    def _cross(self, h: jax.Array, cross: CrossByHead, mask: jax.Array | None, scales: jax.Array | None) -> jax.Array:
        b, g, d = h.shape
        heads, width = cross.v.shape[1], cross.v.shape[3]
        q = self.cross_attn.query(h, scales).reshape(b, g, heads, width) * width**-0.5
        scores = jnp.einsum("bghd,bhds->bhgs", q, cross.k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(masked(scores, mask), axis=-1).astype(cross.v.dtype)
        y = jnp.einsum("bhgs,bhsd->bghd", weights, cross.v).reshape(b, g, d)
        return self.cross_attn.out(y, scales)


class StepDecoder(Decoder):
    """Decoder for one token of each hypothesis; apply it with a Decoder's parameters."""

    def setup(self) -> None:
        d = self.dims
        self.token_embedding = nn.Embed(d.n_vocab, d.n_text_state, dtype=self.dtype)
        self.positional_embedding = self.param(
            "positional_embedding", nn.initializers.normal(0.01), (d.n_text_ctx, d.n_text_state)
        )
        self.blocks = nn.scan(
            StepBlock,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, *(nn.broadcast,) * 4),
            length=d.n_text_layer,
        )(d, self.dtype)
        self.ln = LayerNorm(self.dtype)

    def __call__(  # type: ignore[override]
        self,
        tokens: jax.Array,
        cross: CrossByHead,
        cache: Cache,
        *,
        slot: jax.Array,
        position: jax.Array,
        seen: jax.Array,
        scales: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Logits [B, G, V] after tokens [B, G].

        Args:
          cache: [L, B, slots, D]; these tokens' keys are written to `slot` .. `slot` + G - 1.
          position: [B], where each row's tokens stand.
          seen: [B, G, slots], True where a hypothesis may look, its own new slot included.
          cross_mask: [B, S], True where latents may be attended to.
        """
        x = self.token_embedding(tokens)  # [B, G, D]
        x = x + self.positional_embedding[position][:, None].astype(self.dtype)
        if cross_mask is not None:
            cross_mask = cross_mask[:, None, None, :]
        x, cache = self.blocks(x, cross, cache, slot, seen[:, None], cross_mask, scales)
        return self.token_embedding.attend(self.ln(x)).astype(jnp.float32), cache
