"""Simulated recording channels: what a microphone, a room and their noise do to speech.

A channel is drawn from its number alone, so every speaker recorded through channel 3 shares its equaliser, its room and
its noise. Nothing of it depends on the speaker or on how the speaker talks: the noise stands at a fixed distance
below the speech and the level is set last, so that neither tells a disorder apart.
"""

from dataclasses import dataclass

import numpy as np
from scipy import signal

SAMPLE_RATE_HZ = 16000
NUM_CHANNELS = 8
FRAME = 320  # samples, 20 ms


@dataclass(frozen=True)
class Channel:
    """One microphone in one room.

    Attributes:
      equaliser: linear-phase FIR filter, [taps].
      room: impulse response from the speaker to the microphone, unit energy, [taps].
      noise_tilt: slope of the noise's power spectrum, power ~ 1 / frequency ** tilt (0 white, 1 pink, 2 brown).
      snr_db: level of the speech over that of the noise.
    """

    equaliser: np.ndarray
    room: np.ndarray
    noise_tilt: float
    snr_db: float

    def record(self, speech: np.ndarray, level_dbfs: float, rng: np.random.Generator) -> np.ndarray:
        """`speech` [n] heard through the channel, its active level at `level_dbfs`; float32 [n]."""
        heard = signal.fftconvolve(speech, self.room)[: len(speech)]
        heard = signal.fftconvolve(heard, self.equaliser, mode="same")
        heard = heard / max(active_rms(heard), 1e-9)
        noise = coloured_noise(len(heard), self.noise_tilt, rng)
        heard = heard + noise * 10 ** (-self.snr_db / 20)
        return np.clip(heard * 10 ** (level_dbfs / 20), -1, 1).astype(np.float32)


def make_channel(number: int, seed: int = 0) -> Channel:
    """The channel of that number; the same number and seed give the same channel."""
    rng = np.random.default_rng([seed, number, 0xC4A])
    # Gains at five frequencies: the ends vary most, as between telephones, laptops and headsets.
    hz = np.array([0, 150, 500, 1500, 4000, 7000, 8000])
    gains_db = rng.normal(0, [5, 5, 2, 0, 3, 4, 4])
    gains_db[0], gains_db[-1] = gains_db[1], gains_db[-2]
    equaliser = signal.firwin2(257, hz / (SAMPLE_RATE_HZ / 2), 10 ** (gains_db / 20))
    return Channel(
        equaliser=equaliser,
        room=room_response(rng, decay_s=rng.uniform(0.1, 0.35), direct_to_reverberant_db=rng.uniform(8, 20)),
        noise_tilt=rng.uniform(0, 2),
        snr_db=rng.uniform(26, 46),
    )


def room_response(rng: np.random.Generator, decay_s: float, direct_to_reverberant_db: float) -> np.ndarray:
    """A direct path and a tail of noise that falls by 60 dB in `decay_s` (Polack's model)."""
    t = np.arange(int(decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay_s)
    tail[: SAMPLE_RATE_HZ // 500] = 0  # the first reflection comes 2 ms after the direct sound
    tail *= 10 ** (-direct_to_reverberant_db / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return tail / np.linalg.norm(tail)


def coloured_noise(length: int, tilt: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of unit RMS whose power falls as 1 / frequency ** tilt above 50 Hz, [length]."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    noise = np.fft.irfft(spectrum * np.maximum(hz, 50.0) ** (-tilt / 2), length)
    return noise / max(float(np.sqrt(np.mean(noise**2))), 1e-12)


def active_rms(samples: np.ndarray) -> float:
    """RMS over the 20 ms frames within 30 dB of the loudest: pauses do not count, so neither do long ones."""
    padded = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    power = np.mean(np.square(padded, dtype=np.float64), axis=1)
    return float(np.sqrt(power[power >= power.max() * 1e-3].mean()))
