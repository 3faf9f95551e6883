"""Noise for tests of robustness: white, pink, babble and reverberation at a given distance below the speech."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import signal

from jaxmoe.data.channels import active_rms, coloured_noise, room_response

NOISES = ("white", "pink", "babble", "reverberation")
DECAY_S = 0.6  # of the reverberation, by 60 dB: a living room without carpets
TALKERS = 6  # of babble: single words can no longer be made out


def add(
    speech: np.ndarray,
    noise: str,
    snr_db: float,
    rng: np.random.Generator,
    talkers: Sequence[Callable[[], np.ndarray]] = (),
) -> np.ndarray:
    """Speech [n] under a noise of NOISES; float32 [n], scaled down as a whole where it would clip.

    snr_db: level of the speech (its active frames) over that of the noise; of "reverberation", the energy of the direct
    path over that of the tail (direct-to-reverberant ratio).
    talkers: give the other people's speech of "babble"; the first TALKERS are taken, each repeated to the length.
    Raises: ValueError for an unknown noise, or babble without talkers.
    """
    if noise not in NOISES:
        raise ValueError(f"noise {noise!r} is unknown; expected one of {', '.join(NOISES)}.")
    if noise == "reverberation":
        room = room_response(rng, decay_s=DECAY_S, direct_to_reverberant_db=snr_db)
        mixed = signal.fftconvolve(speech, room)[: len(speech)]
    else:
        sound = _babble(len(speech), rng, talkers) if noise == "babble" else _coloured(len(speech), noise, rng)
        mixed = speech + sound * active_rms(speech) * 10 ** (-snr_db / 20)
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def _coloured(length: int, noise: str, rng: np.random.Generator) -> np.ndarray:
    return coloured_noise(length, {"white": 0.0, "pink": 1.0}[noise], rng)


def _babble(length: int, rng: np.random.Generator, talkers: Sequence[Callable[[], np.ndarray]]) -> np.ndarray:
    """The sum of several talkers at equal levels, each from a place of its own, unit RMS over its active frames."""
    if not talkers:
        raise ValueError("babble needs other talkers; there is only one recording.")
    total = np.zeros(length)
    for talker in talkers[:TALKERS]:
        voice = talker()
        voice = np.roll(voice / max(active_rms(voice), 1e-9), int(rng.integers(len(voice))))
        total += np.resize(voice, length)
    return total / max(active_rms(total), 1e-9)


def level_dbfs(samples: np.ndarray) -> float:
    """Level of the active frames in dB relative to full scale; -180 for silence."""
    return float(20 * np.log10(max(active_rms(samples), 1e-9)))


def snr_db(samples: np.ndarray) -> float:
    """Level of the active 20 ms frames over that of the quietest tenth: an estimate, high where pauses are dead."""
    frames = np.pad(samples, (0, -len(samples) % 320)).reshape(-1, 320)
    quiet = float(np.quantile(np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1)), 0.1))
    return float(20 * np.log10(max(active_rms(samples), 1e-9) / max(quiet, 1e-6)))
