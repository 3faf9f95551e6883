"""Products in bfloat16: rounded operands, sums in float32, and only where the setting asks for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import lora
from jaxmoe.model.precision import NARROW, matmul, narrow

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((5, 64)).astype(np.float32), RNG.standard_normal((64, 7)).astype(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


@pytest.mark.parametrize("rows", [1, 5])
def test_operands_are_rounded_and_sums_are_not(rows):
    x = X[:rows]
    with jax.default_matmul_precision(NARROW):
        got, turned = matmul(x, W), lora.by_rows(jnp.asarray(x), jnp.asarray(W.T))
    want = rounded(x) @ rounded(W)
    assert got.dtype == turned.dtype == jnp.float32
    for found in (got, turned):  # float32's rounding of 64 terms; bfloat16's is four orders of magnitude above it
        np.testing.assert_allclose(found, want, atol=1e-5)
    assert np.abs(np.asarray(got) - x @ W).max() > 1e-3


def test_nothing_is_rounded_unless_asked_for():
    np.testing.assert_allclose(matmul(X, W), X.astype(np.float64) @ W, atol=1e-5)
    assert narrow(jnp.asarray(X)).dtype == jnp.float32
    with jax.default_matmul_precision(NARROW):
        assert narrow(jnp.arange(3)).dtype == jnp.int32
        assert narrow(jnp.asarray(X, jnp.float16)).dtype == jnp.float16


def test_a_program_compiled_for_one_precision_does_not_serve_the_other():
    program = jax.jit(matmul)
    exact = program(X, W)
    with jax.default_matmul_precision(NARROW):
        assert not np.array_equal(program(X, W), exact)
    np.testing.assert_array_equal(program(X, W), exact)
