"""Recordings of any length -> text with times: windows of 30 s, fallback to sampling, several recordings a batch.

A window starts where the last complete segment of the one before ended, so no speech is cut in two or lost. Nothing
that was decoded is dropped: suspected loops and hallucinations are flagged, since stuttered speech repeats itself.
Source of the window and fallback rules: transcribe() of openai/whisper, whisper/transcribe.py (20250625).
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import re
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np

from jaxmoe.data.audio import HOP_LENGTH, N_FRAMES, N_SAMPLES, SAMPLE_RATE, pad_or_trim
from jaxmoe.data.text import SECONDS_PER_TIMESTAMP, Tokenizer
from jaxmoe.model.decode import DecodingOptions, DecodingResult, decode
from jaxmoe.system import System

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH  # 100
FRAMES_PER_TIMESTAMP = round(SECONDS_PER_TIMESTAMP * FRAMES_PER_SECOND)  # 2
SHORTEST_STEP = FRAMES_PER_SECOND  # a window that would move by less moves past its whole content


@dataclasses.dataclass(frozen=True)
class TranscribeOptions:
    """How to transcribe; thresholds and temperatures are openai/whisper's.

    Args:
      beam_size: at temperature 0.
      best_of: samples at temperatures above 0.
      temperatures: tried in turn until a window is neither repetitive nor unlikely.
      condition_on_previous_text: prompts a window with the text before it. Off: in disordered speech one loop would
        otherwise breed the next.
      batch_size: recordings worked on at a time.
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
    condition_on_previous_text: bool = False
    batch_size: int = 8
    seed: int = 0


@dataclasses.dataclass
class Segment:
    """A stretch of speech; times in seconds from the start of the recording.

    Args:
      flags: doubts about it: "repetition", "low_confidence", "no_speech".
    """

    start: float
    end: float
    text: str
    tokens: list[int]
    seek: int  # where its window starts, in frames of 10 ms
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    flags: list[str]


@dataclasses.dataclass
class Transcript:
    """All of a recording; `flags` are those of any of its segments."""

    text: str
    segments: list[Segment]
    language: str
    duration_s: float
    flags: list[str]


class Progress(NamedTuple):
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
    seek: int = 0  # frames
    segments: list[Segment] = dataclasses.field(default_factory=list)
    context: list[int] = dataclasses.field(default_factory=list)  # tokens that prompt the next window

    @property
    def frames(self) -> int:
        return max(len(self.samples) // HOP_LENGTH, 1)

    def window(self) -> np.ndarray:
        start = self.seek * HOP_LENGTH
        return self.samples[start : start + N_SAMPLES]


def transcribe(
    system: System, sources: Iterable[Callable[[], np.ndarray]], options: TranscribeOptions
) -> Iterator[Progress]:
    """Transcribes recordings, up to `batch_size` at a time, and reports after every window.

    Args:
      sources: each gives the samples of a recording, mono at 16 kHz, when called. What it raises ends that recording
        only.
    """
    waiting = enumerate(sources)
    active: list[_Job] = []
    while True:
        while len(active) < options.batch_size and (item := next(waiting, None)) is not None:
            index, read = item
            try:
                active.append(_Job(index, read()))
            except (ValueError, OSError) as error:
                yield Progress(index, 0.0, 0.0, error=error)
        if not active:
            return
        for job, window in zip(active, _decode_windows(system, active, options), strict=True):
            _advance(job, window, system.tokenizer, options)
            total = len(job.samples) / SAMPLE_RATE
            ended = job.seek >= job.frames
            yield Progress(
                job.index,
                min(job.seek / FRAMES_PER_SECOND, total),
                total,
                _transcript(job, options.language) if ended else None,
            )
        active = [job for job in active if job.seek < job.frames]


def _transcript(job: _Job, language: str) -> Transcript:
    return Transcript(
        text="".join(s.text for s in job.segments).strip(),
        segments=job.segments,
        language=language,
        duration_s=len(job.samples) / SAMPLE_RATE,
        flags=sorted({flag for s in job.segments for flag in s.flags}),
    )


def _decode_windows(system: System, jobs: list[_Job], options: TranscribeOptions) -> list[_Window]:
    """The next window of every job, with fallback."""
    sound = [job.window() for job in jobs]
    rows = 1 << (len(jobs) - 1).bit_length()  # as decode pads: few programs to compile
    samples = np.stack([pad_or_trim(x) for x in sound + sound[:1] * (rows - len(jobs))])
    lengths = np.array([len(x) for x in sound + sound[:1] * (rows - len(jobs))])
    latents, embedding = system.encode(system.log_mel(samples), lengths)
    columns, scales = system.adapt(embedding)
    prompt, mask = _prompts(jobs, system, options)

    found: list[list[_Window]] = [[] for _ in jobs]
    todo = list(range(len(jobs)))
    for attempt, temperature in enumerate(options.temperatures):
        at = np.array(todo)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(options.seed),
            np.array([jobs[i].seek * len(options.temperatures) + attempt for i in todo]),
        )
        result = decode(
            system.model,
            system.params,
            latents[at],
            prompt=prompt[at],
            token_mask=mask[at],
            tokenizer=system.tokenizer,
            options=DecodingOptions(
                beam_size=options.beam_size,
                best_of=options.best_of,
                temperature=temperature,
                timestamps=True,
                length_penalty=options.length_penalty,
            ),
            columns=columns,
            scales=None if scales is None else scales[at],
            key=keys,
        )
        for k, i in enumerate(todo):
            found[i].append(_window(result, k, temperature, system.tokenizer))
        todo = [i for i in todo if _needs_fallback(found[i][-1], options)]
        if not todo:
            break
    return [_best(windows, options) for windows in found]


