"""Simulated speech disorders: healthy speech in, speech with the marks of a disorder out.

IT IS A SIMULATION: it imitates textbook descriptions of each disorder (Duffy, Motor Speech Disorders, 4th ed.) so that
the whole pipeline can run on data that may be redistributed. Its word error rates say nothing about real patients.

Speech is taken apart by WORLD (Morise et al. 2016) into pitch, spectral envelope and aperiodicity every 5 ms, changed,
and put together again. Healthy controls take the same way through the vocoder, unchanged, so that its sound is no
cue. The same samples, etiology, strength and seed give the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
import itertools
import zlib

import numpy as np
import pyworld
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from jaxmoe.data.corpora import CONTROL

SAMPLE_RATE_HZ = 16000
FRAME_S = 0.005
APERIODICITY_FRAMES = 3  # that share a measurement of the aperiodicity


@dataclass(frozen=True)
class Frames:
    """WORLD's description of speech. T frames of FRAME_S, K = 513 frequencies up to 8 kHz.

    Attributes:
      f0: pitch in Hz, 0 where unvoiced, [T].
      log_spectrum: natural logarithm of the power envelope, [T, K].
      aperiodicity: share of noise in each bin, 0 to 1, [T, K].
    """

    f0: np.ndarray
    log_spectrum: np.ndarray
    aperiodicity: np.ndarray


def analyse(samples: np.ndarray) -> Frames:
    """WORLD analysis of `samples`, float [n] at 16 kHz."""
    x = np.ascontiguousarray(samples, np.float64)
    period_ms = FRAME_S * 1000
    # DIO with StoneMask: a fifth of Harvest's time, and clean synthetic speech has no need of more.
    f0, times = pyworld.dio(x, SAMPLE_RATE_HZ, frame_period=period_ms)
    f0 = pyworld.stonemask(x, f0, times, SAMPLE_RATE_HZ)
    spectrum = pyworld.cheaptrick(x, f0, times, SAMPLE_RATE_HZ)
    # D4C takes as long as all else; what it measures changes slowly.
    sparse = slice(None, None, APERIODICITY_FRAMES)
    aperiodicity = pyworld.d4c(x, f0[sparse].copy(), times[sparse].copy(), SAMPLE_RATE_HZ)
    return Frames(f0, np.log(spectrum + 1e-12), np.repeat(aperiodicity, APERIODICITY_FRAMES, axis=0)[: len(f0)])


def synthesise(frames: Frames) -> np.ndarray:
    """Speech of `frames`, float64 [T * 80] at 16 kHz."""
    return pyworld.synthesize(
        np.ascontiguousarray(frames.f0),
        np.ascontiguousarray(np.exp(frames.log_spectrum)),
        np.ascontiguousarray(np.clip(frames.aperiodicity, 0.001, 1 - 1e-9)),
        SAMPLE_RATE_HZ,
        FRAME_S * 1000,
    )


def at_positions(frames: Frames, positions: np.ndarray) -> Frames:
    """Frames read at fractional `positions` [T'], interpolated linearly (pitch: the nearest)."""
    last = len(frames.f0) - 1
    positions = np.clip(positions, 0, last)
    low = np.minimum(positions.astype(int), max(last - 1, 0))
    high = np.minimum(low + 1, last)
    w = (positions - low)[:, None]  # [T', 1]
    return Frames(
        frames.f0[np.round(positions).astype(int)],
        frames.log_spectrum[low] * (1 - w) + frames.log_spectrum[high] * w,
        frames.aperiodicity[low] * (1 - w) + frames.aperiodicity[high] * w,
    )


def slow_down(frames: Frames, rate: float) -> Frames:
    """Speech at `rate` times its speed; below 1 is slower."""
    return at_positions(frames, np.arange(0, len(frames.f0) - 1, rate))


def slow_unevenly(frames: Frames, rate: float, spread: float, rng: np.random.Generator) -> Frames:
    """A rate that wanders around `rate` by a factor exp(N(0, spread)) every 120 ms."""
    wander = _wander(len(frames.f0), spread, rng)
    positions = [0.0]
    while positions[-1] < len(frames.f0) - 2:
        positions.append(positions[-1] + rate * wander[int(positions[-1])])
    return at_positions(frames, np.array(positions))


def undershoot(frames: Frames, width_ms: float) -> Frames:
    """Articulators that do not reach their targets: the envelope blurred over time."""
    sigma = width_ms / 1000 / FRAME_S / 2
    return _with_spectrum(frames, gaussian_filter1d(frames.log_spectrum, sigma, axis=0))


def damp_formants(frames: Frames, hz: float) -> Frames:
    """Broader, weaker formants: the envelope blurred over frequency."""
    sigma = hz / (SAMPLE_RATE_HZ / 2 / (frames.log_spectrum.shape[1] - 1))
    return _with_spectrum(frames, gaussian_filter1d(frames.log_spectrum, sigma, axis=1))


def shift_formants(frames: Frames, factor: float) -> Frames:
    """A vocal tract shorter by `factor`: every formant moves up by it."""
    bins = frames.log_spectrum.shape[1]
    position = np.clip(np.arange(bins) / factor, 0, bins - 1.001)
    low = position.astype(int)
    w = position - low
    spectrum, aperiodicity = frames.log_spectrum, frames.aperiodicity
    return Frames(
        frames.f0,
        spectrum[:, low] * (1 - w) + spectrum[:, low + 1] * w,
        aperiodicity[:, low] * (1 - w) + aperiodicity[:, low + 1] * w,
    )


def nasalise(frames: Frames, amount: float) -> Frames:
    """An open velum: a nasal formant near 280 Hz, a zero near 850 Hz, less above 2.5 kHz."""
    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, frames.log_spectrum.shape[1])
    formant = 8 * np.exp(-(((hz - 280) / 90) ** 2))
    zero = -14 * np.exp(-(((hz - 850) / 220) ** 2))
    gain_db = amount * (formant + zero - 6 * (hz > 2500))
    return _with_spectrum(frames, frames.log_spectrum + gain_db / 10 * np.log(10))


