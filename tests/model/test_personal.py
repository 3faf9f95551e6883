"""Personal parameters fold into the mixture exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import lora, personal
from tests import tiny


@pytest.mark.parametrize("shared_rank", [3, 0])
def test_composed_parameters_add_the_personal_update(shared_rank):
    """logits(composed) = logits of the mixture with W + (alpha / R) A B merged into the base."""
    model, base = tiny.make_model(shared_rank=shared_rank), tiny.make_base()
    params = tiny.make_params(model, base)
    mine = personal.init(model, base, jax.random.key(5), rank=2)
    mine["lora"] = {p: {"a": ab["a"], "b": ab["b"] + 0.1} for p, ab in mine["lora"].items()}
    mine["gate_bias"] = jnp.arange(tiny.EXPERTS) * 1.0
    wide, composed = personal.widened(model, 2), personal.compose(params, mine)
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((2, 20, tiny.DIMS.n_audio_state)), jnp.float32)
    tokens, embedding = jnp.asarray(rng.integers(0, 300, (2, 5))), latents.mean(1)
    gate_logits = wide.gate_logits(composed, embedding)
    np.testing.assert_allclose(gate_logits, model.gate_logits(params, embedding) + jnp.arange(3.0), atol=1e-5)
    gates = wide.gates(gate_logits)
    ratio = model.alpha / model.rank
    merged = lora.merge(base, lora.stack(mine["lora"], {}), jnp.full(2, ratio))
    want = model.logits(merged, params, latents, tokens, gates)
    got = wide.logits(base, composed, latents, tokens, gates)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(got - model.logits(base, params, latents, tokens, gates)).max() > 1e-2


def test_fresh_personal_parameters_change_nothing():
    model, base = tiny.make_model(), tiny.make_base()
    params = tiny.make_params(model, base)
    mine = personal.init(model, base, jax.random.key(5), rank=2)
    composed = personal.compose(params, mine)
    scales = personal.widened(model, 2).scales(jnp.ones((1, 3)) / 3)
    assert scales.shape == (1, 5 + 3 * 2)
    latents, tokens = jnp.ones((1, 20, tiny.DIMS.n_audio_state)), jnp.ones((1, 4), jnp.int32)
    gates = jnp.ones((1, 3)) / 3
    got = personal.widened(model, 2).logits(base, composed, latents, tokens, gates)
    np.testing.assert_allclose(got, model.logits(base, params, latents, tokens, gates), atol=1e-5)
