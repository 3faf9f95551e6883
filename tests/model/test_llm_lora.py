"""Low-rank columns and embeddings in the language model: against PEFT, merged weights and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import llm, llm_decode, lora
from jaxmoe.model.load import hf_llm
from tests.model import tiny_llm

RANK, ALPHA = 4, 8.0
PEFT_NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj", "gate": "gate_proj",
              "up": "up_proj", "down": "down_proj"}  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The folder of a random Qwen2, its scanned form with its parameters, and a bank of adapters that matter."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("qwen2")
    tiny_llm.write_folder(tiny_llm.model(), folder)
    dims, params = hf_llm.load(folder)
    bank = lora.init_bank(jax.random.key(0), lora.linear_shapes(params, [r"blocks/.*"]), num_experts=1, rank=RANK)
    assert len(bank) == 7
    key = iter(jax.random.split(jax.random.key(1), 99))
    bank = lora.map_experts(lambda leaf: leaf + 0.2 * jax.random.normal(next(key), leaf.shape), bank)
    return folder, llm.LanguageModel(dims), params, bank


@pytest.fixture
def inputs():
    tokens = np.random.default_rng(0).integers(3, 390, (2, 6))
    return jnp.array(tokens), jnp.tile(jnp.arange(6), (2, 1)), jnp.ones((2, 6), bool)


def scales(rows):
    return lora.scales(jnp.zeros((rows, 0)), rank=0, shared_rank=RANK, alpha=0.0, shared_alpha=ALPHA)


def test_logits_equal_peft(setting, inputs):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    _, model, params, bank = setting
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(PEFT_NAMES.values()))
    theirs = peft.get_peft_model(tiny_llm.model(), config).eval()
    for path, ab in bank.items():
        _, part, name = path.split("/")
        for i, layer in enumerate(theirs.base_model.model.model.layers):
            linear = getattr(getattr(layer, {"attn": "self_attn"}.get(part, part)), PEFT_NAMES[name])
            linear.lora_A["default"].weight.data = torch.tensor(np.array(ab["a"][i, 0].T))
            linear.lora_B["default"].weight.data = torch.tensor(np.array(ab["b"][i, 0].T))
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(inputs[0]))).logits.numpy()
    columns = lora.nested(lora.stack(bank, {}))
    got, _ = model.apply({"params": params, "lora": columns}, *inputs, scales=scales(2))
    plain, _ = model.apply({"params": params}, *inputs)
    assert np.abs(np.asarray(plain) - expected).max() > 1
    np.testing.assert_allclose(got, expected, atol=2e-4)  # float32 sums of a few hundred terms in another order


def test_a_model_layer_by_layer_takes_unstacked_columns_or_merged_weights(setting, inputs):
    folder, model, params, bank = setting
    columns = lora.stack(bank, {})
    want, _ = model.apply({"params": params, "lora": lora.nested(columns)}, *inputs, scales=scales(2))
    dims, apart = hf_llm.load(folder, stack=False)
    unrolled = llm.LanguageModel(dims, scan_layers=False)
    columns = lora.unstack(columns)
    got, _ = unrolled.apply({"params": apart, "lora": lora.nested(columns)}, *inputs, scales=scales(2))
    np.testing.assert_allclose(got, want, atol=2e-4)
    merged, _ = unrolled.apply({"params": lora.merge(apart, columns, scales(1)[0])}, *inputs)
    np.testing.assert_allclose(merged, want, atol=2e-4)


def test_embeddings_in_place_of_tokens(setting, inputs):
    """The same logits, and the same continuation after a prompt padded on the left."""
    _, model, params, _ = setting
    tokens, positions, mask = inputs
    x = model.apply({"params": params}, tokens, method="embed")
    read = lambda x: model.apply({"params": params}, x, positions, mask, method="from_embeddings")[0]
    want, _ = model.apply({"params": params}, *inputs)
    np.testing.assert_array_equal(read(x), want)
    mask = mask.at[1, :2].set(False)
    said = [llm_decode.greedy(model, params, p, mask, jnp.array([5, 5]), jnp.array([1]), slots=12) for p in (tokens, x)]
    np.testing.assert_array_equal(*(out for out, _ in said))


def test_gradient_of_embeddings_equals_transformers(setting, inputs):
    torch = pytest.importorskip("torch")
    _, model, params, _ = setting
    tokens, positions, mask = inputs
    x = model.apply({"params": params}, tokens, method="embed")
    theirs = torch.tensor(np.array(x), requires_grad=True)
    torch.tanh(tiny_llm.model()(inputs_embeds=theirs).logits).mean().backward()
    read = lambda x: model.apply({"params": params}, x, positions, mask, method="from_embeddings")[0]
    got = jax.grad(lambda x: jnp.tanh(read(x)).mean())(x)
    expected = theirs.grad.numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_logits_are_read_where_asked(setting, inputs):
    _, model, params, _ = setting
    want, _ = model.apply({"params": params}, *inputs)
    at = jnp.array([[1, 4], [0, 5]])
    got, _ = model.apply({"params": params}, *inputs, read=at)
    np.testing.assert_allclose(got, jnp.take_along_axis(want, at[..., None], axis=1), atol=1e-5)
