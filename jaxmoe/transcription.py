"""Recordings of any length -> text with times: windows of 30 s, fallback to sampling, several windows a batch.

A window starts where the last complete segment of the one before ended, so no speech is cut in two or lost. That is one
window after the other; a recording that is first cut into parts at its pauses has as many side by side. Nothing that
was decoded is dropped: suspected loops and hallucinations are flagged, since stuttered speech repeats itself; what an
adapted decoder says where Whisper itself hears no speech stands apart, as `withheld`.
Source of the window and fallback rules: transcribe() of openai/whisper, whisper/transcribe.py (20250625).
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.audio import (
    HOP_LENGTH,
    N_FRAMES,
    N_SAMPLES,
    SAMPLE_RATE,
    SAMPLES_PER_POSITION,
    pad_or_trim,
    pauses,
)
from jaxmoe.data.text import Tokenizer
from jaxmoe.model.decode import DecodingOptions, DecodingResult, decode
from jaxmoe.segments import FRAMES_PER_SECOND, Segment, Transcript, compression_ratio, repeats, split
from jaxmoe.system import Recogniser

TOKENS_PER_S = 8  # more than anybody says, timestamps included
READ_AHEAD = 4  # batches of short recordings that are read before they are needed


@dataclasses.dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe; thresholds and temperatures are openai/whisper's.

    Args:
      beam_size: at temperature 0.
      best_of: samples at temperatures above 0.
      temperatures: tried in turn until a window is neither repetitive nor unlikely.
      no_speech_threshold: probability of <|nospeech|>, by the decoder without adapters, above which text is flagged.
      withhold_threshold: the same above which an adapted decoder's text is withheld. Speech under noise or unlike
        Whisper's own reaches .8, rooms and noise alone do not fall below .89 (benchmarks/silence.py).
      condition_on_previous_text: prompts a window with the text before it. Off: in disordered speech one loop would
        otherwise breed the next.
      batch_size: windows worked on at a time, of as many recordings.
      max_tokens: longest text of a window.
      cut_at_pauses: cuts recordings of over 30 s into parts where they are quietest, which are worked on side by side.
      seed: of the samples; a window's samples depend on it and on the window's place only.
    """

    language: str = "en"
    task: str = "transcribe"
    beam_size: int = 5
    best_of: int = 5
    length_penalty: float | None = None
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float = 2.4
    logprob_threshold: float = -1.0
    no_speech_threshold: float = 0.6
    withhold_threshold: float = 0.85
    condition_on_previous_text: bool = False
    batch_size: int = 8
    max_tokens: int = 224
    cut_at_pauses: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a recording is: `done` of `total` seconds; `transcript` or `error` once it has ended."""

    index: int
    done: float
    total: float
    transcript: Transcript | None = None
    error: Exception | None = None


class _Window(NamedTuple):
    """What one window of 30 s gave."""

    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


@dataclasses.dataclass
class _Job:
    """A recording that is being transcribed."""

    index: int
    samples: np.ndarray
    parts: list["_Part"]

    @property
    def frames(self) -> int:
        return max(len(self.samples) // HOP_LENGTH, 1)


@dataclasses.dataclass
class _Part:
    """A stretch of a recording, from `seek` on yet to be transcribed, window after window. In frames."""

    job: _Job
    seek: int
    end: int
    segments: list[Segment] = dataclasses.field(default_factory=list)
    context: list[int] = dataclasses.field(default_factory=list)  # tokens that prompt the next window

    @property
    def left(self) -> int:
        return max(self.end - self.seek, 0)

    def window(self) -> np.ndarray:
        start, end = self.seek * HOP_LENGTH, self.end * HOP_LENGTH
        if self.end >= self.job.frames:
            end = len(self.job.samples)
        return self.job.samples[start : min(start + N_SAMPLES, end)]


def _begin(index: int, samples: np.ndarray, options: TranscribeOptions) -> _Job:
    job = _Job(index, samples, [])
    cuts = pauses(samples) if options.cut_at_pauses else []
    edges = [0, *(c // HOP_LENGTH for c in cuts), job.frames]
    job.parts = [_Part(job, start, end) for start, end in pairwise(edges)]
    return job


def transcribe(
    system: Recogniser, sources: Iterable[Callable[[], np.ndarray]], options: TranscribeOptions
) -> Iterator[Progress]:
    """Transcribes recordings, up to `batch_size` windows at a time, and reports after every window.

    Recordings are read ahead, so that windows of one size are worked on together; they need not end in their order.

    Args:
      sources: each gives the samples of a recording, mono at 16 kHz, when called. What it raises ends that recording
        only.
    """
    waiting = enumerate(sources)
    parts: list[_Part] = []
    while True:
        while _room(parts, options.batch_size) and (item := next(waiting, None)) is not None:
            index, read = item
            try:
                parts += _begin(index, read(), options).parts
            except (ValueError, OSError) as error:
                yield Progress(index, 0.0, 0.0, error=error)
        if not parts:
            return
        size = lambda part: system.window(len(part.window()))
        batch = [part for part in parts if size(part) == size(parts[0])][: options.batch_size]
        for part, window in zip(batch, _decode_windows(system, batch, options), strict=True):
            _advance(part, window, system, options)
            yield _progress(part.job, options.language)
        parts = [part for part in parts if part.left]


def _room(parts: list[_Part], batch_size: int) -> bool:
    """Whether another recording is read: the batch can take it, or those that wait are few and short."""
    held = sum(part.left * HOP_LENGTH for part in parts)
    return len(parts) < batch_size or (len(parts) < READ_AHEAD * batch_size and held < batch_size * N_SAMPLES)


def _progress(job: _Job, language: str) -> Progress:
    left = sum(part.left for part in job.parts)
    total = len(job.samples) / SAMPLE_RATE
    done = min((job.frames - left) / FRAMES_PER_SECOND, total)
    return Progress(job.index, done, total, None if left else _transcript(job, language))


def _transcript(job: _Job, language: str) -> Transcript:
    segments = [segment for part in job.parts for segment in part.segments]
    return Transcript(
        text="".join(s.text for s in segments).strip(),
        segments=segments,
        language=language,
        duration_s=len(job.samples) / SAMPLE_RATE,
        flags=sorted({flag for s in segments for flag in s.flags}),
    )


def _decode_windows(system: Recogniser, parts: list[_Part], options: TranscribeOptions) -> list[_Window]:
    """The next window of every part; all are of one size.

    Where padding is skipped, what comes out doubtful is heard again with it: it is mostly texts that the short cut made
    to loop.
    """
    size = system.window(len(parts[0].window()))
    if system.exact or size == N_SAMPLES:
        return _hear(system, parts, options)
    most = min(TOKENS_PER_S * size // SAMPLE_RATE + 16, options.max_tokens)
    first = dataclasses.replace(options, temperatures=options.temperatures[:1], max_tokens=most)
    windows = _hear(system, parts, first)
    doubts = (len(w.tokens) == most or _flags(w, system.tokenizer.decode(w.tokens), options) for w in windows)
    if again := [i for i, doubt in enumerate(doubts) if doubt]:
        for i, window in zip(again, _hear(system.exactly, [parts[i] for i in again], options), strict=True):
            windows[i] = window
    return windows


def _hear(system: Recogniser, parts: list[_Part], options: TranscribeOptions) -> list[_Window]:
    """Encodes and decodes the next window of every part."""
    sound = [part.window() for part in parts]
    fill = sound[:1] * ((1 << (len(parts) - 1).bit_length()) - len(parts))  # as decode pads: few programs to compile
    lengths = np.array([len(x) for x in sound + fill])
    size = system.window(int(lengths.max()))
    samples = np.stack([pad_or_trim(x, size) for x in sound + fill])
    latents, embedding = system.encode(system.log_mel(samples, lengths), lengths)
    mask = system.cross_mask(lengths, size // SAMPLES_PER_POSITION)
    windows: dict[int, _Window] = {}
    for timestamps in (True, False):
        at = [i for i, p in enumerate(parts) if timestamps == (system.short_timestamps or p.job.frames > N_FRAMES)]
        if at:
            rows = np.array(at)
            prompt, token_mask = _prompts([parts[i] for i in at], system, options, timestamps)
            inputs = _Inputs(latents[rows], embedding[rows], None if mask is None else mask[rows], prompt, token_mask)
            found = _search(system, inputs, np.array([parts[i].seek for i in at]), timestamps, options)
            windows.update(zip(at, found, strict=True))
    return [windows[i] for i in range(len(parts))]


def decode_latents(
    system: Recogniser,
    latents: np.ndarray | jax.Array,
    mask: np.ndarray | None,
    embedding: np.ndarray | jax.Array,
    options: TranscribeOptions,
) -> list[dict[str, Any]]:
    """Texts of utterances whose latents [B, S, D] are kept, with fallback, without timestamps.

    Args:
      mask: [B, S], the positions that may be attended to; None for all.
      embedding: [B, D], what the gate reads.

    Returns:
      {"hypothesis", "avg_logprob", "compression_ratio", "flags"} of each, and "withheld" where it is (segments.py).
    """
    start = system.tokenizer.sot_sequence(options.language, options.task)
    prompt = np.tile(np.array(start, np.int32), (len(latents), 1))
    inputs = _Inputs(jnp.asarray(latents), embedding, mask, prompt, np.ones(prompt.shape, bool))
    windows = _search(system, inputs, np.zeros(len(latents), int), False, options)
    texts = [system.tokenizer.decode(w.tokens) for w in windows]
    rows = [
        {
            "hypothesis": text.strip(),
            "avg_logprob": window.avg_logprob,
            "compression_ratio": window.compression_ratio,
            "flags": _flags(window, text, options),
        }
        for window, text in zip(windows, texts, strict=True)
    ]
    return [
        row | {"hypothesis": "", "withheld": row["hypothesis"]} if _is_withheld(system, window, options) else row
        for row, window in zip(rows, windows, strict=True)
    ]


class _Inputs(NamedTuple):
    """What a search reads of a batch."""

    latents: jax.Array  # [B, S, D]
    embedding: np.ndarray | jax.Array  # [B, D]
    cross_mask: np.ndarray | None  # [B, S]
    prompt: np.ndarray  # [B, P]
    token_mask: np.ndarray  # [B, P]


def _search(
    system: Recogniser, inputs: _Inputs, seeks: np.ndarray, timestamps: bool, options: TranscribeOptions
) -> list[_Window]:
    """Decodes at the first temperature, then what has failed at the next, and so on."""
    columns, scales = system.adapt(inputs.embedding)
    found: list[list[_Window]] = [[] for _ in seeks]
    todo = np.arange(len(seeks))
    for attempt, temperature in enumerate(options.temperatures):
        take = lambda x: None if x is None else x[todo]  # noqa: B023  used in this turn only
        result = decode(
            system.model,
            system.params,
            inputs.latents[todo],
            prompt=inputs.prompt[todo],
            token_mask=inputs.token_mask[todo],
            tokenizer=system.tokenizer,
            options=DecodingOptions(
                beam_size=options.beam_size,
                best_of=options.best_of,
                temperature=temperature,
                max_tokens=options.max_tokens,
                timestamps=timestamps,
                length_penalty=options.length_penalty,
            ),
            columns=columns,
            scales=take(scales),
            cross_mask=take(inputs.cross_mask),
            key=_keys(options, seeks[todo], attempt) if temperature > 0 else None,
        )
        for k, i in enumerate(todo):
            found[i].append(_window(result, k, temperature, system.tokenizer))
        todo = np.array([i for i in todo if _needs_fallback(found[i][-1], options)], int)
        if not len(todo):
            break
    return [_best(windows, options) for windows in found]


def _keys(options: TranscribeOptions, seeks: np.ndarray, attempt: int) -> jax.Array:
    """A key for each window, by its place and the attempt."""
    key = jax.random.key(options.seed)
    return jnp.stack([jax.random.fold_in(key, int(s) * len(options.temperatures) + attempt) for s in seeks])


def _prompts(
    parts: list[_Part], system: Recogniser, options: TranscribeOptions, timestamps: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Start tokens [B, P], padded on the left, and where they are no padding."""
    tokenizer = system.tokenizer
    start = tokenizer.sot_sequence(options.language, options.task, timestamps=timestamps)
    prompts = [list(start) for _ in parts]
    length = len(start)
    if options.condition_on_previous_text and timestamps:
        keep = system.model.dims.n_text_ctx // 2 - 1
        length += keep + 1  # the same for all windows, so that one program serves
        prompts = [[tokenizer.sot_prev, *p.context[-keep:], *start] if p.context else list(start) for p in parts]
    ids = np.array([[tokenizer.eot] * (length - len(p)) + p for p in prompts], np.int32)
    return ids, np.array([[False] * (length - len(p)) + [True] * len(p) for p in prompts])


