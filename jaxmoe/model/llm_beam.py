"""Beam search for the decoder-only language model, as transformers searches: B rows of G hypotheses in one jitted loop.

The hypotheses of a row stand on the token axis of one pass. They share the prompt's keys and a cache whose slots are
written once and never moved: a mask [B, G, C] says which slots are a hypothesis's own past. C is P prompt slots and G
for each new token.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmoe.model.llm import Cache, LanguageModel, prefill


class _State(NamedTuple):
    """The loop's state; `best_*` are the hypotheses that ended, best first."""

    step: jax.Array  # tokens of every live hypothesis
    logits: jax.Array  # [B, G, V] of the next token
    cache: Cache
    seen: jax.Array  # [B, G, C]
    tokens: jax.Array  # [B, G, T]
    total: jax.Array  # [B, G], sums of log-probabilities
    best_tokens: jax.Array  # [B, G, T]
    best_score: jax.Array  # [B, G], -inf where there is none
    best_length: jax.Array  # [B, G], without the stop token
    done: jax.Array  # [B]


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

    Source: transformers 4.28, generation/utils.py, beam_search, and beam_search.py with early_stopping False.
    """
    rows, prompt = mask.shape
    position = mask.sum(1)  # [B], of the first new token
    slots = jnp.arange(prompt + beams * max_tokens)
    seen = jnp.pad(mask, ((0, 0), (0, beams * max_tokens)))
    full = lambda value, dtype, *shape: jnp.full((rows, beams, *shape), value, dtype)
    worth = partial(_score, length_penalty=length_penalty)

    def body(state: _State) -> _State:
        source, token, state = _choose(state, stop, worth)
        slot = prompt + state.step * beams
        own = slots[None, None] == (slot + jnp.arange(beams))[None, :, None]
        seen = jnp.take_along_axis(state.seen, source[..., None], axis=1) | own
        at = jnp.broadcast_to((position + state.step)[:, None], (rows, beams))
        logits, cache = model.apply({"params": params}, token, at, seen, start=slot, cache=state.cache)
        return state._replace(step=state.step + 1, logits=logits, cache=cache, seen=seen)

    state = _State(
        step=jnp.zeros((), jnp.int32),
        logits=jnp.repeat(logits[:, None], beams, axis=1),
        cache=cache,
        seen=jnp.repeat(seen[:, None], beams, axis=1),
        tokens=full(0, jnp.int32, max_tokens),
        total=jnp.where(jnp.arange(beams)[None] == 0, full(0.0, jnp.float32), -jnp.inf),  # from one hypothesis
        best_tokens=full(0, jnp.int32, max_tokens),
        best_score=full(-jnp.inf, jnp.float32),
        best_length=full(0, jnp.int32),
        done=jnp.zeros(rows, bool),
    )
    state = jax.lax.while_loop(lambda s: (s.step < max_tokens) & ~s.done.all(), body, state)
    # What has not ended competes with what has, unless its row is done.
    live = jnp.where(state.done[:, None], -jnp.inf, worth(state.total, state.step))
    length = jnp.full((rows, beams), state.step)
    state = _keep_best(state, state.tokens, live, length)
    return state.best_tokens[:, 0], state.best_length[:, 0]


def _score(total: jax.Array, length: jax.Array, *, length_penalty: jax.typing.ArrayLike) -> jax.Array:
    """Sum of log-probabilities over (tokens + 1)^length_penalty."""
    return total / (length + 1.0) ** length_penalty


def _choose(state: _State, stop: jax.typing.ArrayLike, worth: Any) -> tuple[jax.Array, jax.Array, _State]:
    """The G best continuations [B, G] that go on: (the hypothesis each continues, its token, the state with it).

    Of the 2 G best, those that end are put aside if they are among the G best.
    """
    rows, beams, vocab = state.logits.shape
    scores = state.total[..., None] + jax.nn.log_softmax(state.logits, axis=-1)
    scores, index = jax.lax.top_k(scores.reshape(rows, -1), 2 * beams)  # [B, 2 G]
    source, token = index // vocab, index % vocab
    ends = token == stop
    ended = ends & (jnp.arange(2 * beams)[None] < beams) & ~state.done[:, None]
    prefix = jnp.take_along_axis(state.tokens, source[..., None], axis=1)
    length = jnp.full(ended.shape, state.step)
    after = _keep_best(state, prefix, jnp.where(ended, worth(scores, state.step), -jnp.inf), length)
    # No hypothesis that still lives can overtake: the best of them would have to end at once.
    settled = jnp.isfinite(after.best_score[:, -1]) & (after.best_score[:, -1] >= worth(scores[:, 0], state.step))

    going = jnp.argsort(ends, axis=1, stable=True)[:, :beams]  # the first G that do not end
    pick = lambda x: jnp.take_along_axis(x, going, axis=1)
    source, token = pick(source), pick(token)
    tokens = jnp.take_along_axis(state.tokens, source[..., None], axis=1)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], state.step, axis=2)
    return source, token, after._replace(tokens=tokens, total=pick(scores), done=state.done | settled)


def _keep_best(state: _State, tokens: jax.Array, score: jax.Array, length: jax.Array) -> _State:
    """The state with the best G of those that ended before and these [B, N]."""
    scores = jnp.concatenate([state.best_score, score], axis=1)
    best, index = jax.lax.top_k(scores, state.best_score.shape[1])
    pick = lambda old, new: jnp.take_along_axis(
        jnp.concatenate([old, new], axis=1), index.reshape(*index.shape, *(1,) * (old.ndim - 2)), axis=1
    )
    return state._replace(
        best_score=best,
        best_tokens=pick(state.best_tokens, tokens),
        best_length=pick(state.best_length, length),
    )
