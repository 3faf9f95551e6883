"""Whisper's decoder one token at a time, for G hypotheses of every row: the inner step of search.

The G hypotheses of a row stand on the query axis of one pass. They share the row's cross-attention keys, laid out by
head once, and one self-attention cache whose slots are written once and never moved: a mask [B, G, slots] says which
slots are a hypothesis's own past, so a beam that changes its parent moves booleans instead of keys.
Parameters are those of model/whisper.py's Decoder with its layers apart (`apart`): a step that takes a layer's weights
and keys out of stacked arrays copies them, which on a CPU is a third of its time.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmoe.model import lora
from jaxmoe.model.attention import masked
from jaxmoe.model.precision import narrow
from jaxmoe.model.whisper import Cache, DecoderBlock, LayerNorm, ModelDimensions


class CrossByHead(NamedTuple):
    """A layer's keys and values of cross-attention as its matrix products read them; K' is the width of a head."""

    k: jax.Array  # [B, H, K', S]
    v: jax.Array  # [B, H, S, K']


def by_head(cross: tuple[jax.Array, jax.Array], n_head: int) -> tuple[CrossByHead, ...]:
    """Keys and values [L, B, S, D] of Decoder.cross_kv, one pair a layer, split into heads."""
    # Otherwise each step of each layer transposes them: twice the time of a greedy step of tiny.en, batch 8, on a CPU.
    k, v = (x.reshape(*x.shape[:3], n_head, -1) for x in cross)
    return tuple(map(CrossByHead, k.transpose(0, 1, 3, 4, 2), v.transpose(0, 1, 3, 2, 4)))


def layers(stacked: Any) -> tuple[Any, ...]:
    """A tree of arrays [L, ...] as L trees."""
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(jax.tree.leaves(stacked)[0])))


def apart(variables: dict[str, Any]) -> dict[str, Any]:
    """A Decoder's variables {"params", "lora"} as StepDecoder takes them: `blocks_<i>`, frozen kernels transposed.

    Frozen matrices are kept as products take them, which is half of what is read at each step where they are narrow.
    """
    found = {}
    for name, tree in variables.items():
        blocks = {f"blocks_{i}": block for i, block in enumerate(layers(tree["blocks"]))}
        found[name] = {k: v for k, v in tree.items() if k != "blocks"} | blocks
    lora.transpose_kernels(found["params"])
    found["params"] = jax.tree.map(lambda x: narrow(x) if x.ndim == 2 else x, found["params"])
    return found


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


class StepDecoder(nn.Module):
    """The decoder for one token of each hypothesis; apply it with what `apart` makes of a Decoder's variables."""

    dims: ModelDimensions
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        cross: tuple[CrossByHead, ...],
        cache: tuple[Cache, ...],
        *,
        slot: jax.Array,
        position: jax.Array,
        seen: jax.Array,
        scales: jax.Array | None = None,
        cross_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Cache, ...]]:
        """Logits [B, G, V] after tokens [B, G].

        Args:
          cross, cache: of each layer; the cache's are [B, slots, D], and these tokens' keys are written to `slot` ..
            `slot` + G - 1.
          position: [B], where each row's tokens stand.
          seen: [B, G, slots], True where a hypothesis may look, its own new slot included.
          cross_mask: [B, S], True where latents may be attended to.
        """
        d, init = self.dims, nn.initializers.normal(0.01)
        places = self.param("positional_embedding", init, (d.n_text_ctx, d.n_text_state))
        embed = nn.Embed(d.n_vocab, d.n_text_state, dtype=self.dtype, name="token_embedding")
        x = embed(tokens) + places[position][:, None].astype(self.dtype)  # [B, G, D]
        if cross_mask is not None:
            cross_mask = cross_mask[:, None, None, :]
        caches = []
        for i, (kv, own) in enumerate(zip(cross, cache, strict=True)):
            block = StepBlock(d, self.dtype, name=f"blocks_{i}")
            x, own = block(x, kv, own, slot, seen[:, None], cross_mask, scales)
            caches.append(own)
        x = LayerNorm(self.dtype, name="ln")(x)
        return lora.by_rows(x, embed.embedding.astype(self.dtype)).astype(jnp.float32), tuple(caches)
