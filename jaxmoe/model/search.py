"""What one step of greedy search, sampling and beam search makes of the state that decode.py's loop carries.

Shapes: B batch, G hypotheses of a row, P prompt, S encoder positions, T longest text, V vocabulary, K low-rank columns.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmoe.model.logit_rules import History, LogitRules
from jaxmoe.model.step_decoder import CrossByHead
from jaxmoe.model.whisper import Cache, ModelDimensions


class Context(NamedTuple):
    """What stays the same while a batch is decoded."""

    variables: dict[str, Any]  # the decoder's "params" and "lora"; after _start as StepDecoder takes them
    scales: jax.Array | None  # [B, K]
    cross: tuple[CrossByHead, ...] | None  # of each layer; filled in by _start
    cross_mask: jax.Array | None  # [B, S]
    token_mask: jax.Array  # [B, P], False for padding on the left
    keys: jax.Array | None  # [B], for sampling
    temperature: jax.Array


class State(NamedTuple):
    """The loop's state. Beams that ended are in `ended_*`, in the order in which they ended."""

    step: jax.Array
    logits: jax.Array  # [B, G, V], of the next token
    cache: tuple[Cache, ...]  # of each layer, [B, P + stage * G, D]
    seen: jax.Array  # [B, G, P + stage * G], the slots that are a hypothesis's own past
    tokens: jax.Array  # [B, G, T], filled up with eot
    sum_logprob: jax.Array  # [B, G]
    history: History
    done: jax.Array  # [B, G], the hypothesis (greedy, sampling) or the row's search (beam) has ended
    ended_tokens: jax.Array  # [B, 2 G, T]: up to G - 1 from earlier steps and G from the last
    ended_logprob: jax.Array  # [B, 2 G], -inf where empty


@dataclasses.dataclass(frozen=True)
class Search:
    """The static side of a search."""

    dims: ModelDimensions
    dtype: Any
    rules: LogitRules
    group: int  # G
    max_tokens: int  # T
    kind: str  # "greedy", "sample", "beam"


def choose(search: Search, context: Context, state: State) -> tuple[jax.Array, State]:
    """Greedy and sampling: one token for every hypothesis; those that have ended repeat eot."""
    logits = search.rules(state.logits, state.history, state.step)
    scores = logits
    if search.kind == "sample":
        keys = jax.vmap(lambda key: jax.random.fold_in(key, state.step))(context.keys)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)  # [B, G, V]
        scores = logits / context.temperature + noise
    token = jnp.where(state.done, search.rules.eot, jnp.argmax(scores, axis=-1))  # [B, G]
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
    return token, state._replace(
        sum_logprob=state.sum_logprob + jnp.where(state.done, 0.0, logprob),
        tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, state.step, axis=2),
        history=search.rules.advance(state.history, token),
        done=state.done | (token == search.rules.eot),
    )


def extend(search: Search, context: Context, state: State) -> tuple[jax.Array, State]:
    """Beam search: the G best continuations of a row; those that end and are among its G best are put aside.

    A row is done when G have ended (patience 1). Source: CTranslate2's BeamSearch::search, src/decoding.cc;
    openai/whisper also lets those end that are worse than the G best but better than the last survivor.
    """
    g, eot = search.group, search.rules.eot
    logits = search.rules(state.logits, state.history, state.step)  # [B, G, V]
    base = state.sum_logprob - jax.nn.logsumexp(logits, axis=-1)  # [B, G]
    ending = base + logits[..., eot]  # [B, G]
    going = jnp.where((jnp.arange(logits.shape[-1]) == eot)[None, None], -jnp.inf, logits)
    k = min(g, logits.shape[-1])
    top, token = jax.lax.top_k(going, k)  # [B, G, k]; the normaliser does not change a beam's own order
    scores = (top + base[..., None]).reshape(-1, g * k)
    best, index = jax.lax.top_k(scores, g)  # [B, G]
    source = index // k  # the beam that each one continues
    token = jnp.take_along_axis(token.reshape(-1, g * k), index, axis=1)

    better = [(x[:, None] > ending[:, :, None]).sum(2) for x in (best, ending)]  # than each that would end, [B, G]
    ends = (better[0] + better[1] < g) & ~state.done
    order = jnp.argsort(jnp.where(ends, -ending, jnp.inf), axis=1)
    ends, ending = (jnp.take_along_axis(x, order, axis=1) for x in (ends, ending))
    taken = jnp.isfinite(state.ended_logprob).sum(1, keepdims=True)  # [B, 1]
    slot = jnp.where(ends, taken + jnp.arange(g)[None], 2 * g)  # 2 G: dropped
    rows = jnp.arange(slot.shape[0])[:, None]
    prefix = jnp.take_along_axis(state.tokens, order[..., None], axis=1)
    ended_logprob = state.ended_logprob.at[rows, slot].set(ending, mode="drop")
    ended_tokens = state.ended_tokens.at[rows, slot].set(prefix, mode="drop")
    done = (jnp.isfinite(ended_logprob).sum(1, keepdims=True) >= g) | state.done

    pick = lambda x: jnp.take_along_axis(x, source, axis=1)
    tokens = jnp.take_along_axis(state.tokens, source[..., None], axis=1)
    state = state._replace(
        seen=jnp.take_along_axis(state.seen, source[..., None], axis=1),
        tokens=jax.lax.dynamic_update_index_in_dim(tokens, token, state.step, axis=2),
        sum_logprob=best,
        history=search.rules.advance(History(*map(pick, state.history)), token),
        done=done,
        ended_tokens=ended_tokens,
        ended_logprob=ended_logprob,
    )
    return token, state
