"""Batches: an order that only the seed and the step decide, shards that make up the whole, little padding."""

from collections import Counter
import dataclasses

import jax
import numpy as np
import pytest

from jaxmoe.data.batches import BatchSource, bucket_sizes, draws_per_epoch, every_utterance, iterate
from tests import tiny


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    return tiny.make_utterances(tmp_path_factory.mktemp("embeddings"), count=40)


def make(utterances, **changes):
    return BatchSource(utterances, **(dict(batch_size=8, steps=20, seed=0) | changes))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


def test_a_batch_is_a_function_of_seed_and_step(utterances):
    forward, backward = make(utterances), make(utterances)
    batches = [forward[i] for i in range(12)]
    assert all(same(backward[i], batches[i]) for i in reversed(range(12)))
    assert not same(make(utterances, seed=1)[0], batches[0])


def test_an_epoch_holds_every_utterance_once(utterances):
    source = make(utterances)
    seen = [tuple(row) for i in range(5) for row in source[i].embedding[:, :3]]
    assert len(set(seen)) == 40
    assert {tuple(row) for i in range(5, 10) for row in source[i].embedding[:, :3]} == set(seen)


@pytest.mark.parametrize("batch_size", [8, 1000])
def test_validation_counts_every_utterance_once(utterances, batch_size):
    batches = list(every_utterance(utterances, batch_size))
    assert len({(b.latents.shape, b.tokens.shape) for b in batches}) == 1 and len(batches[0].index) == batch_size
    counted = np.concatenate([b.index[b.weights.any(-1)] for b in batches])
    assert counted.tolist() == list(range(len(utterances)))


def test_processes_share_a_batch_out(utterances):
    whole, parts = make(utterances, process=(0, 1)), [make(utterances, process=(i, 2)) for i in range(2)]
    for step in range(6):
        for i, part in enumerate(parts):
            assert same(part[step], jax.tree.map(lambda x, i=i: x[i::2], whole[step]))


def test_targets_are_the_next_tokens_and_the_prompt_is_not_learnt(utterances):
    batch = make(utterances)[0]
    counted = batch.weights > 0
    np.testing.assert_array_equal(batch.tokens[:, 1:][counted[:, :-1]], batch.targets[:, :-1][counted[:, :-1]])
    assert not counted[:, 0].any()  # <|startoftranscript|> -> the second prompt token
    assert (batch.targets[counted].reshape(-1) == 256).sum() == 8  # one end of text a row
    np.testing.assert_array_equal(batch.latents[~batch.mask], 0)


def test_the_iterator_resumes_where_it_was(utterances):
    straight = [b.tokens for b in iterate(make(utterances))]
    it = iterate(make(utterances))
    for _ in range(7):
        next(it)
    position = it.get_state()
    again = iterate(make(utterances))
    again.set_state(position)
    np.testing.assert_array_equal(next(again).tokens, straight[7])


def padding(sizes, lengths):
    return 1 - lengths.sum() / sizes.sum()


@pytest.mark.parametrize("seed", range(4))
def test_buckets_cover_and_keep_padding_low(seed):
    """Lengths as of recordings: log-normal, from a word to 30 s."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(50 * np.exp(rng.normal(1.7, 0.7, 3000)), 20, 1500).astype(int)
    sizes = bucket_sizes(lengths, 10)
    assert (sizes >= lengths).all() and len(set(sizes)) <= 12 and padding(sizes, lengths) < 0.15
    one = bucket_sizes(lengths, 10, most=1)
    assert len(set(one)) == 1 and padding(one, lengths) > 0.5


def test_buckets_are_the_best_of_their_number():
    lengths = np.array([1, 2, 3, 9, 10, 30])
    best = min(
        np.where(lengths <= a, a, np.where(lengths <= b, b, 30)).sum() for a in range(1, 30) for b in range(a + 1, 30)
    )
    assert bucket_sizes(lengths, 1, padding=0.0, most=3).sum() == best
    assert bucket_sizes(np.array([7, 7]), 10).tolist() == [10, 10]


def test_an_epoch_keeps_padding_under_15_percent(tmp_path):
    """Batches included that hold the last of one bucket and the first of the next."""
    utterances = tiny.make_utterances(tmp_path, count=400)
    source = make(utterances)
    assert source.padding()[0] < 0.15 < make(utterances, buckets=1).padding()[0]
    batch = source[3]
    assert batch.mask.any(axis=0).all(), "no batch is wider than its longest bucket needs"


def test_a_batch_that_does_not_divide_is_an_error(utterances):
    with pytest.raises(ValueError, match="does not divide"):
        make(utterances, process=(0, 3))


GROUPS = ["en"] * 30 + ["Welsh"] * 6 + ["unknown"] * 4


def test_reweighted_groups_are_drawn_equally_often(utterances):
    """30 and 6 utterances give 18 each of the 36 draws that are theirs; those of no known group stay as they are."""
    source = make(dataclasses.replace(utterances, groups=GROUPS), steps=100)
    picked = [[int(i) for step in range(5 * epoch, 5 * epoch + 5) for i in source[step].index] for epoch in range(20)]
    for epoch in picked:
        drawn = Counter(GROUPS[i] for i in epoch)
        assert all(abs(drawn[name] - share) <= 1 for name, share in (("en", 18), ("Welsh", 18), ("unknown", 4)))
        assert set(Counter(i for i in epoch if GROUPS[i] == "Welsh").values()) <= {2, 3, 4}
    drawn = Counter(i for epoch in picked for i in epoch)
    assert all(drawn[i] > 0 for i in range(40)), "nobody is left out for good"
    assert draws_per_epoch(GROUPS) == pytest.approx([0.6] * 30 + [3.0] * 6 + [1.0] * 4)


def test_reweighted_batches_are_a_function_of_seed_and_step(utterances):
    grouped = dataclasses.replace(utterances, groups=GROUPS)
    forward, backward = make(grouped), make(grouped)
    batches = [forward[i] for i in range(12)]
    assert all(same(backward[i], batches[i]) for i in reversed(range(12)))
    assert not same(make(grouped, seed=1)[0], batches[0])