def _prompts(
    jobs: list[_Job], system: System, options: TranscribeOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Start tokens [B, P], padded on the left, and where they are no padding."""
    tokenizer = system.tokenizer
    start = tokenizer.sot_sequence(options.language, options.task, timestamps=True)
    prompts = [list(start) for _ in jobs]
    length = len(start)
    if options.condition_on_previous_text:
        keep = system.model.dims.n_text_ctx // 2 - 1
        length += keep + 1  # the same for all windows, so that one program serves
        prompts = [[tokenizer.sot_prev, *job.context[-keep:], *start] if job.context else list(start) for job in jobs]
    ids = np.array([[tokenizer.eot] * (length - len(p)) + p for p in prompts], np.int32)
    return ids, np.array([[False] * (length - len(p)) + [True] * len(p) for p in prompts])


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of it compressed by zlib; above 2.4 it repeats itself (openai/whisper)."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


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


def repeats(text: str, times: int = 4, words: int = 8) -> bool:
    """Whether a phrase of up to 10 words stands `times` times in a row and fills at least `words` words."""
    said = re.findall(r"\w+", text.lower())
    for n in range(1, 11):
        run = n
        for i in range(n, len(said)):
            run = run + 1 if said[i] == said[i - n] else n
            if run >= max(times * n, words):
                return True
    return False


def _flags(window: _Window, text: str, options: TranscribeOptions) -> list[str]:
    doubts = {
        "repetition": window.compression_ratio > options.compression_ratio_threshold or repeats(text),
        "low_confidence": window.avg_logprob < options.logprob_threshold,
        "no_speech": window.no_speech_prob > options.no_speech_threshold,
    }
    return [flag for flag, holds in doubts.items() if holds]


def _advance(job: _Job, window: _Window, tokenizer: Tokenizer, options: TranscribeOptions) -> None:
    """Adds a window's segments to its job and moves the job on."""
    content = min(N_FRAMES, job.frames - job.seek)
    pieces, step = split(window.tokens, tokenizer, content)
    flags = _flags(window, tokenizer.decode(window.tokens), options)
    offset = job.seek / FRAMES_PER_SECOND
    for start, end, tokens in pieces:
        text = tokenizer.decode(tokens)
        if not text.strip():
            continue
        job.segments.append(
            Segment(
                start=round(offset + start, 2),
                end=round(offset + end, 2),
                text=text,
                tokens=tokens,
                seek=job.seek,
                temperature=window.temperature,
                avg_logprob=window.avg_logprob,
                compression_ratio=window.compression_ratio,
                no_speech_prob=window.no_speech_prob,
                flags=flags,
            )
        )
        job.context += tokens
    if window.temperature > 0.5:  # a text drawn that hot would mislead the next window
        job.context.clear()
    job.seek += step


def split(
    tokens: list[int], tokenizer: Tokenizer, content: int
) -> tuple[list[tuple[float, float, list[int]]], int]:
    """Cuts a window's tokens at pairs of timestamps.

    Args:
      content: frames of the window that hold sound.

    Returns:
      (start_s, end_s, tokens) of each segment, times from the window's start and within its content; and the frames to
      move on by: to the last pair, whose later half begins an unfinished segment; by all of the content where the text
      ends with one timestamp (no speech follows) or has no pair at all.
    """
    begin = tokenizer.timestamp_begin
    stamp = [t >= begin for t in tokens]
    cuts = [i for i in range(1, len(tokens)) if stamp[i - 1] and stamp[i]]
    seconds = lambda t: min((t - begin) * SECONDS_PER_TIMESTAMP, content / FRAMES_PER_SECOND)  # noqa: E731
    pieces: list[tuple[float, float, list[int]]] = []
    step = content
    ends_closed = stamp[-2:] == [False, True]
    if cuts and not ends_closed:
        to = (tokens[cuts[-1] - 1] - begin) * FRAMES_PER_TIMESTAMP
        if SHORTEST_STEP <= to < content:
            step = to
    for first, last in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        piece = tokens[first:last]
        if step < content and last == len(tokens):
            break  # unfinished: the next window starts with it
        if piece:
            start = seconds(piece[0]) if piece[0] >= begin else 0.0
            end = seconds(piece[-1]) if piece[-1] > begin and len(piece) > 1 else content / FRAMES_PER_SECOND
            pieces.append((start, max(start, end), piece))
    return pieces, step


def segment_dict(segment: Segment, number: int) -> dict[str, Any]:
    """A segment as JSON, with openai/whisper's names."""
    return {"id": number, **dataclasses.asdict(segment)}