def _window(result: DecodingResult, row: int, temperature: float, tokenizer: Tokenizer) -> _Window:
    return _Window(
        result.tokens[row],
        temperature,
        float(result.avg_logprob[row]),
        compression_ratio(tokenizer.decode(result.tokens[row]).strip()),
        float(result.no_speech_prob[row]),
    )


def _needs_fallback(window: _Window, options: TranscribeOptions) -> bool:
    unlikely = window.avg_logprob < options.logprob_threshold
    if unlikely and window.no_speech_prob > options.no_speech_threshold:
        return False  # silence: another guess would be no better
    return unlikely or window.compression_ratio > options.compression_ratio_threshold


def _best(windows: list[_Window], options: TranscribeOptions) -> _Window:
    """The last one, which passed; or if none did, the likeliest of those that do not repeat themselves.

    Source: generate_with_fallback of faster-whisper; openai/whisper takes the last and hottest.
    """
    if not _needs_fallback(windows[-1], options):
        return windows[-1]
    calm = [w for w in windows if w.compression_ratio <= options.compression_ratio_threshold]
    return max(calm or windows, key=lambda w: w.avg_logprob)


def _flags(window: _Window, text: str, options: TranscribeOptions) -> list[str]:
    doubts = {
        "repetition": window.compression_ratio > options.compression_ratio_threshold or repeats(text),
        "low_confidence": window.avg_logprob < options.logprob_threshold,
        "no_speech": window.no_speech_prob > options.no_speech_threshold,
    }
    return [flag for flag, holds in doubts.items() if holds]


