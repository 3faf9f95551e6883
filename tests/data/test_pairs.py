"""Sentence pairs and their batches."""

import numpy as np
import pytest

from jaxmoe.data import pairs
from jaxmoe.data.pairs import Encoded, PairSource


def made(count=23):
    """Half of them short, half long, as sentences and their translations are."""
    rng = np.random.default_rng(0)
    size = lambda i: int(rng.integers(1, 9)) + 20 * (i % 2)
    return [Encoded([i + 1] * size(i), [i + 1] * size(i)) for i in range(count)]


def test_an_epoch_uses_every_pair_at_most_once_and_another_order_next():
    source = PairSource(made(), batch_size=4, steps=99, seed=0)
    epochs = [[source[5 * e + i].source[:, -1].tolist() for i in range(5)] for e in range(2)]
    assert all(len({i for batch in e for i in batch}) == 20 for e in epochs)
    assert epochs[0] != epochs[1]
    again = PairSource(made(), batch_size=4, steps=99, seed=0)[7]
    np.testing.assert_array_equal(again.targets, source[7].targets)


def test_few_shapes_and_nothing_cut_off():
    encoded = made()
    source = PairSource(encoded, batch_size=4, steps=99, seed=1)
    batches = [source[i] for i in range(20)]
    assert {b.source.shape for b in batches} == {b.targets.shape for b in batches} == {(4, 8), (4, 32)}
    for batch in batches:
        for i in range(4):
            pair = encoded[batch.source[i, -1] - 1]
            assert batch.source[i][batch.source_mask[i]].tolist() == pair.source
            assert batch.targets[i][batch.weights[i] > 0].tolist() == pair.target


def test_all_batches_hold_every_pair_once():
    batches = pairs.all_batches(made(), 4)
    assert sum(int(b.weights.sum()) for b in batches) == sum(len(p.target) for p in made())
    assert len({b.source.shape for b in batches}) == 1


def test_sentences_are_told_apart_by_their_words():
    given = [("Hello, world!", "a"), ("Good night", "b")]
    assert pairs.without(given, [("HELLO world.", "c")]) == [("Good night", "b")]


def test_dividing_is_stable_and_disjoint():
    given = [(f"sentence {i}", str(i)) for i in range(300)]
    train, validation = pairs.divide(given)
    assert 10 < len(validation) < 60 and sorted(train + validation) == sorted(given)
    assert set(pairs.divide(given[:150])[1]) <= set(validation)


def test_a_faulty_line_is_named(tmp_path):
    (tmp_path / "p.tsv").write_text("a\tb\nno tab here\n")
    with pytest.raises(ValueError, match=r"p\.tsv:2: 'no tab here'"):
        pairs.read_tsv(tmp_path / "p.tsv")
