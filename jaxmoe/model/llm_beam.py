"""Beam search (model/beam.py) for the decoder-only language model: the prompt's keys are shared by its hypotheses.

The cache has P prompt slots and G for each new token.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoe.model import beam
from jaxmoe.model.llm import Cache, LanguageModel
from jaxmoe.model.llm_decode import prefill


def beam_search(
    model: LanguageModel,
    params: Any,
    prompt: jax.Array,
    mask: jax.Array,
    *,
    beams: int,
    max_tokens: int,
    stop: int,
    length_penalty: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The best continuation of each row: (tokens [B, max_tokens], their number [B], the stop token not counted).

    prompt: tokens [B, P] or embeddings [B, P, D]; mask [B, P]: True where there is something, padding on either side.
    stop: the token that ends a text. A hypothesis is worth its log-probability / (tokens + 1)^length_penalty.
    """
    new = jnp.zeros((mask.shape[0], beams * max_tokens), bool)
    logits, cache = prefill(model, params, prompt, jnp.concatenate([mask, new], axis=1), None)
    return extend(
        model, params, logits, cache, mask, stop, length_penalty, beams=beams, max_tokens=max_tokens
    )


@partial(jax.jit, static_argnames=("model", "beams", "max_tokens"))
def extend(
    model: LanguageModel,
    params: Any,
    logits: jax.Array,
    cache: Cache,
    mask: jax.Array,
    stop: jax.typing.ArrayLike,
    length_penalty: jax.typing.ArrayLike,
    *,
    beams: int,
    max_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """What `beam_search` says, from logits [B, V] and the cache [.., P + beams * max_tokens, ..] after the prompts.

    By the rules of transformers 4.28, which SALMONN was published with.
    """
    rows, prompt = mask.shape
    position = mask.sum(1)  # [B], of the first new token
    seen = jnp.pad(mask, ((0, 0), (0, beams * max_tokens)))

    def advance(carry: Any, source: jax.Array, token: jax.Array, step: jax.Array) -> tuple[jax.Array, Any]:
        cache, seen = carry
        slot = prompt + step * beams
        seen = beam.past(seen, source, slot)
        at = jnp.broadcast_to((position + step)[:, None], (rows, beams))
        logits, cache = model.apply({"params": params}, token, at, seen, start=slot, cache=cache)
        return jax.nn.log_softmax(logits), (cache, seen)

    carry = (cache, jnp.repeat(seen[:, None], beams, axis=1))
    rules = beam.Rules(stop, length_penalty, old=True)
    limit = jnp.full(rows, max_tokens)
    return beam.search(
        advance, jax.nn.log_softmax(logits), carry, limit, rules, beams=beams, max_tokens=max_tokens
    )
