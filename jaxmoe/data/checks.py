"""Checks of a recording before it enters a corpus: what cannot be learnt from is set aside, with the reason."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmoe.data.corpora import Recording

SAMPLE_RATE_HZ = 16000
SILENCE = 1e-3  # a peak below -60 dBFS: the floor of a microphone, not speech
# Fast speech has 25 characters a second; the rest leaves room for a clip cut close and for a single long word.
MAX_CHARS_PER_SECOND, SPARE_CHARS = 30, 15


@dataclass(frozen=True)
class Limits:
    """What a recording may be: seconds, and the share of its samples that may be clipped."""

    min_seconds: float
    max_seconds: float
    max_clipped: float


@dataclass(frozen=True)
class Rejection:
    """Why a recording is set aside: a reason to count by, and the particulars."""

    reason: str
    detail: str


def read_checked(recording: Recording, limits: Limits) -> np.ndarray | Rejection:
    """The samples of a recording, int16 [n] at 16 kHz, or why it is set aside."""
    if not recording.text.strip():
        return Rejection("no text", "the transcript is empty")
    if recording.path:
        # Three hours of silence take 0.7 GB once decoded; the header tells beforehand.
        seconds = header_seconds(Path(recording.path))
        if seconds is not None and seconds > limits.max_seconds:
            return _too_long(seconds, limits)
    try:
        samples = recording.read()
    except Exception as error:
        return Rejection("unreadable", f"{type(error).__name__}: {error}")
    return check(samples, recording.text, limits) or to_int16(samples)


def check(samples: np.ndarray, text: str, limits: Limits) -> Rejection | None:
    """Why these samples, float [n] at 16 kHz, cannot be used with that transcript; None if they can."""
    seconds = len(samples) / SAMPLE_RATE_HZ
    if not len(samples):
        return Rejection("empty", "no samples")
    if not np.isfinite(samples).all():
        return Rejection("not finite", f"{np.count_nonzero(~np.isfinite(samples))} samples are NaN or infinite")
    peak = float(np.abs(samples).max())
    if seconds > limits.max_seconds:
        return _too_long(seconds, limits)
    if peak < SILENCE:
        return Rejection("silent", f"peak {peak:.1e} of full scale over {seconds:.1f} s")
    if seconds < limits.min_seconds:
        return Rejection("too short", f"{seconds:.2f} s, at least {limits.min_seconds:g} s expected")
    if len(text) > MAX_CHARS_PER_SECOND * seconds + SPARE_CHARS:
        return Rejection(
            "text too long for the audio", f"{len(text)} characters in {seconds:.2f} s: cut off, or not its text"
        )
    clipped = float(np.mean(np.abs(samples) >= 0.999))
    if clipped > limits.max_clipped:
        return Rejection(
            "clipped", f"{clipped:.1%} of the samples at full scale, at most {limits.max_clipped:.1%} expected"
        )
    return None


def to_int16(samples: np.ndarray) -> np.ndarray:
    """16-bit samples; what came from 16 bits comes back exactly."""
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def header_seconds(path: Path) -> float | None:
    """Length that the file's header states, without decoding; None where it does not say."""
    import soundfile

    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, OSError):
        pass
    import av  # for the formats libsndfile lacks, such as m4a

    try:
        with av.open(str(path)) as container:
            return None if container.duration is None else container.duration / 1e6  # microseconds
    except (av.FFmpegError, OSError):
        return None  # no header to speak of: reading will say what is wrong


def _too_long(seconds: float, limits: Limits) -> Rejection:
    return Rejection("too long", f"{seconds:.0f} s, at most {limits.max_seconds:g} s expected")
