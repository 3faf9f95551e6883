"""Batches: an order that only the seed and the step decide, shards that make up the whole, little padding."""

import jax
import numpy as np
import pytest

from jaxmoe.data.batches import BatchSource, bucket_sizes, iterate
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


def test_buckets_cover_and_fit():
    lengths = np.random.default_rng(0).integers(50, 700, 500)
    sizes = bucket_sizes(lengths, 4, 50)
    assert (sizes >= lengths).all() and len(set(sizes)) <= 4
    assert sizes.sum() / lengths.sum() < bucket_sizes(lengths, 1, 50).sum() / lengths.sum()


def test_a_batch_that_does_not_divide_is_an_error(utterances):
    with pytest.raises(ValueError, match="does not divide"):
        make(utterances, process=(0, 3))
