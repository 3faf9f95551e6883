"""What Whisper may say next: suppressed tokens and the grammar of timestamps, as pure functions of logits."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.text import SECONDS_PER_TIMESTAMP


class SpecialTokens(Protocol):
    """The ids a search needs; jaxmoe.data.text.Tokenizer has them."""

    @property
    def eot(self) -> int: ...
    @property
    def sot(self) -> int: ...
    @property
    def no_speech(self) -> int: ...
    @property
    def no_timestamps(self) -> int: ...
    @property
    def timestamp_begin(self) -> int: ...
    @property
    def suppress_tokens(self) -> tuple[int, ...]: ...
    @property
    def suppress_begin(self) -> tuple[int, ...]: ...


class History(NamedTuple):
    """What the rules need to know of each hypothesis [B, G]."""

    last: jax.Array  # the last token
    penultimate: jax.Array  # the one before
    last_timestamp: jax.Array  # the last timestamp token; timestamp_begin - 1 where there is none


@dataclasses.dataclass(frozen=True)
class LogitRules:
    """Rules on the logits of one step, hashable so that jit may take them as static.

    Args:
      suppress: ids never allowed (non-speech symbols, task tokens).
      suppress_begin: ids not allowed as the first token (a blank, eot).
      timestamps: whether the grammar of timestamps holds; without it timestamps are tokens like others.
      max_initial: the largest first timestamp, in steps of 0.02 s.

    Source: SuppressBlank, SuppressTokens, ApplyTimestampRules of openai/whisper, whisper/decoding.py (20250625).
    """

    eot: int
    timestamp_begin: int
    no_timestamps: int
    suppress: tuple[int, ...] = ()
    suppress_begin: tuple[int, ...] = ()
    timestamps: bool = False
    max_initial: int = 50

    @classmethod
    def make(
        cls,
        tokenizer: SpecialTokens,
        *,
        timestamps: bool = False,
        suppress: bool = True,
        max_initial_timestamp_s: float = 1.0,
    ) -> "LogitRules":
        """The rules of a tokenizer."""
        return cls(
            eot=tokenizer.eot,
            timestamp_begin=tokenizer.timestamp_begin,
            no_timestamps=tokenizer.no_timestamps,
            suppress=tuple(tokenizer.suppress_tokens) if suppress else (),
            suppress_begin=tuple(tokenizer.suppress_begin) if suppress else (),
            timestamps=timestamps,
            max_initial=round(max_initial_timestamp_s / SECONDS_PER_TIMESTAMP),
        )

    def start(self, shape: tuple[int, ...]) -> History:
        """The history of hypotheses that have said nothing."""
        full = lambda x: jnp.full(shape, x, jnp.int32)
        return History(full(self.eot), full(self.eot), full(self.timestamp_begin - 1))

    def advance(self, history: History, token: jax.Array) -> History:
        """The history after `token` [B, G]."""
        stamp = jnp.where(token >= self.timestamp_begin, token, history.last_timestamp)
        return History(token, history.last, stamp)

    def __call__(self, logits: jax.Array, history: History, step: jax.Array) -> jax.Array:
        """Forbidden tokens at -inf: logits [B, G, V], `step` tokens said so far."""
        vocab = logits.shape[-1]
        never, first = np.zeros(vocab, bool), np.zeros(vocab, bool)
        never[list(self.suppress)] = True
        first[list(self.suppress_begin)] = True
        forbidden = jnp.asarray(never) | (jnp.asarray(first) & (step == 0))
        forbidden = forbidden[None, None]  # [1, 1, V]
        if not self.timestamps:
            return jnp.where(forbidden, -jnp.inf, logits)
        return self._timestamps(jnp.where(forbidden, -jnp.inf, logits), history, step)

    def _timestamps(self, logits: jax.Array, history: History, step: jax.Array) -> jax.Array:
        ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, None]  # [1, 1, V]
        is_stamp = ids >= self.timestamp_begin
        last = ((history.last >= self.timestamp_begin) & (step >= 1))[..., None]  # [B, G, 1]
        pair = ((history.penultimate >= self.timestamp_begin) | (step < 2))[..., None]
        closes = last & ~pair  # an end was said: its pair's start, or eot, must follow
        # A segment has a length: its end lies after its start, and time never runs backwards.
        earliest = history.last_timestamp[..., None] + jnp.where(closes, 0, 1)
        forbidden = (
            (ids == self.no_timestamps)
            | (last & pair & is_stamp)
            | (closes & (ids < self.eot))
            | (is_stamp & (ids < earliest))
            | ((step == 0) & (~is_stamp | (ids > self.timestamp_begin + self.max_initial)))
        )
        logits = jnp.where(forbidden, -jnp.inf, logits)
        # All timestamps together against the best text token; the normaliser cancels.
        stamps = jax.nn.logsumexp(jnp.where(is_stamp, logits, -jnp.inf), axis=-1, keepdims=True)
        text = jnp.max(jnp.where(is_stamp, -jnp.inf, logits), axis=-1, keepdims=True)
        return jnp.where((stamps > text) & ~is_stamp, -jnp.inf, logits)
