"""Greedy decoding of the decoder-only language model, after a prompt of each row's own and one that all rows share.

Terms: B batch, T tokens given, C slots of the key-value cache, P tokens of the shared prefix, D width, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoe.model.llm import Cache, LanguageModel, prefix_length


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


@partial(jax.jit, static_argnames="model")
def prefill(
    model: LanguageModel, params: Any, prompt: jax.Array, mask: jax.Array, prefix: Cache
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after the prompts [B, T(, D)], and a cache as wide as mask [B, C], of which they fill T slots."""
    rows, length = prompt.shape[:2]
    given = mask[:, :length]
    positions = prefix_length(prefix) + jnp.maximum(jnp.cumsum(given, axis=1) - 1, 0)
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
    first = prefix_length(prefix) + given.sum(axis=1)  # [B], position of each row's first new token

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
