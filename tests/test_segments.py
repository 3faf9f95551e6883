"""How a window's tokens become segments, and what gives a loop away."""

import dataclasses

import pytest

from jaxmoe.segments import compression_ratio, repeats, split


@dataclasses.dataclass(frozen=True)
class Ids:
    timestamp_begin: int = 1000


def stamp(seconds: float) -> int:
    return 1000 + round(seconds / 0.02)


@pytest.mark.parametrize(
    ("tokens", "content", "pieces", "step"),
    [
        # One segment that ends: no speech follows, so the whole window is done.
        ([stamp(0), 1, 2, stamp(4)], 3000, [(0.0, 4.0)], 3000),
        # A pair, then an unfinished segment: it starts the next window.
        ([stamp(0), 1, stamp(4), stamp(4), 2], 3000, [(0.0, 4.0)], 400),
        ([stamp(1), 1, stamp(4), stamp(5), 2, stamp(9)], 3000, [(1.0, 4.0), (5.0, 9.0)], 3000),
        # No timestamp, or only the first: all of the window.
        ([1, 2, 3], 3000, [(0.0, 30.0)], 3000),
        ([stamp(2), 1, 2], 1200, [(2.0, 12.0)], 1200),
        # Times past the sound are cut; what follows a pair at or past the end is kept, since no window comes after.
        ([stamp(0), 1, stamp(29)], 1000, [(0.0, 10.0)], 1000),
        ([stamp(0), 1, stamp(10), stamp(10), 2], 1000, [(0.0, 10.0), (10.0, 10.0)], 1000),
        # A pair that would move on by less than a second would crawl: the window is taken whole.
        ([stamp(0), 1, stamp(0.04), stamp(0.04), 2], 3000, [(0.0, 0.04), (0.04, 30.0)], 3000),
        ([], 3000, [], 3000),
    ],
)
def test_windows_are_cut_at_pairs_of_timestamps(tokens, content, pieces, step):
    found, moved = split(tokens, Ids(), content)
    assert [(round(start, 6), round(end, 6)) for start, end, _ in found] == pieces
    assert moved == step
    if step == content:  # nothing that was decoded is dropped
        assert [t for _, _, piece in found for t in piece] == tokens


def test_loops_are_told_from_sentences():
    assert repeats("I want to go " * 4)
    assert repeats("no " * 8)
    assert repeats("so we went home " + "thank you. " * 5)
    assert not repeats("no no no no")  # emphasis, or a stutter
    assert not repeats("I I I w want the b book about a dog and a cat and a dog and a bird")
    assert not repeats("")


def test_ratio_of_repetition_is_openais():
    said = "And so my fellow Americans ask not what your country can do for you"
    assert compression_ratio("Hello world. " * 20) > 2.4 > compression_ratio(said)
    assert compression_ratio("") == 0.0
