"""The window-level Q-Former against golden numbers of the original (tests/golden/salmonn)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model.load.salmonn import convert_connector
from jaxmoe.model.load.tree import LoadError
from jaxmoe.model.qformer import Connector, QFormerDimensions
from tests.model import salmonn_golden as golden

DIMS = QFormerDimensions(n_state=32, n_head=4, n_layer=2, n_mlp=64)
SIZES = dict(layers=2, width=64, d=32, mlp=64, speech=48, audio=32)
SPEECH = 2 * golden.r("speech_in", 2 * 100 * 48).reshape(2, 100, 48).astype(np.float32)
AUDIO = 2 * golden.r("audio_in", 2 * 72 * 32).reshape(2, 72, 32).astype(np.float32)
TOLERANCE = 1e-5  # float32 sums of 80 terms in another order


def shapes_of(model, audio: int = 32, speech: int = 48):
    args = (jnp.zeros((1, 100, speech)), jnp.zeros((1, 100, audio)) if audio else None)
    return jax.eval_shape(model.init, jax.random.key(0), *args)["params"]


@pytest.mark.parametrize(
    "tag, queries, window, stride", [("q1", 1, 17, 17), ("q3", 3, 17, 17), ("q1_overlap", 1, 25, 10)]
)
def test_every_stage(tag, queries, window, stride):
    numbers = golden.load("qformer")
    model = Connector(64, DIMS, queries, window, stride)
    tensors = golden.weights(golden.connector_shapes(**SIZES, queries=queries))
    params, _ = convert_connector(tensors, shapes_of(model), 2)
    seen = {}

    def listen(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.name == "qformer":
            seen["windows"], (seen["out"], seen["layers"]) = args[1], out
        return out

    @jax.jit
    def run(params):
        with nn.intercept_methods(listen):
            return model.apply({"params": params}, SPEECH, AUDIO), seen

    embeds, seen = run(params)
    stored = numbers[f"{tag}.windows"]
    np.testing.assert_allclose(seen["windows"][: len(stored)], stored, atol=TOLERANCE)
    np.testing.assert_allclose(seen["layers"][0], numbers[f"{tag}.layer0"], atol=TOLERANCE)
    np.testing.assert_allclose(seen["out"], numbers[f"{tag}.qformer_out"], atol=TOLERANCE)
    np.testing.assert_allclose(embeds, numbers[f"{tag}.llm_embeds"], atol=TOLERANCE)
    assert embeds.shape[1] == model.count(100)


def test_dropout_acts_in_training_only():
    model = Connector(64, DIMS)
    params = convert_connector(golden.weights(golden.connector_shapes(**SIZES)), shapes_of(model), 2)[0]

    @jax.jit
    def run(seed):
        return model.apply({"params": params}, SPEECH, AUDIO, True, rngs={"dropout": jax.random.key(seed)})

    assert np.abs(run(0) - run(1)).max() > 0.1
    np.testing.assert_array_equal(run(0), run(0))


@pytest.mark.parametrize(
    "layers, width, trained, parameters", [(40, 5120, 221, 33_332_992), (32, 4096, 189, 30_186_240)]
)
def test_released_checkpoints_have_the_documented_keys(layers, width, trained, parameters):
    """Every key of ckpt["model"] of the 13B and the 7B, buffers beside them, finds its place."""
    table = golden.connector_shapes(layers, width)
    assert len(table) == trained
    assert sum(int(np.prod(s)) for s in table.values()) == parameters
    tensors = {
        name: np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(golden.connector_shapes(layers, width, buffers=True).items())
    }
    model = Connector(width, QFormerDimensions())
    connector, bank = convert_connector(tensors, shapes_of(model, 768, 1280), layers)
    assert jax.tree.map(np.shape, connector) == jax.tree.map(lambda x: x.shape, shapes_of(model, 768, 1280))
    assert set(bank) == {"blocks/attn/query", "blocks/attn/value"}
    assert bank["blocks/attn/value"]["a"].shape == (layers, 1, width, 8)
    assert bank["blocks/attn/value"]["b"].shape == (layers, 1, 8, width)
    last = f"llama_model.base_model.model.model.layers.{layers - 1}.self_attn.v_proj.lora_B.default.weight"
    assert bank["blocks/attn/value"]["b"][-1, 0, 0, 0] == tensors[last][0, 0]


@pytest.mark.parametrize(
    "name",
    [
        "ln_speech.weight",
        "speech_Qformer.bert.encoder.layer.1.crossattention.self.key.weight",
        "llama_model.base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight",
    ],
)
def test_a_missing_or_unexpected_key_is_fatal(name):
    tensors = golden.weights(golden.connector_shapes(**SIZES))
    tensors[f"{name}s"] = tensors.pop(name)
    with pytest.raises(LoadError, match=rf"(?s)- {name}\n.*\+ {name}s"):
        convert_connector(tensors, shapes_of(Connector(64, DIMS)), 2)
