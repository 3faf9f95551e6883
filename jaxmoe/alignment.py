"""When each word of a known transcript is said, and a long recording cut into windows with their part of it.

Times come from Whisper's own cross-attention: the transcript is forced through the decoder, the attention of the
alignment heads is a soft map of tokens to time, and the monotonic path through it (dynamic time warping) gives each
token its time. Source: openai/whisper, whisper/timing.py (20250625).
"""

from collections.abc import Sequence
from dataclasses import dataclass
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rapidfuzz.distance import Levenshtein

from jaxmoe.data.audio import N_SAMPLES, SAMPLE_RATE, SAMPLES_PER_POSITION, pad_or_trim, positions
from jaxmoe.data.text import EnglishNormalizer
from jaxmoe.model.whisper import DecoderBlock, ModelDimensions
from jaxmoe.system import Recogniser
from jaxmoe.transcription import transcribe
from jaxmoe.windows import TranscribeOptions

MEDIAN = 7  # positions, 140 ms: the filter over time
CUT_S = (12.0, 28.0)  # where in a window of 30 s the next may begin: words near its end are often cut in two
PAUSE_S = 0.2  # length of the stretch that must be quiet
TOKEN_STEP = 32  # tokens are padded to a multiple of it, one compilation each


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Window:
    """A part of a long recording, in samples, with its part of the transcript.

    `agreement`: how much of it Whisper also hears there, 0 to 1.
    """

    start: int
    end: int
    text: str
    agreement: float


