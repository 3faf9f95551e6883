"""The simulated disorders and channels: reproducible, distinct, and without cues beside the disorder itself."""

import numpy as np
import pytest

from jaxmoe.data import channels, simulate
from jaxmoe.data.corpora import demo, read_file


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return read_file(sorted((demo.DEMO / "audio").glob("bm_lewis/*.opus"))[0])


@pytest.mark.parametrize("etiology,severity", simulate.CONDITIONS)
def test_same_key_gives_same_bits_and_another_key_others(clip, etiology, severity):
    once = simulate.simulate(clip, etiology, severity, seed=0, key="a")
    again = simulate.simulate(clip, etiology, severity, seed=0, key="a")
    assert once.dtype == np.float32 and np.isfinite(once).all() and np.abs(once).max() > 0
    np.testing.assert_array_equal(once, again)
    if etiology in ("cerebral palsy", "Down syndrome", "stroke"):  # the others have nothing random
        other = simulate.simulate(clip, etiology, severity, seed=0, key="b")
        assert len(other) != len(once) or (other != once).any()


def test_controls_pass_through_the_vocoder(clip):
    control = simulate.simulate(clip, simulate.CONTROL, "none", seed=0, key="a")
    assert abs(len(control) - len(clip)) <= simulate.SAMPLE_RATE_HZ * simulate.FRAME_S
    n = min(len(control), len(clip))
    assert np.abs(control[:n] - clip[:n]).max() > 0.01  # resynthesised phases differ; a copy would be equal


def test_severe_is_further_from_healthy_than_mild(clip):
    for etiology in ("Parkinson's disease", "ALS", "cerebral palsy"):
        mild, severe = (len(simulate.simulate(clip, etiology, s, 0, "a")) for s in ("mild", "severe"))
        assert len(clip) < mild < severe, etiology


def test_unknown_condition_names_the_known_ones(clip):
    with pytest.raises(ValueError, match=r"'als'.*ALS \(mild\)"):
        simulate.simulate(clip, "als", "mild", 0, "a")


def test_pitch_range_of_parkinsons_disease_is_narrow(clip):
    def spread(samples: np.ndarray) -> float:
        f0 = simulate.analyse(samples).f0
        return float(np.std(np.log(f0[f0 > 0])))

    severe = simulate.simulate(clip, "Parkinson's disease", "severe", 0, "a")
    assert spread(severe) < 0.6 * spread(clip)


@pytest.mark.parametrize("etiology,severity", simulate.CONDITIONS)
def test_level_tells_nothing_about_the_condition(clip, etiology, severity):
    """Seen to fail when the level was set before the channel, and on plain RMS, which pauses lower by 3 dB."""
    speech = simulate.simulate(clip, etiology, severity, seed=0, key="a")
    recorded = channels.make_channel(3).record(speech * 0.01, level_dbfs=-25, rng=np.random.default_rng(0))
    assert recorded.shape == speech.shape and recorded.dtype == np.float32
    assert 20 * np.log10(channels.active_rms(recorded)) == pytest.approx(-25, abs=0.5)  # the noise adds a little


def test_noise_stands_at_the_channels_distance_whatever_the_disorder(clip):
    channel = channels.make_channel(5)
    floors = []
    for etiology, severity in (("control", "none"), ("stroke", "severe"), ("Parkinson's disease", "severe")):
        speech = simulate.simulate(clip, etiology, severity, seed=0, key="a")
        silent = np.concatenate([np.zeros(8000, np.float32), speech])
        recorded = channel.record(silent, -20, np.random.default_rng(0))
        floors.append(20 * np.log10(np.std(recorded[1600:6400])))
    assert floors == pytest.approx([-20 - channel.snr_db] * 3, abs=1.5)


def test_channels_differ_and_are_the_same_again():
    made = [channels.make_channel(n) for n in range(channels.NUM_CHANNELS)]
    assert len({c.snr_db for c in made}) == channels.NUM_CHANNELS
    np.testing.assert_array_equal(made[2].room, channels.make_channel(2).room)
    for c in made:
        assert np.linalg.norm(c.room) == pytest.approx(1)


def test_coloured_noise_falls_with_frequency():
    noise = channels.coloured_noise(160000, tilt=2.0, rng=np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    hz = np.fft.rfftfreq(160000, 1 / 16000)
    low, high = power[(hz > 400) & (hz < 500)].mean(), power[(hz > 4000) & (hz < 5000)].mean()
    assert 10 * np.log10(low / high) == pytest.approx(20, abs=1.5)  # brown: 20 dB a decade
    assert np.std(noise) == pytest.approx(1, abs=0.01)


def test_very_short_and_silent_input_survive():
    for samples in (np.zeros(3200, np.float32), np.full(1600, 0.1, np.float32)):
        for etiology, severity in simulate.CONDITIONS:
            speech = simulate.simulate(samples, etiology, severity, 0, "a")
            recorded = channels.make_channel(0).record(speech, -20, np.random.default_rng(0))
            assert np.isfinite(recorded).all()
