"""Noise stands where it is said to stand below the speech."""

import numpy as np
import pytest

from jaxmoe.data import noise
from jaxmoe.data.channels import active_rms


@pytest.fixture
def speech():
    rng = np.random.default_rng(0)
    envelope = np.repeat(rng.random(50) > 0.4, 640)  # syllables of 40 ms and pauses
    return (rng.standard_normal(32000) * envelope * 0.05).astype(np.float32)


def talkers(number):
    return [lambda n=n: np.sin(np.arange(9000 + n) * (0.05 + 0.01 * n)) * 0.1 for n in range(number)]


@pytest.mark.parametrize("name", ["white", "pink", "babble"])
@pytest.mark.parametrize("level", [20.0, 0.0])
def test_noise_stands_at_its_distance_below_the_speech(speech, name, level):
    mixed = noise.add(speech, name, level, np.random.default_rng(1), talkers(6))
    added = mixed - speech
    assert 20 * np.log10(active_rms(speech) / active_rms(added)) == pytest.approx(level, abs=0.3)


def test_reverberation_is_less_like_the_speech_the_lower_its_ratio(speech):
    like = []
    for level in (20.0, 10.0, 0.0):
        mixed = noise.add(speech, "reverberation", level, np.random.default_rng(1))
        like.append(np.corrcoef(mixed, speech)[0, 1])
    # The direct path holds r = 10 ** (level / 10) of the energy to 1 of the tail: correlation sqrt(r / (1 + r)).
    assert like == pytest.approx([0.995, 0.953, 0.707], abs=0.05)


def test_pink_noise_falls_with_frequency_and_white_does_not(speech):
    def octaves(name):
        added = noise.add(speech, name, 0.0, np.random.default_rng(1)) - speech
        power = np.abs(np.fft.rfft(added)) ** 2
        hz = np.fft.rfftfreq(len(added), 1 / 16000)
        return [power[(hz >= low) & (hz < 2 * low)].mean() for low in (500, 2000)]

    low, high = octaves("pink")
    assert low / high == pytest.approx(4.0, rel=0.2)
    low, high = octaves("white")
    assert low / high == pytest.approx(1.0, rel=0.2)


def test_nothing_clips(speech):
    assert np.abs(noise.add(speech * 15, "white", 0.0, np.random.default_rng(0))).max() <= 1.0


def test_one_seed_gives_the_same_noise_at_every_level(speech):
    loud, soft = (noise.add(speech, "white", x, np.random.default_rng(3)) - speech for x in (0.0, 20.0))
    np.testing.assert_allclose(loud, soft * 10, atol=1e-5)


def test_the_estimated_ratio_follows_the_true_one(speech):
    found = [noise.snr_db(noise.add(speech, "white", x, np.random.default_rng(3))) for x in (30.0, 20.0, 10.0)]
    assert found == pytest.approx([30, 20, 10], abs=2)
    assert noise.level_dbfs(speech) - noise.level_dbfs(speech / 10) == pytest.approx(20)


def test_errors_name_the_noises():
    with pytest.raises(ValueError, match="'hiss' is unknown; expected one of white, pink, babble, reverberation"):
        noise.add(np.ones(9), "hiss", 0.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="babble needs other talkers"):
        noise.add(np.ones(9), "babble", 0.0, np.random.default_rng(0))
