"""The gate and its losses against hand-worked values."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.model import gate, moe
from jaxmoe.train import losses


def test_gates_are_the_largest_probabilities_renormalised():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
    np.testing.assert_allclose(gate.top_k_softmax(logits, 2), [[0.625, 0.375, 0], [0, 2 / 9, 7 / 9]], atol=1e-6)
    np.testing.assert_allclose(gate.top_k_softmax(logits, 1), [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(gate.top_k_softmax(logits, 0), jax.nn.softmax(logits), atol=1e-7)
    np.testing.assert_allclose(gate.top_k_softmax(logits, 2, temperature=1e3).sum(-1), 1, atol=1e-6)


def test_gradient_reaches_every_kept_logit_and_no_other():
    logits = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    grad = jax.grad(lambda x: (gate.top_k_softmax(x, 2) * jnp.arange(4.0)).sum())(logits)[0]
    assert (jnp.abs(grad[:2]) > 0.1).all() and (jnp.abs(grad[2:]) < 1e-7).all()


def test_folded_standardisation_is_the_standardised_gate():
    rng = np.random.default_rng(0)
    e = (rng.standard_normal((20, 8)) * rng.uniform(0.1, 5, 8) + rng.standard_normal(8)).astype(np.float32)
    module = gate.Gate(3, 16)
    params = module.init(jax.random.key(0), jnp.zeros((1, 8)))["params"]
    mean, std = e.mean(0), e.std(0)
    folded = gate.fold_standardisation(jax.tree.map(np.asarray, params), mean, std)
    want = module.apply({"params": params}, (e - mean) / std)
    np.testing.assert_allclose(module.apply({"params": folded}, e), want, atol=1e-5)


def test_balance_is_one_when_even_and_e_when_collapsed():
    even = 50.0 * jnp.eye(4)
    collapsed = 50.0 * jnp.tile(jnp.eye(4)[:1], (4, 1))
    np.testing.assert_allclose(losses.load_balance(even), 1.0, atol=1e-5)
    np.testing.assert_allclose(losses.load_balance(collapsed), 4.0, atol=1e-5)


def test_alignment_is_zero_at_the_posterior_and_ignores_unknown_rows():
    posterior = jnp.array([[0.7, 0.2, 0.1], [0.0, 0.0, 0.0]])
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.98, 0.01, 0.01]]))
    np.testing.assert_allclose(losses.alignment(logits, posterior), 0.0, atol=1e-6)
    assert losses.alignment(logits[::-1], posterior) > 0.1


def test_usage_of_hand_made_gates():
    found = moe.usage(np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], float))
    assert found["usage"] == [0.5, 0.5, 0]
    np.testing.assert_allclose(found["effective_experts"], 2.0, atol=1e-6)
    np.testing.assert_allclose(found["gate_entropy"], 0.0, atol=1e-6)
