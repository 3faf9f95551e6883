"""The connector's start: CTC over distances to the language model's own embeddings."""

from functools import partial
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.data.prompted import PromptedSource
from jaxmoe.phases.salmonn import make_step
from jaxmoe.train import optimizer, spelling
from jaxmoe.train import state as states
from tests.train.test_salmonn import WRAPPING, setting  # noqa: F401  a fixture


def source_of(utterances, batch_size=4):
    return PromptedSource(utterances, WRAPPING, batch_size=batch_size, steps=1, seed=0, translation_share=0.0)


def probability(near: np.ndarray, text: list[int]) -> float:
    """Of all alignments of [W, K + 1] that spell `text`, one after the other."""
    p = np.exp(near - np.logaddexp.reduce(near, axis=1, keepdims=True))
    total = 0.0
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        if [k for k, _ in itertools.groupby(path) if k] == text:
            total += float(np.prod([p[w, k] for w, k in enumerate(path)]))
    return total


def test_the_loss_is_that_of_all_alignments():
    near = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    heard = np.arange(5)[None] < np.array([[5], [4]])
    texts = [[2, 2, 3], [1, 3]]
    first, second = (-np.log(probability(near[i, : heard[i].sum()], text)) for i, text in enumerate(texts))
    labels = np.array([[2, 2, 3, 1], [1, 3, 1, 1]])
    spelt = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
    loss, count = spelling.ctc_nll(near, heard, labels, spelt)
    assert float(loss) == pytest.approx(first + second, rel=1e-5) and float(count) == 5.0
    # four tokens, two of them equal, do not fit into four places
    labels[1], spelt[1] = [1, 2, 2, 3], 1.0
    loss, count = spelling.ctc_nll(near, heard, labels, spelt)
    assert float(loss) == pytest.approx(first, rel=1e-5) and float(count) == 3.0


def test_an_embedding_is_nearest_to_its_token_and_their_mean_to_the_blank(setting):  # noqa: F811
    model, base, _ = setting
    table = model.embed(base, jnp.arange(3, 20))
    near = spelling.logits(jnp.concatenate([table, table.mean(0, keepdims=True)])[None], table)[0]
    assert near.argmax(1).tolist() == [*range(1, 18), 0]


def test_only_the_connector_learns_and_the_loss_falls(setting):  # noqa: F811
    model, base, utterances = setting
    params = model.init(jax.random.key(0))
    labels = optimizer.label(params, [r"connector/.*"])
    tx = optimizer.make_tx(labels, lr=3e-3, steps=60, warmup=1, weight_decay=0.0, clip_norm=1.0)
    tokens = spelling.vocabulary(utterances)
    step = jax.jit(make_step(partial(spelling.nll, model, tokens), tx))
    state, batch, seen = states.create(params, tx, 0), source_of(utterances)[0], []
    for _ in range(20):
        state, metrics = step(state, base, batch)
        seen.append(float(metrics["loss"]))
    assert np.isfinite(seen).all() and seen[-1] < 0.8 * seen[0]
    jax.tree.map(np.testing.assert_array_equal, params["lora"], state.params["lora"])
