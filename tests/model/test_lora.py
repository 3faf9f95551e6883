"""LoRA columns against the formula written out, against merged weights, and against PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import lora, whisper
from tests import tiny


@pytest.fixture(scope="module")
def parts():
    base, model = tiny.make_base(), tiny.make_model()
    return base, model, tiny.make_params(model, base)


def test_mixture_is_the_weighted_sum_of_experts():
    key = jax.random.key(0)
    x = jax.random.normal(key, (2, 5, 8))
    shapes = {"m": (1, 8, 6)}
    shared = lora.init_bank(key, shapes, num_experts=1, rank=3)
    experts = lora.init_bank(jax.random.key(1), shapes, num_experts=4, rank=2)
    filled = lambda bank, k: lora.map_experts(lambda v: v + jax.random.normal(jax.random.key(k), v.shape), bank)
    shared, experts = filled(shared, 2), filled(experts, 3)
    gates = jnp.array([[0.1, 0.0, 0.6, 0.3], [0.0, 1.0, 0.0, 0.0]])
    columns = lora.stack(shared, experts)
    scales = lora.scales(gates, rank=2, shared_rank=3, alpha=8.0, shared_alpha=6.0)
    got = ((x @ columns["m"]["a"][0]) * scales[:, None]) @ columns["m"]["b"][0]
    want = (6.0 / 3) * (x @ shared["m"]["a"][0, 0]) @ shared["m"]["b"][0, 0]
    for e in range(4):
        part = (x @ experts["m"]["a"][0, e]) @ experts["m"]["b"][0, e]
        want = want + gates[:, e, None, None] * (8.0 / 2) * part
    np.testing.assert_allclose(got, want, atol=1e-4)  # float32 sums of ~100 products


def test_applied_equals_merged(parts):
    base, model, params = parts
    latents = jax.random.normal(jax.random.key(5), (3, 40, tiny.DIMS.n_audio_state))
    tokens = jnp.arange(18).reshape(3, 6)
    gates = jnp.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    applied = model.logits(base, params, latents, tokens, gates)
    columns = lora.stack(params["shared"], params["experts"])
    for i, row in enumerate(model.scales(gates)):
        merged = lora.merge(base, columns, row)
        alone = model.whisper.apply({"params": merged}, latents[i : i + 1], tokens[i : i + 1], method="logits")
        np.testing.assert_allclose(applied[i], alone[0], atol=1e-4)  # order of float32 sums differs


def test_fresh_adapters_and_no_gates_are_the_base_model(parts):
    base, model, _ = parts
    params = model.init(jax.random.key(0), base)
    latents = jax.random.normal(jax.random.key(5), (1, 40, tiny.DIMS.n_audio_state))
    tokens = jnp.arange(6).reshape(1, 6)
    plain = model.whisper.apply({"params": base}, latents, tokens, method="logits")
    adapted = model.logits(base, params, latents, tokens, jnp.ones((1, tiny.EXPERTS)) / tiny.EXPERTS)
    np.testing.assert_array_equal(plain, adapted)  # B is zero: nothing is added


def test_permuting_experts_permutes_nothing_else(parts):
    base, model, params = parts
    latents = jax.random.normal(jax.random.key(5), (2, 40, tiny.DIMS.n_audio_state))
    tokens = jnp.arange(12).reshape(2, 6)
    gates = jnp.array([[0.2, 0.3, 0.5], [0.7, 0.3, 0.0]])
    order = jnp.array([2, 0, 1])
    permuted = {**params, "experts": lora.map_experts(lambda v: v[:, order], params["experts"])}
    before = model.logits(base, params, latents, tokens, gates)
    after = model.logits(base, permuted, latents, tokens, gates[:, order])
    np.testing.assert_allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("exact_top_k", [True, False], ids=["chosen experts", "all experts"])
def test_reading_latents_equals_keys_and_values_and_so_do_gradients(parts, exact_top_k, monkeypatch):
    base, _, _ = parts
    base = jax.tree.map(lambda x: x + 0.05, base)  # biases count
    model = tiny.make_model(num_experts=8)
    params = tiny.make_params(model, base)
    latents = jax.random.normal(jax.random.key(5), (3, 40, tiny.DIMS.n_audio_state))
    tokens, mask = jnp.arange(18).reshape(3, 6), jnp.arange(40)[None] < jnp.array([[10], [25], [40]])
    gates = model.gates(3.0 * jax.random.normal(jax.random.key(6), (3, 8)))

    def loss(params, gates):
        return jnp.square(model.logits(base, params, latents, tokens, gates, mask, exact_top_k=exact_top_k)).mean()

    read = jax.value_and_grad(loss, argnums=(0, 1))(params, gates)
    monkeypatch.setattr(whisper, "READ_LATENTS_UP_TO", 0)
    made = jax.value_and_grad(loss, argnums=(0, 1))(params, gates)
    np.testing.assert_allclose(read[0], made[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(read[1]), jax.tree.leaves(made[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()) + 1e-7)  # float32 sums in another order


def test_a_pattern_that_matches_nothing_is_an_error(parts):
    with pytest.raises(ValueError, match="matches no linear map"):
        lora.linear_shapes(parts[0], [r"decoder/blocks/atn/.*"])


def test_update_equals_peft():
    """PEFT's Linear with the same A and B: y = W x + (alpha / r) B A x (Hu et al. 2021, eq. 3)."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    rng = np.random.default_rng(0)
    w, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((6, 8), (8, 2), (2, 6)))
    x = rng.standard_normal((3, 8)).astype(np.float32)
    net = torch.nn.Sequential(torch.nn.Linear(8, 6, bias=False))
    net[0].weight.data = torch.from_numpy(w)
    net = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["0"]))
    layer = net.base_model.model[0]
    layer.lora_A["default"].weight.data = torch.from_numpy(a.T.copy())
    layer.lora_B["default"].weight.data = torch.from_numpy(b.T.copy())
    want = net(torch.from_numpy(x)).detach().numpy()
    module = lora.LoRADense(6, use_bias=False)
    scales = lora.scales(jnp.ones((1, 1)), rank=2, shared_rank=0, alpha=8.0, shared_alpha=1.0)
    got = module.apply({"params": {"kernel": w.T}, "lora": {"a": a, "b": b}}, x[None], scales)
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_transposed_kernels_give_the_same_map():
    rng = np.random.default_rng(0)
    x, w, c = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 8), (8, 6), 6))
    params = {"block": {"kernel": w, "bias": c}, "norm": {"scale": c}, "stacked": {"kernel": w[None]}}
    lora.transpose_kernels(params)
    assert set(params["block"]) == {"kernel_t", "bias"} and set(params["stacked"]) == {"kernel"}
    got = lora.LoRADense(6).apply({"params": params["block"]}, x)
    np.testing.assert_allclose(got, x @ w + c, atol=1e-5)
