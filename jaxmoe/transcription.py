"""Recordings of any length -> text with times: windows of 30 s, several a batch, each searched as in windows.py.

A window starts where the last complete segment of the one before ended, so no speech is cut in two or lost. That is one
window after the other; a recording that is first cut into parts at its pauses has as many side by side.
Source of the rules: transcribe() of openai/whisper, whisper/transcribe.py (20250625).
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
from itertools import pairwise

import numpy as np

from jaxmoe.data.audio import (
    CUT_S,
    HOP_LENGTH,
    N_FRAMES,
    N_SAMPLES,
    SAMPLE_RATE,
    SAMPLES_PER_POSITION,
    pad_or_trim,
    pauses,
)
from jaxmoe.segments import FRAMES_PER_SECOND, Segment, Transcript, split
from jaxmoe.system import Recogniser
from jaxmoe.windows import Inputs, TranscribeOptions, Window, doubts, is_withheld, search

TOKENS_PER_S = 8  # more than anybody says, timestamps included
READ_AHEAD = 4  # batches of short recordings that are read before they are needed


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a recording is: `done` of `total` seconds; `transcript` or `error` once it has ended."""

    index: int
    done: float
    total: float
    transcript: Transcript | None = None
    error: Exception | None = None


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
    gates: list[tuple[int, np.ndarray]] = dataclasses.field(default_factory=list)  # frames of each window, and [E]

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
    cuts = pauses(samples, _part_s(len(samples) / SAMPLE_RATE, options)) if options.cut_at_pauses else []
    edges = [0, *(c // HOP_LENGTH for c in cuts), job.frames]
    job.parts = [_Part(job, start, end) for start, end in pairwise(edges)]
    return job


def _part_s(duration_s: float, options: TranscribeOptions) -> tuple[float, float]:
    """How long a part of a recording may be at least and at most.

    With timestamps as many parts as are worked on at a time: a window that its text does not fill is followed by one
    from there, and the last of a part has nothing to follow it. Without them a part is a window.
    """
    middle = duration_s / options.batch_size
    slack = (CUT_S[1] - CUT_S[0]) / 2
    return CUT_S if options.without_timestamps or middle < CUT_S[1] else (middle - slack, middle + slack)


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
        gates=_mean([entry for part in job.parts for entry in part.gates]),
    )


def _mean(gates: list[tuple[int, np.ndarray]]) -> list[float] | None:
    """The mean of gates [E], each weighed by its frames."""
    if not gates:
        return None
    frames, values = zip(*gates, strict=True)
    return np.average(np.stack(values), axis=0, weights=np.maximum(frames, 1)).tolist()


def _decode_windows(system: Recogniser, parts: list[_Part], options: TranscribeOptions) -> list[Window]:
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
    doubtful = (len(w.tokens) == most or doubts(w, system.tokenizer.decode(w.tokens), options) for w in windows)
    if again := [i for i, doubt in enumerate(doubtful) if doubt]:
        for i, window in zip(again, _hear(system.exactly, [parts[i] for i in again], options), strict=True):
            windows[i] = window
    return windows


def _hear(system: Recogniser, parts: list[_Part], options: TranscribeOptions) -> list[Window]:
    """Encodes and decodes the next window of every part."""
    sound = [part.window() for part in parts]
    fill = sound[:1] * ((1 << (len(parts) - 1).bit_length()) - len(parts))  # as decode pads: few programs to compile
    lengths = np.array([len(x) for x in sound + fill])
    size = system.window(int(lengths.max()))
    samples = np.stack([pad_or_trim(x, size) for x in sound + fill])
    latents, embedding = system.encode(system.log_mel(samples, lengths), lengths)
    mask = system.cross_mask(lengths, size // SAMPLES_PER_POSITION)
    windows: dict[int, Window] = {}
    timed = [system.short_timestamps or part.job.frames > N_FRAMES for part in parts]
    for timestamps in (True, False):
        at = [i for i, wanted in enumerate(timed) if timestamps == (wanted and not options.without_timestamps)]
        if at:
            rows = slice(None) if at == list(range(len(latents))) else np.array(at)  # all of them: no copy
            prompt, token_mask = _prompts([parts[i] for i in at], system, options, timestamps)
            inputs = Inputs(latents[rows], embedding[rows], None if mask is None else mask[rows], prompt, token_mask)
            found = search(system, inputs, np.array([parts[i].seek for i in at]), timestamps, options)
            windows.update(zip(at, found, strict=True))
    gates = system.gates(embedding)
    return [windows[i]._replace(gates=None if gates is None else gates[i]) for i in range(len(parts))]


def _prompts(
    parts: list[_Part], system: Recogniser, options: TranscribeOptions, timestamps: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Start tokens [B, P], padded on the left, and where they are no padding."""
    tokenizer = system.tokenizer
    start = tokenizer.sot_sequence(options.language, options.task, timestamps=timestamps)
    prompts = [list(start) for _ in parts]
    length = len(start)
    if options.condition_on_previous_text and (timestamps or options.without_timestamps):
        keep = system.model.dims.n_text_ctx // 2 - 1
        length += keep + 1  # the same for all windows, so that one program serves
        prompts = [[tokenizer.sot_prev, *p.context[-keep:], *start] if p.context else list(start) for p in parts]
    ids = np.array([[tokenizer.eot] * (length - len(p)) + p for p in prompts], np.int32)
    return ids, np.array([[False] * (length - len(p)) + [True] * len(p) for p in prompts])


def _advance(part: _Part, window: Window, system: Recogniser, options: TranscribeOptions) -> None:
    """Adds a window's segments to its part and moves the part on."""
    tokenizer, withheld = system.tokenizer, is_withheld(system, window, options)
    content = min(N_FRAMES, part.left)
    pieces, step = split(window.tokens, tokenizer, content)
    if withheld:  # times of what is not said mean nothing
        pieces, step = [(0.0, content / FRAMES_PER_SECOND, window.tokens)], content
    flags = doubts(window, tokenizer.decode(window.tokens), options)
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
    if window.gates is not None:
        part.gates.append((step, window.gates))
    part.seek += step