def _is_withheld(system: Recogniser, window: _Window, options: TranscribeOptions) -> bool:
    """Whether a window's text is invented: by adapters, where the decoder without them hears no speech.

    openai/whisper asks besides that the text be unlikely; adapters are as sure of what they invent as of what is said.
    """
    return system.invents_on_silence and window.no_speech_prob > options.withhold_threshold


def _advance(part: _Part, window: _Window, system: Recogniser, options: TranscribeOptions) -> None:
    """Adds a window's segments to its part and moves the part on."""
    tokenizer, withheld = system.tokenizer, _is_withheld(system, window, options)
    content = min(N_FRAMES, part.left)
    pieces, step = split(window.tokens, tokenizer, content)
    if withheld:  # times of what is not said mean nothing
        pieces, step = [(0.0, content / FRAMES_PER_SECOND, window.tokens)], content
    flags = _flags(window, tokenizer.decode(window.tokens), options)
    offset = part.seek / FRAMES_PER_SECOND
    for start, end, tokens in pieces:
        text = tokenizer.decode(tokens)
        if not text.strip():
            continue
        part.segments.append(
            Segment(
                start=round(offset + start, 2),
                end=round(offset + end, 2),
                text="" if withheld else text,
                tokens=tokens,
                seek=part.seek,
                temperature=window.temperature,
                avg_logprob=window.avg_logprob,
                compression_ratio=window.compression_ratio,
                no_speech_prob=window.no_speech_prob,
                flags=flags,
                withheld=text.strip() if withheld else "",
            )
        )
        part.context += [] if withheld else tokens
    if window.temperature > 0.5:  # a text drawn that hot would mislead the next window
        part.context.clear()
    part.seek += step
