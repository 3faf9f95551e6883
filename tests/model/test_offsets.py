"""Offsets are added to the gate's bias and to the encoder's biases and norms, and to nothing else."""

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import offsets
from tests import tiny


def test_composed_parameters_are_the_sums():
    model, base = tiny.make_model(), tiny.make_base()
    params = tiny.make_params(model, base)
    mine = jax.tree.map(lambda x: x + 0.1, offsets.init(model, base))
    mine["gate_bias"] = jnp.arange(tiny.EXPERTS) * 1.0
    own, heard = offsets.compose(params, base, mine)
    embedding = jnp.ones((2, tiny.DIMS.n_audio_state))
    shift = model.gate_logits(own, embedding) - model.gate_logits(params, embedding)
    np.testing.assert_allclose(shift, np.tile(np.arange(3.0), (2, 1)), atol=1e-5)
    before, after = flatten_dict(base, sep="/"), flatten_dict(heard, sep="/")
    for path, x in before.items():
        moves = path.startswith("encoder/") and path.split("/")[-1] in ("bias", "scale")
        np.testing.assert_allclose(after[path], x + 0.1 * moves, atol=1e-6, err_msg=path)
    assert after.keys() == before.keys()
    for name in ("shared", "experts"):
        jax.tree.map(np.testing.assert_array_equal, own[name], params[name])


@pytest.mark.parametrize("rank", [0, 2])
def test_fresh_ones_change_nothing(rank):
    model, base = tiny.make_model(), tiny.make_base()
    params = tiny.make_params(model, base)
    composed = offsets.compose(params, base, offsets.init(model, base, rank))
    jax.tree.map(np.testing.assert_array_equal, composed, (params, base))


def test_the_lora_is_added_to_every_linear_map_of_the_encoder():
    model, base = tiny.make_model(), tiny.make_base()
    mine = offsets.init(model, base, rank=2)
    for ab in mine["lora"].values():
        ab["b"] = jnp.ones_like(ab["b"])
    _, moved = offsets.compose(tiny.make_params(model, base), base, mine)
    before, after = flatten_dict(base, sep="/"), flatten_dict(moved, sep="/")
    for path, x in before.items():
        adds = 0.0
        if ab := mine["lora"].get(path.removesuffix("/kernel")) if path.endswith("/kernel") else None:
            adds = offsets.LORA_SCALE * (ab["a"] @ ab["b"])[:, 0]
        np.testing.assert_allclose(after[path], x + adds, atol=1e-6, err_msg=path)
    assert len(mine["lora"]) == 6 and all(path.startswith("encoder/blocks/") for path in mine["lora"])


def test_without_experts_there_is_no_gate_to_bias():
    model, base = tiny.make_model(num_experts=0), tiny.make_base()
    params = model.init(jax.random.key(0), base)
    mine = offsets.init(model, base)
    assert mine["gate_bias"].size == 0
    own, _ = offsets.compose(params, base, mine)
    jax.tree.map(np.testing.assert_array_equal, own, params)
