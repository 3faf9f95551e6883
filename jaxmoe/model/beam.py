"""Beam search as transformers searches, whatever the model: B rows of G hypotheses in one loop that can be jitted.

The hypotheses of a row stand on the token axis of one pass. They share a cache whose slots are written once and never
moved: a mask [B, G, C] says which slots are a hypothesis's own past.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# (carry, the hypothesis [B, G] that each one continues, its token [B, G], the number of tokens before it)
# -> log-probabilities [B, G, V] of what follows, the carry with them
Advance = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


class Rules(NamedTuple):
    """What ends a search and what a text is worth: its log-probability / tokens^length_penalty.

    Attributes:
      stop: the token that ends a text; it counts as one of its tokens.
      early_stopping: a row ends with its G-th finished text, even where a better one may follow.
      old: as transformers before 4.50, whose hypotheses that have just ended keep a search going, and which counts a
        stop token for those too that the limit cuts off.
    """

    stop: jax.typing.ArrayLike
    length_penalty: jax.typing.ArrayLike = 1.0
    early_stopping: jax.typing.ArrayLike = False
    old: jax.typing.ArrayLike = False

    def worth(self, total: jax.Array, length: jax.typing.ArrayLike) -> jax.Array:
        """Of a text by the sum of its log-probabilities and its number of tokens."""
        return total / jnp.asarray(length, jnp.float32) ** self.length_penalty


class _State(NamedTuple):
    """The loop's state; `best_*` are the hypotheses that ended, best first."""

    step: jax.Array  # tokens of every live hypothesis
    logprob: jax.Array  # [B, G, V] of the next token
    carry: Any
    tokens: jax.Array  # [B, G, T]
    total: jax.Array  # [B, G], sums of log-probabilities
    best_tokens: jax.Array  # [B, G, T]
    best_score: jax.Array  # [B, G], -inf where there is none
    best_length: jax.Array  # [B, G], without the stop token
    done: jax.Array  # [B]


def search(
    advance: Advance, logprob: jax.Array, carry: Any, limit: jax.Array, rules: Rules, *, beams: int, max_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """The best text of each row: (tokens [B, max_tokens], their number [B], the stop token not counted).

    logprob: [B, V] of the first token; limit [B]: most tokens of a row, at most max_tokens, 0 leaves the row out.
    Source: transformers 5.23 (4.28 where rules.old), generation/utils.py, _beam_search.
    """
    rows = logprob.shape[0]
    full = lambda value, dtype, *shape: jnp.full((rows, beams, *shape), value, dtype)

    def body(state: _State) -> _State:
        source, token, state = _choose(state, limit, rules)
        logprob, carry = advance(state.carry, source, token, state.step)
        return state._replace(step=state.step + 1, logprob=logprob, carry=carry)

    state = _State(
        step=jnp.zeros((), jnp.int32),
        logprob=jnp.repeat(logprob[:, None], beams, axis=1),
        carry=carry,
        tokens=full(0, jnp.int32, max_tokens),
        total=jnp.where(jnp.arange(beams)[None] == 0, full(0.0, jnp.float32), -jnp.inf),  # from one hypothesis
        best_tokens=full(0, jnp.int32, max_tokens),
        best_score=full(-jnp.inf, jnp.float32),
        best_length=full(0, jnp.int32),
        done=limit <= 0,
    )
    state = jax.lax.while_loop(lambda s: ~s.done.all() & (s.step < max_tokens), body, state)
    return state.best_tokens[:, 0], state.best_length[:, 0]


def past(seen: jax.Array, source: jax.Array, slot: jax.typing.ArrayLike) -> jax.Array:
    """The slots [B, G, C] that hypotheses see which continue `source` [B, G] and write their own from `slot` on."""
    beams = source.shape[1]
    own = jnp.arange(seen.shape[2])[None, None] == (slot + jnp.arange(beams))[None, :, None]
    return jnp.take_along_axis(seen, source[..., None], axis=1) | own


def _choose(state: _State, limit: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array, _State]:
    """The G best continuations [B, G] that go on: (the hypothesis each continues, its token, the state with it).

    Of the 2 G best, those that end, by the stop token or at the limit, are put aside if they are among the G best.
    """
    rows, beams, vocab = state.logprob.shape
    scores = state.total[..., None] + state.logprob
    scores, index = jax.lax.top_k(scores.reshape(rows, -1), 2 * beams)  # [B, 2 G]
    source, token = index // vocab, index % vocab
    tokens = jnp.take_along_axis(state.tokens, source[..., None], axis=1)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], state.step, axis=2)  # [B, 2 G, T]

    ends, top = token == rules.stop, jnp.arange(2 * beams)[None] < beams
    ended, worth = ends & top & ~state.done[:, None], rules.worth(scores, state.step + 1)
    state = _keep_best(state, tokens, jnp.where(ended, worth, -jnp.inf), state.step)
    going = jnp.argsort(ends, axis=1, stable=True)[:, :beams]  # the first G that do not end
    pick = lambda x: jnp.take_along_axis(x, going, axis=1)
    total = pick(scores)
    # No hypothesis that still lives can overtake: the best of them would have to end at once.
    hope = rules.worth(jnp.where(rules.old, scores[:, 0], total[:, 0]), state.step + 1)
    worst = state.best_score[:, -1]
    settled = jnp.isfinite(worst) & ((worst >= hope) | rules.early_stopping)

    last = state.step + 1 >= limit
    cut = ~ends & (last & ~state.done)[:, None] & jnp.where(rules.old, ~settled[:, None], top)
    worth = rules.worth(scores, state.step + 1 + jnp.asarray(rules.old))
    state = _keep_best(state, tokens, jnp.where(cut, worth, -jnp.inf), state.step + 1)
    tokens = jnp.take_along_axis(tokens, going[..., None], axis=1)
    state = state._replace(tokens=tokens, total=total, done=state.done | settled | last)
    return pick(source), pick(token), state


def _keep_best(state: _State, tokens: jax.Array, score: jax.Array, length: jax.Array) -> _State:
    """The state with the best G of those that ended before and these [B, N], of one length."""
    scores = jnp.concatenate([state.best_score, score], axis=1)
    best, index = jax.lax.top_k(scores, state.best_score.shape[1])
    pick = lambda old, new: jnp.take_along_axis(
        jnp.concatenate([old, new], axis=1), index.reshape(*index.shape, *(1,) * (old.ndim - 2)), axis=1
    )
    return state._replace(
        best_score=best,
        best_tokens=pick(state.best_tokens, tokens),
        best_length=pick(state.best_length, jnp.broadcast_to(length, score.shape)),
    )
