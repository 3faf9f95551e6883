"""Mono samples at 16 kHz -> Whisper's log-mel spectrogram.

Shapes: B batch, n samples, M mel bins, N mel frames (n / 160).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.data.sound import SAMPLE_RATE, AudioError, load_audio

__all__ = ["SAMPLE_RATE", "AudioError", "load_audio", "log_mel_spectrogram"]  # sound.py's are at hand here too

N_FFT = 400  # samples, 25 ms
HOP_LENGTH = 160  # samples, 10 ms
N_SAMPLES = 480_000  # 30 s, the encoder's window
N_FRAMES = N_SAMPLES // HOP_LENGTH  # 3000
SAMPLES_PER_POSITION = 2 * HOP_LENGTH  # 320, of an encoder position
WINDOWS_S = (4, 6, 8, 10, 12, 15, 20, 30)  # padded lengths of a trimmed context, one compilation each
CUT_S = (15.0, 29.0)  # where a part that is to fit a window of 30 s may end
PAUSE_S = 0.2  # length of the stretch that is to be quiet there


def positions(samples: int | np.ndarray) -> Any:
    """S': encoder positions that hold audio."""
    return -(-samples // SAMPLES_PER_POSITION)


def window(samples: int, context: str, margin_s: float) -> int:
    """Samples to which a recording is padded for the encoder.

    Args:
      context: "full" for 30 s, as Whisper was trained; "trimmed" for the smallest of WINDOWS_S with a margin.
      margin_s: silence that must follow the audio.
    """
    if context not in ("full", "trimmed"):
        raise ValueError(f"config.embed.context={context!r}; expected full or trimmed.")
    need = samples / SAMPLE_RATE + margin_s
    fits = [w for w in WINDOWS_S if w >= need and context == "trimmed"]
    return min(fits, default=30) * SAMPLE_RATE


def pad_or_trim(samples: np.ndarray, length: int = N_SAMPLES) -> np.ndarray:
    """The last axis cut or padded with zeros to `length`."""
    samples = samples[..., :length]
    pad = [(0, 0)] * (samples.ndim - 1) + [(0, length - samples.shape[-1])]
    return np.pad(samples, pad)


def pauses(samples: np.ndarray, part_s: tuple[float, float] = CUT_S) -> list[int]:
    """Samples at which a recording is cut: each time the middle of the quietest PAUSE_S after a part of `part_s` long.

    What is up to a second longer than the longest part is left whole, and so is what fits a window of 30 s.
    """
    hop, length = SAMPLE_RATE // 50, round(PAUSE_S * SAMPLE_RATE)
    power = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    cuts, at = [], 0
    while len(samples) - at > (part_s[1] + 1) * SAMPLE_RATE:
        first, last = (at + round(s * SAMPLE_RATE) for s in part_s)
        middle = np.arange(first, min(last, len(samples) - length), hop)
        energy = power[middle + length // 2] - power[middle - length // 2]
        at = int(middle[len(middle) - 1 - energy[::-1].argmin()])
        cuts.append(at)
    return cuts


@functools.partial(jax.jit, static_argnames="n_mels")
def log_mel_spectrogram(samples: jax.Array, n_mels: int) -> jax.Array:
    """Whisper's input features: samples float [B, n] at 16 kHz -> float32 [B, M, n // 160].

    x = log10(max(1e-10, mel_filters @ |STFT|^2)), then (max(x, max(x) - 8) + 4) / 4 with the maximum over each item.
    The STFT is centred with reflection, its window a periodic Hann of 400, its hop 160. Every length compiles anew:
    pad first.

    Source: openai/whisper, whisper/audio.py, log_mel_spectrogram.
    """
    if samples.ndim != 2 or samples.shape[1] <= N_FFT // 2 or not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(
            f"samples are {samples.dtype}{list(samples.shape)}, expected floats [B, n] with n > {N_FFT // 2}; "
            "pad short ones (pad_or_trim) and divide int16 by 32768."
        )
    one = functools.partial(_log_mel, n_mels=n_mels)
    # One at a time, the frames stay in a CPU's caches: five times as fast for 8. Elsewhere a batch may be sharded.
    by_item = functools.partial(jax.lax.map, one)
    return jax.lax.platform_dependent(samples.astype(jnp.float32), cpu=by_item, default=jax.vmap(one))


def _log_mel(samples: jax.Array, n_mels: int) -> jax.Array:
    """log_mel_spectrogram of one item: float32 [n] -> [M, N]."""
    window = jnp.asarray(np.hanning(N_FFT + 1)[:-1], jnp.float32)  # periodic
    padded = jnp.pad(samples, N_FFT // 2, mode="reflect")
    starts = HOP_LENGTH * np.arange(len(samples) // HOP_LENGTH)  # the last frame, centred on the end, is left out
    frames = padded[starts[:, None] + np.arange(N_FFT)]  # [N, 400]
    spectrum = jnp.fft.rfft(frames * window[None])  # [N, 201]
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.matmul(power, mel_filters(n_mels).T, precision="highest")  # [N, M]
    x = jnp.log10(jnp.maximum(mel, 1e-10))
    return ((jnp.maximum(x, x.max() - 8.0) + 4.0) / 4.0).T


def loud_positions(mel: jax.Array, below_db: float = 25.0) -> jax.Array:
    """Which encoder positions hold a frame within `below_db` of the loudest: log-mel [B, M, N] -> bool [B, N / 2]."""
    power = jnp.sum(10.0 ** (4.0 * mel - 4.0), axis=1)  # [B, N], undoing Whisper's scaling
    power = power.reshape(len(power), -1, 2).max(axis=-1)
    return power > power.max(axis=1, keepdims=True) * 10.0 ** (-below_db / 10.0)


@functools.lru_cache
def mel_filters(n_mels: int) -> np.ndarray:
    """Triangular filters from 0 to 8 kHz on Slaney's mel scale, each of area 1 in Hz: float32 [M, 201].

    The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels for a factor of 6.4).
    Source: M. Slaney, Auditory Toolbox (1998); librosa.filters.mel with its defaults, which Whisper uses.
    """
    knee = 15.0  # mel of 1 kHz
    top = knee + 27.0 * np.log(8.0) / np.log(6.4)  # mel of 8 kHz
    mels = np.linspace(0.0, top, n_mels + 2)
    log_part = 1000.0 * 6.4 ** ((np.maximum(mels, knee) - knee) / 27.0)
    hertz = np.where(mels < knee, mels * 200.0 / 3.0, log_part)  # corners of the triangles
    bins = np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    slopes = (bins[None, :] - hertz[:-1, None]) / np.diff(hertz)[:, None]  # [M + 1, 201]
    rising, falling = slopes[:-1], 1.0 - slopes[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))  # [M, 201]
    return (filters * 2.0 / (hertz[2:] - hertz[:-2])[:, None]).astype(np.float32)
