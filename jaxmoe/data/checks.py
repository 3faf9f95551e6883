"""Checks of a recording before it enters a corpus: what cannot be learnt from is set aside, with the reason."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmoe.data import corpora
from jaxmoe.data.corpora import Recording

SAMPLE_RATE_HZ = 16000
SPARE_CHARS = 15  # beyond max_chars_per_second: room for a clip cut close and for a single long word


@dataclass(frozen=True)
class Limits:
    """config.quality: what a recording may be."""

    min_seconds: float
    max_seconds: float
    max_clipped: float  # share of samples at full scale
    silence_dbfs: float  # a peak below it is the floor of a microphone, not speech
    max_chars_per_second: float  # of the transcript
    min_rate_hz: int  # of the file: half of it is the highest frequency it holds
    trim_silence_db: float  # edges this far below the peak are cut off; 0 keeps them


@dataclass(frozen=True)
class Rejection:
    """Why a recording is set aside: a reason to count by, and the particulars."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Header:
    """What a file says of itself without being decoded; None where it does not say."""

    seconds: float | None = None
    rate_hz: int | None = None


def read_checked(corpus: str, recording: Recording, limits: Limits) -> np.ndarray | Rejection:
    """The samples of a recording, int16 [n] at 16 kHz, or why it is set aside."""
    if not recording.text.strip():
        return Rejection("no text", "the transcript is empty")
    try:
        # Three hours of silence take 0.7 GB once decoded; the header tells beforehand.
        if (refused := check_header(recording.path, limits)) is not None:
            return refused
        samples = corpora.read(corpus, recording)
    except Exception as error:
        wrong_rate = "the rate changes" in str(error)
        return Rejection("wrong rate" if wrong_rate else "unreadable", f"{type(error).__name__}: {error}")
    if (refused := check(samples, recording.text, limits)) is not None:
        return refused
    if limits.trim_silence_db:
        samples = trim_silence(samples, limits.trim_silence_db)
    return to_int16(samples)


def check_header(path: str, limits: Limits) -> Rejection | None:
    """Why the file need not be decoded; None if it must be, to know more."""
    header = read_header(Path(path))
    if header.seconds is not None and header.seconds > limits.max_seconds:
        return _too_long(header.seconds, limits)
    if header.rate_hz is not None and header.rate_hz < limits.min_rate_hz:
        return Rejection("wrong rate", f"{header.rate_hz} Hz, at least {limits.min_rate_hz} Hz expected")
    return None


def check(samples: np.ndarray, text: str, limits: Limits) -> Rejection | None:
    """Why these samples, float [n] at 16 kHz, cannot be used with that transcript; None if they can."""
    seconds = len(samples) / SAMPLE_RATE_HZ
    if not len(samples):
        return Rejection("empty", "no samples")
    finite = np.isfinite(samples)
    if not finite.all():
        return Rejection("not finite", f"{np.count_nonzero(~finite)} samples are NaN or infinite")
    if seconds > limits.max_seconds:
        return _too_long(seconds, limits)
    level = np.abs(samples)
    peak_db = 20 * np.log10(max(float(level.max()), 1e-10))
    if peak_db < limits.silence_dbfs:
        return Rejection("silent", f"peak {peak_db:.0f} dBFS over {seconds:.1f} s")
    if seconds < limits.min_seconds:
        return Rejection("too short", f"{seconds:.2f} s, at least {limits.min_seconds:g} s expected")
    if len(text) > limits.max_chars_per_second * seconds + SPARE_CHARS:
        return Rejection(
            "text too long for the audio", f"{len(text)} characters in {seconds:.2f} s: cut off, or not its text"
        )
    clipped = float(np.mean(level >= 0.999))
    if clipped > limits.max_clipped:
        return Rejection(
            "clipped", f"{clipped:.1%} of the samples at full scale, at most {limits.max_clipped:.1%} expected"
        )
    return None


def trim_silence(samples: np.ndarray, below_db: float) -> np.ndarray:
    """Without the edges that stay `below_db` under the loudest 10 ms; 100 ms are left around what is said."""
    hop = SAMPLE_RATE_HZ // 100
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    if not len(frames):
        return samples
    power = np.mean(frames.astype(np.float64) ** 2, axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-below_db / 10))
    if not len(loud):
        return samples
    margin = 10  # frames
    return samples[max(loud[0] - margin, 0) * hop : (loud[-1] + 1 + margin) * hop]


def to_int16(samples: np.ndarray) -> np.ndarray:
    """16-bit samples; what came from 16 bits comes back exactly."""
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def read_header(path: Path) -> Header:
    """Length and rate that a sound file states, without decoding."""
    import soundfile

    if path.suffix in (".arrow", ".parquet"):
        return Header()
    try:
        info = soundfile.info(str(path))
        return Header(float(info.duration), int(info.samplerate))
    except (soundfile.LibsndfileError, OSError, TypeError):  # TypeError: *.raw has no header
        pass
    import av  # for the formats libsndfile lacks, such as m4a

    try:
        with av.open(str(path)) as container:
            seconds = None if container.duration is None else container.duration / 1e6  # microseconds
            rate = getattr(container.streams.audio[0], "rate", None) if container.streams.audio else None
            return Header(seconds, rate)
    except (av.FFmpegError, OSError, ValueError):
        return Header()  # nothing to speak of: reading will say what is wrong


def _too_long(seconds: float, limits: Limits) -> Rejection:
    return Rejection("too long", f"{seconds:.0f} s, at most {limits.max_seconds:g} s expected")