def flatten_pitch(frames: Frames, keep: float, factor: float = 1.0) -> Frames:
    """Monotone speech: log pitch keeps `keep` of its excursions, and moves by `factor`."""
    f0, voiced = frames.f0.copy(), frames.f0 > 0
    if voiced.any():
        log_f0 = np.log(f0[voiced])
        middle = np.median(log_f0)
        f0[voiced] = np.exp(middle + keep * (log_f0 - middle)) * factor
    return Frames(f0, frames.log_spectrum, frames.aperiodicity)


def breathe(frames: Frames, amount: float, tilt: float) -> Frames:
    """A breathy voice: at least `amount` of noise above the lowest bins, and `tilt` nepers less power at 8 kHz."""
    f = np.linspace(0, 1, frames.log_spectrum.shape[1])
    noise = np.maximum(frames.aperiodicity, amount * np.clip(3 * f, 0.3, 1))
    return Frames(frames.f0, frames.log_spectrum - tilt * f, noise)


def fade_out(frames: Frames, end: float) -> Frames:
    """Loudness that decays over the utterance; `end` is the last frame's share of the power."""
    decay = np.log(np.linspace(1, end, len(frames.f0)))
    return _with_spectrum(frames, frames.log_spectrum + decay[:, None])


def break_pitch(frames: Frames, per_second: float, rng: np.random.Generator) -> Frames:
    """A voice that jumps an octave up or down, or stops, for 40 to 150 ms at a time."""
    f0 = frames.f0.copy()
    for _ in range(int(len(f0) * FRAME_S * per_second) + 1):
        start, length, kind = rng.integers(len(f0)), rng.integers(8, 30), rng.random()
        f0[start : start + length] *= 2.0 if kind < 0.5 else 0.5 if kind < 0.8 else 0.0
    return Frames(f0, frames.log_spectrum, frames.aperiodicity)


def vary_loudness(frames: Frames, spread: float, rng: np.random.Generator) -> Frames:
    """Loudness that wanders by a factor exp(N(0, spread)) in power every 120 ms."""
    wander = np.log(_wander(len(frames.f0), spread, rng))
    return _with_spectrum(frames, frames.log_spectrum + wander[:, None])


