"""Kaldi's mel filter bank, as BEATs hears it: T frames of 25 ms every 10 ms, whole frames only.

It runs in float32 whatever the model's type: powers of 16-bit samples reach 1e12.
Source: Kaldi's feature-fbank with its defaults, dither off, as microsoft/unilm calls it (beats/BEATs.py, preprocess).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

FRAME, SHIFT, N_FFT = 400, 160, 512  # samples at 16 kHz
N_MELS = 128
MEAN, STD = 15.41663, 6.55582  # of the log energies of AudioSet; the result is scaled by 2 STD
_LOWEST = 2.0**-23  # float32's epsilon, Kaldi's floor under the logarithm


def n_frames(samples: int) -> int:
    """T of so many samples."""
    return 1 + (samples - FRAME) // SHIFT


def kaldi_fbank(samples: jax.Array) -> jax.Array:
    """Normalised log mel energies: samples [B, N] at 16 kHz, full scale +-1, N >= 400 -> float32 [B, T, 128].

    Each frame: minus its mean, pre-emphasis 0.97 (the first sample is its own predecessor), Povey window (a symmetric
    Hann window to the power 0.85), power spectrum of 512 points, triangles in mel from 20 Hz to 8 kHz, ln.
    """
    if samples.ndim != 2 or samples.shape[1] < FRAME:
        raise ValueError(f"samples are {list(samples.shape)}, expected [B, N] with N >= {FRAME}: pad short ones.")
    scaled = samples.astype(jnp.float32) * 32768.0
    starts = SHIFT * np.arange(n_frames(samples.shape[1]))
    frames = scaled[:, starts[:, None] + np.arange(FRAME)]  # [B, T, 400]
    frames = frames - frames.mean(-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    window = jnp.asarray(np.hanning(FRAME) ** 0.85, jnp.float32)
    spectrum = jnp.fft.rfft((frames - 0.97 * before) * window[None, None], N_FFT)  # [B, T, 257]
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energies = jnp.matmul(power, mel_weights().T, precision="highest")
    return (jnp.log(jnp.maximum(energies, _LOWEST)) - MEAN) / (2 * STD)


@functools.lru_cache
def mel_weights() -> np.ndarray:
    """Triangles evenly spaced on 1127 ln(1 + f / 700), as weights of the FFT's bins: float32 [128, 257].

    The bin at 8 kHz weighs nothing; mel bin 3 is narrower than the bins and holds none.
    """
    mel = lambda hertz: 1127.0 * np.log1p(np.asarray(hertz) / 700.0)
    corners = np.linspace(mel(20.0), mel(8000.0), N_MELS + 2)
    bins = mel(np.arange(N_FFT // 2) * 16_000 / N_FFT)
    slopes = (bins[None, :] - corners[:-1, None]) / np.diff(corners)[:, None]  # [129, 256]
    weights = np.maximum(0.0, np.minimum(slopes[:-1], 1.0 - slopes[1:]))
    return np.pad(weights, ((0, 0), (0, 1))).astype(np.float32)
