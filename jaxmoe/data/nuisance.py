"""Recordings said again by another voice, heard again through another channel: what must not decide a cluster.

Words, timing and manner of speaking stay; channel, level, pitch and vocal tract change. How an embedding moves between
the variants of a recording shows the directions that carry channel and voice (clustering/features.py drops them). No
label is needed.
"""

import numpy as np

from jaxmoe.data import channels, simulate

# Natural logarithms of the largest change. Pitch: a woman's voice and a man's are 0.6 apart; formants: 0.15.
PITCH, FORMANTS = 0.4, 0.15
LEVEL_DBFS = (-32.0, -18.0)
CHANNEL_SEED = 90_000  # apart from the channels of the demo corpus, whose seeds are those of runs


def other_channels(samples: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """`samples` [n] at 16 kHz through `count` random channels (equaliser, room, noise), at random levels: float32."""
    rng = np.random.default_rng([seed, 1])
    drawn = [channels.make_channel(n, CHANNEL_SEED + seed) for n in range(count)]
    return [channel.record(samples, float(rng.uniform(*LEVEL_DBFS)), rng) for channel in drawn]


def other_voices(samples: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """`samples` [n] at 16 kHz from `count` vocal tracts and pitches, by the WORLD vocoder: float32 [n] each."""
    rng = np.random.default_rng([seed, 2])
    frames = simulate.analyse(samples)
    out = []
    for _ in range(count):
        formants, pitch = np.exp(rng.uniform(-FORMANTS, FORMANTS)), np.exp(rng.uniform(-PITCH, PITCH))
        changed = simulate.flatten_pitch(simulate.shift_formants(frames, float(formants)), 1.0, float(pitch))
        speech = simulate.synthesise(changed)[: len(samples)]
        out.append(np.pad(speech, (0, len(samples) - len(speech))).astype(np.float32))
    return out
