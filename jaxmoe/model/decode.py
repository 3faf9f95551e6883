"""Batched search for Whisper's decoder: greedy, sampling and beam search in one jitted loop.

Every row of a batch carries G hypotheses (1 for greedy, the beam size, or the number of samples); model/step_decoder.py
says how they share keys. The self-attention cache has a static length that grows in stages, since most speech needs a
fraction of the longest text. Shapes: B batch, G hypotheses, P prompt, T longest text, V vocabulary.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.model.logit_rules import LogitRules, SpecialTokens
from jaxmoe.model.search import Context, Search, State, choose, extend
from jaxmoe.model.step_decoder import StepDecoder, apart, by_head, layers
from jaxmoe.model.whisper import Cache, Decoder, Whisper

STAGES = (48, 112)  # texts longer than these tokens move to a longer cache; those that have ended leave the batch


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """How to search; the defaults are plain greedy text without timestamps.

    Args:
      beam_size: hypotheses of beam search at temperature 0; 1 is greedy.
      best_of: samples drawn at temperature > 0.
      max_tokens: longest text in tokens (openai/whisper: half of the decoder's 448 positions).
      temperature: 0 searches, above 0 samples.
      timestamps: holds the grammar of timestamps; the prompt must then lack <|notimestamps|>.
      length_penalty: None ranks by log-probability / tokens; a value alpha by / ((5 + tokens) / 6)^alpha.
      suppress: leaves out non-speech symbols and an empty beginning.
      max_initial_timestamp_s: the latest start of the first segment.
    """

    beam_size: int = 1
    best_of: int = 1
    max_tokens: int = 224
    temperature: float = 0.0
    timestamps: bool = False
    length_penalty: float | None = None
    suppress: bool = True
    max_initial_timestamp_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beam_size", "best_of", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1.")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: expected 0 (search) or above (sample).")


class Hypothesis(NamedTuple):
    """One text of an N-best list."""

    tokens: list[int]
    sum_logprob: float  # natural log, the end token's included


@dataclasses.dataclass(frozen=True)
class DecodingResult:
    """What was decoded, one entry a row.

    Args:
      tokens: the best text without prompt and end token (with timestamps, if asked for).
      sum_logprob: [B], its log-probability, the end token's included.
      avg_logprob: [B], sum_logprob / (tokens + 1).
      no_speech_prob: [B], probability of <|nospeech|> after <|startoftranscript|>, of the decoder without columns:
        adapters that never heard silence forget it.
      nbest: all G hypotheses, best first.
    """

    tokens: list[list[int]]
    sum_logprob: np.ndarray
    avg_logprob: np.ndarray
    no_speech_prob: np.ndarray
    nbest: list[list[Hypothesis]]


@functools.partial(jax.jit, static_argnames=("search", "sot_index", "no_speech"))
def _start(
    search: Search,
    context: Context,
    latents: jax.Array,
    prompt: jax.Array,
    live: jax.Array,
    sot_index: int,
    no_speech: int,
) -> tuple[Context, State, jax.Array]:
    """Reads the latents [B, S, D] and the prompt [B, P]; rows where `live` [B] is False are padding."""
    b, p, g, t = *prompt.shape, search.group, search.max_tokens
    decoder, variables = Decoder(search.dims, search.dtype), context.variables
    cross = decoder.apply(variables, latents, context.scales, method="cross_kv")
    read = functools.partial(decoder.apply, variables, cross=cross, scales=context.scales,
                             cross_mask=context.cross_mask, token_mask=context.token_mask)  # fmt: skip
    cache = decoder.init_cache(b, p)
    if sot_index:  # an earlier text: nobody reads its logits, and XLA leaves them out
        cache = read(prompt[:, :sot_index], cache=cache)[1]
    logits, cache = read(prompt[:, sot_index:], cache=cache, position=sot_index)
    first = logits
    if "lora" in variables:
        bare = {"params": variables["params"]}
        unadapted = decoder.apply(bare, latents, method="cross_kv")
        start = prompt[:, sot_index : sot_index + 1]
        first, _ = decoder.apply(bare, start, unadapted, cross_mask=context.cross_mask)
    no_speech_prob = jax.nn.softmax(first[:, 0], axis=-1)[:, no_speech]  # [B]
    first_only = jnp.where(jnp.arange(g) == 0, 0.0, -jnp.inf)  # beams start from one hypothesis
    full = lambda x, dtype, *shape: jnp.full(shape, x, dtype)
    eot = search.rules.eot
    state = State(
        step=jnp.zeros((), jnp.int32),
        logits=jnp.repeat(logits[:, -1:], g, axis=1),
        cache=layers(cache),
        seen=jnp.repeat(context.token_mask[:, None], g, axis=1),
        tokens=full(eot, jnp.int32, b, g, t),
        sum_logprob=jnp.tile(first_only[None], (b, 1)) if search.kind == "beam" else jnp.zeros((b, g)),
        history=search.rules.start((b, g)),
        done=jnp.repeat(~live[:, None], g, axis=1),
        ended_tokens=full(eot, jnp.int32, b, 2 * g, t),
        ended_logprob=full(-jnp.inf, jnp.float32, b, 2 * g),
    )
    context = context._replace(variables=apart(variables), cross=by_head(cross, search.dims.n_text_head))
    return context, state, no_speech_prob


def _next_logits(
    search: Search, context: Context, state: State, token: jax.Array
) -> tuple[jax.Array, tuple[Cache, ...], jax.Array]:
    """Logits [B, G, V] after `token` [B, G], the cache with it, and what may be seen."""
    prompt = context.token_mask.shape[1]
    slot = prompt + state.step * search.group
    own = slot + jnp.arange(search.group)[None, :, None]
    seen = state.seen | (jnp.arange(state.seen.shape[2])[None, None] == own)
    logits, cache = StepDecoder(search.dims, search.dtype).apply(
        context.variables, token, context.cross, state.cache, slot=slot,
        position=context.token_mask.sum(1) + state.step, seen=seen,
        scales=context.scales, cross_mask=context.cross_mask,
    )  # fmt: skip
    return logits, cache, seen


@functools.partial(jax.jit, static_argnames=("search", "stage"), donate_argnames="state")
def _run(search: Search, context: Context, state: State, stage: int) -> State:
    """Decodes until all rows are done or `stage` tokens are said."""
    step = extend if search.kind == "beam" else choose

    def more(state: State) -> jax.Array:
        return (state.step < stage) & ~state.done.all()

    def body(state: State) -> State:
        token, state = step(search, context, state)
        logits, cache, seen = _next_logits(search, context, state, token)
        return state._replace(step=state.step + 1, logits=logits, cache=cache, seen=seen)

    return jax.lax.while_loop(more, body, state)


def _grow(state: State, slots: int) -> State:
    """The state with room for `slots` keys."""
    more = slots - state.seen.shape[2]
    cache = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, more), (0, 0))), state.cache)
    return state._replace(cache=cache, seen=jnp.pad(state.seen, ((0, 0), (0, 0), (0, more))))


def _score(hypothesis: Hypothesis, length_penalty: float | None) -> float:
    length = len(hypothesis.tokens)
    penalty = max(length, 1) if length_penalty is None else ((5 + length) / 6) ** length_penalty
    return hypothesis.sum_logprob / penalty


def _take_rows(context: Context, state: State, keep: np.ndarray) -> tuple[Context, State]:
    """Both with the rows `keep` alone."""
    take = lambda x, names: {name: jax.tree.map(lambda y: y[keep], getattr(x, name)) for name in names}
    context = context._replace(**take(context, ("scales", "cross", "cross_mask", "token_mask", "keys")))
    return context, state._replace(**take(state, set(State._fields) - {"step"}))


def _collect(
    search: Search, state: State, rows: dict[int, int], length_penalty: float | None
) -> dict[int, list[Hypothesis]]:
    """The hypotheses of rows, best first; unfinished beams fill up what has not ended.

    rows: which row of the state each row of the batch is.
    """
    tokens, logprob, ended, ended_logprob = jax.device_get(
        (state.tokens, state.sum_logprob, state.ended_tokens, state.ended_logprob)
    )

    def text(ids: np.ndarray) -> list[int]:
        stop = np.flatnonzero(ids == search.rules.eot)
        return ids[: stop[0] if stop.size else None].tolist()

    out = {}
    for name, row in rows.items():
        full = np.flatnonzero(np.isfinite(ended_logprob[row]))
        found = [Hypothesis(text(ended[row, i]), float(ended_logprob[row, i])) for i in full]
        for i in np.argsort(-logprob[row], kind="stable")[: max(search.group - len(found), 0)]:
            if np.isfinite(logprob[row, i]):
                found.append(Hypothesis(text(tokens[row, i]), float(logprob[row, i])))
        out[name] = sorted(found, key=lambda h: -_score(h, length_penalty))[: search.group]
    return out


def _pad_rows(x: Any, rows: int) -> Any:
    """Repeats the first row until there are `rows` of them."""
    if x is None or x.shape[0] == rows:
        return x
    return jnp.concatenate([x, jnp.repeat(x[:1], rows - x.shape[0], axis=0)])


def decode(
    model: Whisper,
    base_params: Any,
    latents: jax.Array,
    *,
    prompt: Sequence[int] | np.ndarray,
    tokenizer: SpecialTokens,
    options: DecodingOptions,
    token_mask: np.ndarray | None = None,
    columns: Any = None,
    scales: jax.Array | None = None,
    cross_mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> DecodingResult:
    """Decodes latents [B, S, D].

    The batch is padded to a power of two, so that few programs are compiled; a row's result does not depend on the
    others.

    Args:
      prompt: ids of the start, for all rows or [B, P].
      token_mask: [B, P], False for padding on the left of the prompt.
      columns: LoRA columns as lora.nested gives them, acting with `scales` [B, K].
      cross_mask: [B, S], True where latents may be attended to.
      key: for temperature > 0; one key, or one for each row.

    Raises:
      ValueError: if the prompt leaves no room or sampling has no key.
    """
    rows, ids, mask = latents.shape[0], *_prompt_rows(prompt, token_mask, latents.shape[0])
    search = _make_search(model, tokenizer, options, ids.shape[1])
    if search.kind == "sample" and key is None:
        raise ValueError(f"temperature={options.temperature} samples: give a key.")
    if key is not None and key.ndim == 0:
        key = jax.random.split(key, rows)
    full = 1 << (rows - 1).bit_length()
    context = Context(
        variables={"params": base_params["decoder"]} | ({"lora": columns["decoder"]} if columns else {}),
        scales=_pad_rows(scales, full),
        cross=None,
        cross_mask=_pad_rows(cross_mask, full),
        token_mask=_pad_rows(mask, full),
        keys=_pad_rows(key if search.kind == "sample" else None, full),
        temperature=jnp.float32(options.temperature),
    )
    context, state, no_speech = _start(
        search,
        context,
        _pad_rows(latents, full),
        _pad_rows(ids, full),
        np.arange(full) < rows,
        sot_index=int(np.flatnonzero(ids[0] == tokenizer.sot)[-1]),
        no_speech=tokenizer.no_speech,
    )
    found: dict[int, list[Hypothesis]] = {}
    at = np.arange(full)  # which row of the batch each row of the state is
    for stage in (*(s for s in STAGES if s < search.max_tokens), search.max_tokens):
        state = _run(search, context, _grow(state, ids.shape[1] + stage * search.group), stage=stage)
        done = np.asarray(state.done).all(1) | (stage == search.max_tokens)
        ended = {int(at[i]): int(i) for i in np.flatnonzero(done) if at[i] < rows}
        found |= _collect(search, state, ended, options.length_penalty)
        if done.all():
            break
        live = 1 << (int((~done).sum()) - 1).bit_length()
        if live < len(at):  # those that have ended leave; of these, enough stay to fill up
            keep = np.argsort(done, kind="stable")[:live]
            context, state, at = *_take_rows(context, state, keep), at[keep]
    nbest = [found[row] for row in range(rows)]
    total = np.array([n[0].sum_logprob for n in nbest], np.float32)
    lengths = np.array([len(n[0].tokens) + 1 for n in nbest])
    return DecodingResult(
        tokens=[n[0].tokens for n in nbest],
        sum_logprob=total,
        avg_logprob=total / lengths,
        no_speech_prob=np.asarray(no_speech)[:rows],
        nbest=nbest,
    )


def _prompt_rows(
    prompt: Sequence[int] | np.ndarray, token_mask: np.ndarray | None, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and mask as [B, P]."""
    ids = np.asarray(prompt, np.int32)
    ids = np.tile(ids, (rows, 1)) if ids.ndim == 1 else ids
    return ids, np.ones(ids.shape, bool) if token_mask is None else np.asarray(token_mask, bool)


def _make_search(model: Whisper, tokenizer: SpecialTokens, options: DecodingOptions, prompt_length: int) -> Search:
    room = model.dims.n_text_ctx - prompt_length
    if room < 1:
        raise ValueError(f"prompt of {prompt_length} tokens: expected less than {model.dims.n_text_ctx}.")
    rules = LogitRules.make(
        tokenizer,
        timestamps=options.timestamps,
        suppress=options.suppress,
        max_initial_timestamp_s=options.max_initial_timestamp_s,
    )
    kind = "sample" if options.temperature > 0 else "beam" if options.beam_size > 1 else "greedy"
    group = options.best_of if kind == "sample" else options.beam_size
    return Search(model.dims, model.dtype, rules, group, min(options.max_tokens, room), kind)
