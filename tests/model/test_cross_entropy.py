"""Cross-entropy read off the vocabulary in chunks, against logits and softmax."""

import jax
import jax.numpy as jnp
import numpy as np
from optax.losses import softmax_cross_entropy_with_integer_labels as reference
import pytest

from jaxmoe.model import cross_entropy


def draw(vocab, rows=12, width=16):
    rng = np.random.default_rng(vocab)
    x = 3.0 * rng.standard_normal((rows, width), dtype=np.float32)
    return x, rng.standard_normal((vocab, width), dtype=np.float32), rng.integers(0, vocab, rows)


@pytest.mark.parametrize("vocab", [50, 64, 200, 193])  # less than a chunk, one, several, and one word over
def test_value_and_gradient_are_those_of_logits(monkeypatch, vocab):
    monkeypatch.setattr(cross_entropy, "CHUNK", 64)
    x, embedding, targets = draw(vocab)
    by = np.linspace(0.0, 2.0, len(x), dtype=np.float32)  # a token's weight reaches its gradient
    got = jax.value_and_grad(lambda x: (cross_entropy.token_nll(x, embedding, targets) * by).sum())(x)
    want = jax.value_and_grad(lambda x: (reference(x @ embedding.T, targets) * by).sum())(x)
    np.testing.assert_allclose(cross_entropy.token_nll(x, embedding, targets) @ by, want[0], rtol=1e-5)  # float32 sums
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)


def test_large_logits_overflow_nowhere(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", 64)
    x, embedding, targets = draw(200)
    value, gradient = jax.value_and_grad(lambda x: cross_entropy.token_nll(x, embedding, targets).sum())(100.0 * x)
    want = reference(100.0 * x.astype(np.float64) @ embedding.T.astype(np.float64), targets).sum()
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_narrow_floats_are_summed_in_wide_ones():
    x, embedding, targets = (jnp.asarray(v, jnp.bfloat16) if v.dtype == np.float32 else v for v in draw(5000))
    got = cross_entropy.token_nll(x, embedding, targets)
    want = reference(x.astype(jnp.float32) @ embedding.astype(jnp.float32).T, targets)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-4)  # logits of bfloat16 would be 0.1 off


def test_no_gradient_reaches_the_embedding():
    x, embedding, targets = draw(200)
    gradient = jax.grad(lambda e: cross_entropy.token_nll(x, e, targets).sum())(embedding)
    assert not np.any(gradient)