def alignment_heads(dims: ModelDimensions, folder: Path | None) -> np.ndarray:
    """Which heads of cross-attention follow time, bool [L, H]: the model's own list, or all of the upper layers."""
    mask = np.zeros((dims.n_text_layer, dims.n_text_head), bool)
    mask[dims.n_text_layer // 2 :] = True
    for name in ("generation_config.json", "config.json"):
        path = folder / name if folder else None
        heads = json.loads(path.read_text("utf-8")).get("alignment_heads") if path and path.is_file() else None
        if heads:
            mask[:] = False
            mask[tuple(np.array(heads).T)] = True
            break
    return mask


@functools.partial(jax.jit, static_argnames=("dims", "dtype"))
def _attention(
    dims: ModelDimensions,
    dtype: Any,
    params: Any,
    latents: jax.Array,
    tokens: jax.Array,
    lengths: tuple[jax.Array, jax.Array],
    heads: jax.Array,
) -> jax.Array:
    """Mean attention of the heads [L, H] over latents [1, S, D] for tokens [1, T] -> [T, S], standard scores.

    lengths: (tokens, positions) that count.
    """
    decoder, (count, length) = params["decoder"], lengths
    t, s = tokens.shape[1], latents.shape[1]
    x = decoder["token_embedding"]["embedding"][tokens] + decoder["positional_embedding"][None, :t]
    within = (jnp.arange(t) < count)[:, None] & (jnp.arange(s) < length)[None]  # [T, S]

    def layer(carry: tuple[jax.Array, jax.Array], of_layer: tuple[Any, jax.Array]) -> tuple[Any, None]:
        x, total = carry
        block_params, chosen = of_layer
        block = DecoderBlock(dims, dtype)
        x, scores = block.apply({"params": block_params}, x, latents.astype(dtype), method=_block)  # [H, T, S]
        weights = jax.nn.softmax(jnp.where(within[None], scores, -jnp.inf).at[:, :, 0].max(-1e30), axis=-1)
        n = jnp.maximum(count, 1)
        mean = (weights * within).sum(1, keepdims=True) / n  # over tokens
        std = jnp.sqrt((jnp.square(weights - mean) * within).sum(1, keepdims=True) / n)
        scored = _median((weights - mean) / jnp.maximum(std, 1e-8), length)
        return (x, total + jnp.einsum("h,hts->ts", chosen.astype(jnp.float32), scored)), None

    start = (x.astype(dtype), jnp.zeros((t, s), jnp.float32))
    (_, total), _ = jax.lax.scan(layer, start, (decoder["blocks"], heads))
    return jnp.where(within, total / heads.sum(), 0.0)


def _block(block: DecoderBlock, x: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One decoder block, and the scores of its cross-attention before the softmax, [H, T, S]."""
    t, heads = x.shape[1], block.dims.n_text_head
    causal = jnp.tril(jnp.ones((t, t), bool))[None, None]
    h = block.attn_ln(x)
    x = x + block.attn(h, *block.attn.keys_values(h, None), None, causal)
    h = block.cross_attn_ln(x)
    k, v = block.cross_attn.keys_values(latents, None)
    split = lambda y: y.reshape(*y.shape[:2], heads, -1)
    q, keys = split(block.cross_attn.query(h, None)), split(k)
    scores = jnp.einsum("thd,shd->hts", q[0], keys[0], preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    x = x + block.cross_attn(h, k, v)
    return x + block.mlp2(jax.nn.gelu(block.mlp1(block.mlp_ln(x), None), approximate=False), None), scores


def _median(x: jax.Array, length: jax.Array) -> jax.Array:
    """Median over MEDIAN neighbours along the last axis, reflected at 0 and at `length`."""
    reach = MEDIAN // 2
    at = jnp.arange(x.shape[-1])[:, None] + jnp.arange(-reach, reach + 1)[None]  # [S, MEDIAN]
    last = length - 1
    at = jnp.clip(jnp.where(at > last, 2 * last - at, jnp.abs(at)), 0, x.shape[-1] - 1)
    return jnp.median(x[..., at], axis=-1)


def time_warp(cost: np.ndarray) -> np.ndarray:
    """The cheapest monotonic path through cost [T, S] from corner to corner; the first column of each row, [T].

    Steps go down, right or diagonally; both corners are on the path.
    """
    t, s = cost.shape
    total = np.full((t + 1, s + 1), np.inf)
    total[0, 0] = 0.0
    step = np.zeros((t + 1, s + 1), np.int8)
    for d in range(2, t + s + 1):  # anti-diagonals: all of one depend on the two before
        i = np.arange(max(1, d - s), min(t, d - 1) + 1)
        j = d - i
        options = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        step[i, j] = options.argmin(0)
        total[i, j] = cost[i - 1, j - 1] + options.min(0)
    first = np.zeros(t, int)
    i, j = t, s
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        i, j = [(i - 1, j - 1), (i - 1, j), (i, j - 1)][step[i, j]]
    return first


class Aligner:
    """Aligns transcripts to recordings with a bare Whisper."""

    def __init__(self, system: Recogniser) -> None:
        self.system = system
        self.heads = jnp.asarray(alignment_heads(system.model.dims, system.tokenizer.folder))

    def align(self, samples: np.ndarray, words: Sequence[str]) -> list[Word]:
        """Times of the words of up to 30 s of speech, float32 [n] at 16 kHz.

        Raises:
          ValueError: more words than the decoder has room for.
        """
        if not words:
            return []
        tokenizer, dims = self.system.tokenizer, self.system.model.dims
        prompt = list(tokenizer.sot_sequence("en", "transcribe"))
        pieces = [tokenizer.encode(f" {word}") for word in words]
        ids = [*prompt, *(i for piece in pieces for i in piece), tokenizer.eot]
        if len(ids) > dims.n_text_ctx:
            raise ValueError(f"{len(words)} words are {len(ids)} tokens, the decoder has room for {dims.n_text_ctx}.")
        padded = min(-(-len(ids) // TOKEN_STEP) * TOKEN_STEP, dims.n_text_ctx)
        tokens = np.full((1, padded), tokenizer.eot, np.int32)
        tokens[0, : len(ids)] = ids
        length = int(positions(len(samples)))
        model = self.system.model
        lengths = np.array([len(samples)])
        latents, _ = self.system.encode(self.system.log_mel(pad_or_trim(samples)[None], lengths), lengths)
        counts = (jnp.int32(len(ids)), jnp.int32(length))
        attention = _attention(dims, model.dtype, self.system.params, latents, tokens, counts, self.heads)
        # Row i attends where token i + 1 is heard: the prompt's last row hears the first token of the text.
        rows = np.asarray(attention)[len(prompt) - 1 : len(ids) - 1, :length]
        begin = time_warp(-rows) * SAMPLES_PER_POSITION / SAMPLE_RATE  # of each token, and of what follows the last
        ends = np.cumsum([len(piece) for piece in pieces])
        return [
            Word(word, float(begin[end - len(piece)]), float(begin[min(end, len(begin) - 1)]))
            for word, piece, end in zip(words, pieces, ends, strict=True)
        ]

    def windows(self, samples: np.ndarray, text: str) -> list[Window]:
        """Cuts a recording [n] of any length into windows of up to 30 s, each with its part of the transcript.

        Together they hold all samples and all words, in order.
        """
        words, at, out = text.split(), 0, []
        while True:
            rest = len(samples) - at
            sound = samples[at : at + N_SAMPLES]
            heard = self._hear(sound)
            if rest <= N_SAMPLES:
                out.append(Window(at, len(samples), " ".join(words), agreement(words, heard)))
                return out
            count = covered(words, heard, len(words) * N_SAMPLES / rest)
            fitting = self._fitting(words[:count])
            cut, taken = _cut(sound, self.align(sound, fitting))
            said = heard if taken == count else heard[: covered(heard, words[:taken], taken)]
            out.append(Window(at, at + cut, " ".join(words[:taken]), agreement(words[:taken], said)))
            at, words = at + cut, words[taken:]

    def _hear(self, sound: np.ndarray) -> list[str]:
        """What Whisper itself hears in a window."""
        options = TranscribeOptions(beam_size=1, best_of=1, temperatures=(0.0, 0.4))
        last = [*transcribe(self.system, [lambda: sound], options)][-1]
        assert last.transcript is not None, "the source raises nothing"
        return last.transcript.text.split()

    def _fitting(self, words: Sequence[str]) -> Sequence[str]:
        """The first of the words, as many as the decoder has room for."""
        room = self.system.model.dims.n_text_ctx - len(self.system.tokenizer.sot_sequence("en", "transcribe")) - 1
        lengths = np.cumsum([len(self.system.tokenizer.encode(f" {word}")) for word in words])
        return words[: int((lengths <= room).sum())]


def _plain(words: Sequence[str]) -> list[str]:
    return [_normalise(word) for word in words]


@functools.lru_cache(maxsize=20_000)
def _normalise(word: str) -> str:
    return _normaliser()(word) or word.lower()  # "seven" and "7" are one word


@functools.cache
def _normaliser() -> EnglishNormalizer:
    return EnglishNormalizer()


def agreement(words: Sequence[str], heard: Sequence[str]) -> float:
    """Share of words in common, in order: 1 - edits / the longer length."""
    return float(Levenshtein.normalized_similarity(_plain(words), _plain(heard))) if words or heard else 1.0


def covered(words: Sequence[str], heard: Sequence[str], expected: float) -> int:
    """How many of the first `words` stand behind `heard`: the prefix that is fewest edits away from it.

    Of several as near, that whose length is nearest to `expected`; that decides alone where little was understood.
    """
    limit = min(len(words), 3 * len(heard) + 30)
    reference, hypothesis = _plain(words[:limit]), _plain(heard)
    row = np.arange(limit + 1)  # edits between no word heard and each prefix
    for i, word in enumerate(hypothesis, 1):
        change = row[:-1] + np.array([word != r for r in reference], int)
        best = np.minimum(np.concatenate([[i], change]), row + 1)
        # An insertion costs one a word: the running minimum of (edits - place), place added back.
        row = np.minimum.accumulate(best - np.arange(limit + 1)) + np.arange(limit + 1)
    nearest = np.flatnonzero(row == row.min())
    count = int(nearest[np.abs(nearest - expected).argmin()])
    if row.min() > 0.7 * max(len(hypothesis), 1) or not 0.3 * expected <= count <= 3 * expected:
        count = round(expected)
    return min(max(count, 1), len(words))


def _cut(sound: np.ndarray, words: Sequence[Word]) -> tuple[int, int]:
    """(sample at which the next window begins, words before it): between two words, where it is quietest."""
    low, high = CUT_S
    boundaries = [i for i, word in enumerate(words) if i and low <= word.start <= high]
    if not boundaries:
        inside = [i for i, word in enumerate(words) if word.start <= high]
        return int(high * SAMPLE_RATE), max(inside, default=-1) + 1
    hop, length = SAMPLE_RATE // 50, round(PAUSE_S * SAMPLE_RATE)
    power = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64))])
    best = (np.inf, 0, 0)
    for i in boundaries:
        for middle in range(int((words[i].start - 0.5) * SAMPLE_RATE), int((words[i].start + 0.2) * SAMPLE_RATE), hop):
            start, stop = max(middle - length // 2, 0), min(middle + length // 2, len(sound))
            best = min(best, ((power[stop] - power[start]) / (stop - start), -middle, i))
    return -best[1], best[2]
