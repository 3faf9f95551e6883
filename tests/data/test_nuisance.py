"""Variants of a recording: other channels and voices, the same words in the same time."""

from pathlib import Path

import numpy as np

from jaxmoe.data import audio, nuisance, simulate

JFK = audio.load_audio(Path(__file__).with_name("jfk.flac"))[16000:64000]


def pitch_hz(samples: np.ndarray) -> float:
    f0 = simulate.analyse(samples).f0
    return float(np.median(f0[f0 > 0]))


def envelope(samples: np.ndarray) -> np.ndarray:
    """Loudness every 20 ms."""
    return np.log(np.sqrt(np.mean(samples[: len(samples) // 320 * 320].reshape(-1, 320) ** 2, axis=1)) + 1e-4)


def test_voices_change_pitch_and_keep_the_time():
    made = nuisance.other_voices(JFK, 3, seed=4)
    pitches = [pitch_hz(x) for x in made]
    assert all(len(x) == len(JFK) and x.dtype == np.float32 for x in made)
    assert np.ptp(np.log(pitches)) > 0.1 and len(set(pitches)) == 3
    for x in made:
        assert np.corrcoef(envelope(x), envelope(JFK))[0, 1] > 0.9


def test_channels_change_spectrum_and_level_and_keep_the_time():
    made = nuisance.other_channels(JFK, 3, seed=4)
    levels = [float(np.sqrt(np.mean(x**2))) for x in made]
    assert len({round(v, 4) for v in levels}) == 3
    for x in made:
        assert len(x) == len(JFK)
        assert np.corrcoef(envelope(x), envelope(JFK))[0, 1] > 0.95


def test_variants_are_a_function_of_the_seed():
    for make in (nuisance.other_voices, nuisance.other_channels):
        first, again, other = make(JFK, 1, 1)[0], make(JFK, 1, 1)[0], make(JFK, 1, 2)[0]
        assert np.array_equal(first, again) and not np.array_equal(first, other)
