"""Resampling of speakers: coverage, pairing, and what must not narrow an interval."""

import numpy as np
import pytest

from jaxmoe.eval import bootstrap
from jaxmoe.eval.wer import rate


def _speakers(rng: np.random.Generator, number: int) -> np.ndarray:
    """Errors and words of speakers whose rates scatter around 20 %."""
    words = rng.integers(50, 150, number)
    return np.stack([rng.binomial(words, rng.beta(4, 16, number)), words], axis=1).astype(float)


def test_interval_covers_the_true_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap.interval(_speakers(rng, 40), rate, draws=300)
        covered += low <= 20.0 <= high
    assert 0.88 <= covered / 200 <= 0.99  # percentile intervals are a little narrow with 40 speakers


def test_utterances_of_one_speaker_are_not_independent():
    statistics = np.array([[1, 10], [1, 10], [6, 10], [6, 10], [2, 10], [2, 10]], float)
    index, count = bootstrap.speaker_index(["a", "a", "b", "b", "c", "c"])
    once = bootstrap.interval(bootstrap.speaker_sums(statistics[::2], index[::2], count), rate)
    twice = bootstrap.interval(bootstrap.speaker_sums(statistics, index, count), rate)
    assert once == twice  # a hundred copies of a sentence tell no more about the next speaker
    assert once[0] == 10.0 and once[1] == 60.0


def test_speaker_sums():
    index, count = bootstrap.speaker_index(["b", "a", "b"])
    sums = bootstrap.speaker_sums(np.array([[1, 2], [3, 4], [5, 6]]), index, count)
    np.testing.assert_array_equal(sums, [[3, 4], [6, 8]])


def test_weights_are_draws_with_replacement():
    drawn = bootstrap.weights(7, 500, seed=3)
    assert drawn.shape == (500, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert (drawn == bootstrap.weights(7, 500, seed=3)).all()
    assert (drawn != bootstrap.weights(7, 500, seed=4)).any()


def test_equal_systems_differ_by_nothing():
    sums = _speakers(np.random.default_rng(1), 20)
    found = bootstrap.paired(sums, sums, rate)
    assert (found.difference, found.ci95, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_pairing_sees_what_separate_intervals_hide():
    sums = _speakers(np.random.default_rng(2), 30)
    better = sums - [[1.0, 0.0]]  # one error fewer for every speaker
    found = bootstrap.paired(better, sums, rate, draws=999)
    first, second = bootstrap.interval(better, rate), bootstrap.interval(sums, rate)
    assert first[1] > second[0]  # the intervals overlap
    assert found.ci95[1] < 0 and found.p == pytest.approx(2 / 1000)
    assert found.difference == pytest.approx(-100 * 30 / sums[:, 1].sum())


def test_one_speaker_has_no_interval():
    sums = np.array([[1.0, 10.0]])
    assert bootstrap.interval(sums, rate) is None
    found = bootstrap.paired(sums, np.array([[2.0, 10.0]]), rate)
    assert (found.difference, found.ci95, found.p) == (-10.0, None, None)


def test_different_speakers_are_not_paired():
    with pytest.raises(ValueError, match="same utterances"):
        bootstrap.paired(np.ones((3, 2)), np.ones((4, 2)), rate)


def test_holm_by_hand():
    # sorted .01 .02 .03: times 3, 2, 1 = .03 .04 .03, made monotone .03 .04 .04
    assert bootstrap.holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert bootstrap.holm([0.9, 0.8]) == [1.0, 1.0]
    assert bootstrap.holm([]) == []
