"""Confidence by resampling speakers: utterances of one speaker are correlated, speakers are not.

A draw takes as many speakers as there are, with replacement, and all their utterances. Scores are functions
of sums, so a draw is a row of speaker weights times the per-speaker sums: [draws, S] @ [S, K].
Source: Efron & Tibshirani 1993, ch. 13 (percentile interval); Bisani & Ney 2004 (paired, over speakers).
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import numpy as np

Score = Callable[[np.ndarray], np.ndarray]  # summed statistics [..., K] -> [...]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference of two systems (first minus second) in the score's unit."""

    difference: float
    ci95: tuple[float, float] | None  # None with fewer than two speakers
    p: float | None  # two-sided


def speaker_index(speakers: Sequence[str]) -> tuple[np.ndarray, int]:
    """Index of each utterance's speaker [U] among the sorted distinct ones, and their number."""
    names, index = np.unique(np.asarray(speakers, dtype=object).astype(str), return_inverse=True)
    return index.reshape(-1), len(names)


def speaker_sums(statistics: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Statistics [U, K] summed by speaker: float64 [S, K]."""
    out = np.empty((count, statistics.shape[1]))
    for k in range(statistics.shape[1]):
        out[:, k] = np.bincount(index, weights=statistics[:, k], minlength=count)
    return out


@functools.lru_cache(maxsize=64)  # every system and group of as many speakers takes the same draws
def weights(speakers: int, draws: int, seed: int) -> np.ndarray:
    """How often each speaker occurs in each draw: float64 [draws, S], every row sums to S."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(speakers, np.full(speakers, 1.0 / speakers), size=draws).astype(np.float64)
    drawn.flags.writeable = False
    return drawn


def interval(sums: np.ndarray, score: Score, draws: int = 1000, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of a score of per-speaker sums [S, K]; None with fewer than two speakers."""
    if len(sums) < 2:
        return None
    return _percentiles(score(weights(len(sums), draws, seed) @ sums))


def _percentiles(values: np.ndarray) -> tuple[float, float] | None:
    """2.5th and 97.5th percentile; draws without a score (no reference words) are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired(first: np.ndarray, second: np.ndarray, score: Score, draws: int = 1000, seed: int = 0) -> Difference:
    """Difference of two systems on the same speakers, both resampled with the same draws.

    first, second: per-speaker sums [S, K] of the same utterances, in the same order of speakers.
    p = 2 * (1 + draws on the far side of zero) / (1 + draws), at most 1: it cannot fall below 2 / (draws + 1).
    Raises: ValueError when the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"paired sums have shapes {first.shape} and {second.shape}; expected the same speakers and"
            " statistics: score both systems on the same utterances."
        )
    difference = float(score(first.sum(axis=0)) - score(second.sum(axis=0)))
    if len(first) < 2:
        return Difference(difference, None, None)
    drawn = weights(len(first), draws, seed)
    deltas = score(drawn @ first) - score(drawn @ second)
    deltas = deltas[np.isfinite(deltas)]
    far = min(int((deltas <= 0).sum()), int((deltas >= 0).sum()))
    p = min(1.0, 2.0 * (1 + far) / (1 + len(deltas)))
    return Difference(difference, _percentiles(deltas), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for the number of comparisons (Holm 1979, step-down), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = np.empty(len(p_values)), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return [float(p) for p in adjusted]