def _wander(frames: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """A positive random curve with median 1, a knot every 24 frames (120 ms), [frames]."""
    knots = max(4, frames // 24)
    curve = rng.normal(0, spread, knots)
    return np.exp(np.interp(np.arange(frames), np.linspace(0, frames, knots), curve))


def _with_spectrum(frames: Frames, log_spectrum: np.ndarray) -> Frames:
    return Frames(frames.f0, log_spectrum, frames.aperiodicity)


def syllables(samples: np.ndarray) -> list[tuple[int, int, bool]]:
    """Syllable-like pieces, cut where the energy has a dip: (start, end, whether it is speech)."""
    hop = 80
    power = uniform_filter1d(np.square(samples, dtype=np.float64), 160)
    energy = gaussian_filter1d(np.sqrt(np.maximum(power, 0))[::hop], 6)
    cuts = [0]
    for i in range(1, len(energy) - 1):
        dip = energy[i] <= energy[i - 1] and energy[i] < energy[i + 1]
        if dip and energy[i] < 0.6 * energy[max(0, i - 30) : i + 30].max():
            cuts.append(i * hop)
    cuts.append(len(samples))
    threshold = 0.04 * energy.max()
    return [
        (a, b, bool(energy[a // hop : max(a // hop + 1, b // hop)].max() > threshold))
        for a, b in itertools.pairwise(cuts)
        if b - a > 480  # 30 ms: shorter pieces are the ends of a rounding
    ]


def stumble(
    samples: np.ndarray,
    rng: np.random.Generator,
    *,
    repeat: float,
    pause: float,
    drop: float,
    pause_s: tuple[float, float] = (0.2, 0.5),
    max_repeats: int = 2,
) -> np.ndarray:
    """Disfluent speech: syllables begun again, pauses in wrong places, pieces left out.

    `repeat`, `pause` and `drop` are the probabilities at each syllable; `pause_s` is the range of a pause.
    """

    def silence(low_s: float, high_s: float) -> np.ndarray:
        return np.zeros(int(SAMPLE_RATE_HZ * rng.uniform(low_s, high_s)), samples.dtype)

    out: list[np.ndarray] = []
    for start, end, speech in syllables(samples):
        piece = samples[start:end]
        if speech and rng.random() < repeat:
            onset = _fade(piece[: int(min(len(piece), SAMPLE_RATE_HZ * rng.uniform(0.10, 0.22)))])
            for _ in range(rng.integers(1, max_repeats + 1)):
                out += [onset, silence(0.04, 0.12)]
        if speech and rng.random() < drop:
            gap = int(SAMPLE_RATE_HZ * rng.uniform(0.05, 0.12))
            at = rng.integers(0, max(1, len(piece) - gap))
            rest = np.zeros(gap // 2, samples.dtype)
            piece = np.concatenate([_fade(piece[:at]), rest, _fade(piece[at + gap :])])
        out.append(piece)
        if speech and rng.random() < pause:
            out.append(silence(*pause_s))
    return np.concatenate(out)


def _fade(piece: np.ndarray) -> np.ndarray:
    """`piece` with 10 ms ramps at both ends: a cut must not click."""
    n = min(160, len(piece) // 2)
    faded = piece.copy()
    if n:
        ramp = np.linspace(0, 1, n, dtype=piece.dtype)
        faded[:n] *= ramp
        faded[-n:] *= ramp[::-1]
    return faded


def _between(mild: float, severe: float, strength: float) -> float:
    return mild + (severe - mild) * strength


def parkinsons_disease(samples: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Hypokinetic dysarthria: monotone, breathy, short of air, imprecise consonants."""
    frames = slow_down(analyse(samples), _between(0.9, 0.8, s))
    frames = flatten_pitch(frames, keep=_between(0.4, 0.05, s))
    frames = undershoot(frames, width_ms=_between(30, 85, s))
    frames = breathe(frames, amount=_between(0.25, 0.75, s), tilt=_between(2, 4, s))
    return synthesise(fade_out(frames, end=_between(0.5, 0.12, s)))


def als(samples: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Mixed flaccid-spastic dysarthria: very slow, hypernasal, strained, vowels that run together."""
    frames = slow_down(analyse(samples), _between(0.8, 0.55, s))
    frames = flatten_pitch(frames, keep=_between(0.7, 0.4, s), factor=_between(0.95, 0.88, s))
    frames = undershoot(frames, width_ms=_between(35, 100, s))
    frames = nasalise(damp_formants(frames, hz=_between(35, 105, s)), _between(0.4, 1.0, s))
    return synthesise(breathe(frames, amount=_between(0.1, 0.3, s), tilt=0.0))


def cerebral_palsy(samples: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Dyskinetic dysarthria: rate, pitch and loudness out of control."""
    frames = analyse(samples)
    frames = slow_unevenly(frames, _between(0.9, 0.68, s), _between(0.2, 0.5, s), rng)
    frames = break_pitch(frames, per_second=_between(0.8, 2.2, s), rng=rng)
    frames = undershoot(frames, width_ms=_between(30, 100, s))
    return synthesise(vary_loudness(frames, _between(0.4, 0.9, s), rng))


def down_syndrome(samples: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """A small vocal tract, weak articulation, repeated syllables."""
    samples = stumble(
        samples,
        rng,
        repeat=_between(0.05, 0.20, s),
        pause=_between(0.05, 0.2, s),
        drop=_between(0, 0.08, s),
    )
    frames = shift_formants(analyse(samples), _between(1.06, 1.18, s))
    frames = flatten_pitch(frames, keep=1.0, factor=_between(1.05, 1.2, s))
    frames = slow_down(frames, _between(0.95, 0.85, s))
    frames = undershoot(frames, width_ms=_between(20, 70, s))
    return synthesise(damp_formants(frames, hz=_between(20, 80, s)))


def stroke(samples: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """Apraxia and aphasia: groping restarts, long pauses inside phrases, omissions."""
    samples = stumble(
        samples,
        rng,
        repeat=_between(0.05, 0.25, s),
        pause=_between(0.08, 0.3, s),
        drop=_between(0, 0.25, s),
        pause_s=(_between(0.15, 0.3, s), _between(0.4, 0.8, s)),
        max_repeats=1 + round(2 * s),
    )
    frames = slow_down(analyse(samples), _between(0.95, 0.75, s))
    return synthesise(undershoot(frames, width_ms=_between(10, 70, s)))


def healthy(samples: np.ndarray, s: float, rng: np.random.Generator) -> np.ndarray:
    """The vocoder and nothing else."""
    return synthesise(analyse(samples))


@dataclass(frozen=True)
class Disorder:
    """`apply(samples, strength, rng)` and the strength, 0 to 1, that stands for each severity."""

    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    strength: dict[str, float]


# Below a strength of 0.4 Whisper hardly notices; stroke and Down syndrome are unintelligible to it past 0.85.
DISORDERS = {
    "Parkinson's disease": Disorder(parkinsons_disease, {"mild": 0.45, "severe": 0.95}),
    "ALS": Disorder(als, {"mild": 0.45, "severe": 0.95}),
    "cerebral palsy": Disorder(cerebral_palsy, {"mild": 0.45, "severe": 0.95}),
    "Down syndrome": Disorder(down_syndrome, {"mild": 0.45, "severe": 0.85}),
    "stroke": Disorder(stroke, {"mild": 0.45, "severe": 0.85}),
    CONTROL: Disorder(healthy, {"none": 0.0}),
}

# (etiology, severity) of every kind of speaker, controls last.
CONDITIONS = tuple((e, s) for e, disorder in DISORDERS.items() for s in disorder.strength)


def simulate(samples: np.ndarray, etiology: str, severity: str, seed: int, key: str) -> np.ndarray:
    """`samples` (16 kHz) as somebody with that disorder might have said them.

    Args:
      samples: healthy speech, float [n].
      etiology, severity: one of CONDITIONS.
      seed, key: what is random is drawn from both; `key` names the utterance.

    Returns:
      float32 [m], longer than the input for most disorders; the level is arbitrary.

    Raises:
      ValueError: an unknown condition.
    """
    if (etiology, severity) not in CONDITIONS:
        known = ", ".join(f"{e} ({s})" for e, s in CONDITIONS)
        raise ValueError(f"found etiology {etiology!r} with severity {severity!r}, expected one of: {known}.")
    disorder = DISORDERS[etiology]
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    return disorder.apply(samples, disorder.strength[severity], rng).astype(np.float32)
