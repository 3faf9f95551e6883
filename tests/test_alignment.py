"""Word times by cross-attention, and long recordings cut into windows that lose nothing."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxmoe.alignment import Aligner, agreement, alignment_heads, covered, time_warp
from jaxmoe.data.audio import N_SAMPLES, SAMPLE_RATE, load_audio
from jaxmoe.system import load_system

JFK = Path(__file__).parent / "data/jfk.flac"
TEXT = (
    "And so my fellow Americans ask not what your country can do for you "
    "ask what you can do for your country"
).split()  # fmt: skip


@pytest.fixture(scope="module")
def aligner():
    return Aligner(load_system("tiny.en"))


@pytest.fixture(scope="module")
def jfk():
    return load_audio(JFK)


def cheapest(cost: np.ndarray) -> float:
    """Cost of the best monotonic path, by the definition."""
    total = np.full(np.add(cost.shape, 1), np.inf)
    total[0, 0] = 0
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return total[-1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_cheapest(seed):
    cost = np.random.default_rng(seed).normal(size=(7, 12))
    first = time_warp(cost)
    assert first[0] == 0 and (np.diff(first) >= 0).all()
    # Between the first columns of neighbouring rows, a row covers all columns up to the next or to the one before it.
    ends = [*first[1:], 11]
    options = [[0]]
    for row, (start, end) in enumerate(zip(first, ends, strict=True)):
        last = [end] if row == 6 else [e for e in (end - 1, end) if e >= start]
        options = [[path[0] + cost[row, start : e + 1].sum()] for path in options for e in last]
    assert min(path[0] for path in options) == pytest.approx(cheapest(cost))


def test_a_diagonal_is_followed():
    cost = np.ones((5, 20))
    for row in range(5):
        cost[row, 4 * row : 4 * row + 4] = 0
    assert time_warp(cost).tolist() == [0, 4, 8, 12, 16]


@pytest.mark.parametrize(
    "heard,expected,count",
    [
        ("a b c", 4, 3),
        ("a x c d", 4, 4),  # one misheard
        ("a c d", 4, 4),  # one missed
        ("a b b c", 4, 3),  # one repeated
        ("", 4, 4),  # nothing understood: what the pace says
        ("p q r s t u", 4, 4),
        ("a b c d e f g h i j k l m n", 4, 8),  # there are no more
    ],
)
def test_words_behind_what_was_heard(heard, expected, count):
    assert covered("a b c d e f g h".split(), heard.split(), expected) == count


def test_agreement_ignores_case_punctuation_and_digits():
    assert agreement("Seven, eight".split(), "7 eight.".split()) == 1.0
    assert agreement(["a", "b"], []) == 0.0


def test_the_models_own_alignment_heads_are_used(aligner, tmp_path):
    dims = aligner.system.model.dims
    assert 0 < aligner.heads.sum() < dims.n_text_layer * dims.n_text_head
    upper = alignment_heads(dims, tmp_path)
    assert upper.sum() == dims.n_text_layer * dims.n_text_head / 2 and not upper[0].any()


def test_times_of_words(aligner, jfk):
    words = aligner.align(jfk, TEXT)
    assert [w.text for w in words] == TEXT
    times = [(w.start, w.end) for w in words]
    assert all(a[1] == b[0] and a[0] <= a[1] for a, b in itertools.pairwise(times))
    americans = words[TEXT.index("Americans")]
    assert americans.start <= 1.8 <= americans.end  # as openai/whisper's own test has it
    assert words[5].start <= 3.5 <= words[5].end and words[14].start <= 8.4 <= words[14].end  # "ask", twice


def test_a_long_recording_is_cut_where_nothing_is_said_and_loses_nothing(aligner, jfk):
    times = 4
    sound, words = np.tile(jfk, times), TEXT * times  # 44 s
    windows = aligner.windows(sound, " ".join(words))
    assert [w for x in windows for w in x.text.split()] == words
    assert (windows[0].start, windows[-1].end) == (0, len(sound))
    for a, b in itertools.pairwise(windows):
        assert a.end == b.start
    assert all(0 < x.end - x.start <= N_SAMPLES for x in windows)
    starts = np.array([w.start for w in aligner.align(jfk, TEXT)])
    period, said = len(jfk) / SAMPLE_RATE, 0
    for x in windows[:-1]:
        said += len(x.text.split())
        at = x.end / SAMPLE_RATE
        expected = int(at // period) * len(TEXT) + int((starts < at % period).sum())
        assert abs(said - expected) <= 1 and x.agreement > 0.8
