"""BEATs and its filter bank against golden numbers of the original (tests/golden/salmonn)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.data.fbank import kaldi_fbank, mel_weights
from jaxmoe.model import beats
from jaxmoe.model.load.salmonn import convert_beats
from jaxmoe.model.load.tree import LoadError
from tests.model import salmonn_golden as golden

DIMS = beats.BeatsDimensions(
    n_layer=3, n_state=32, n_head=4, n_mlp=64, n_patch_state=24, conv_width=8, conv_groups=4, n_buckets=32,
    max_distance=80,
)  # fmt: skip
SIZES = dict(layers=3, d=32, heads=4, mlp=64, patch=24, conv=8, groups=4, buckets=32, classes=0)
TOLERANCE = 1e-4  # float32 sums in another order; values up to 10


@pytest.fixture(scope="module")
def numbers():
    return golden.load("beats")


def shapes_of(dims):
    model = beats.Beats(dims)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 128)), jnp.zeros((1, 32), bool))["params"]


@pytest.fixture(scope="module")
def params():
    return convert_beats(golden.weights(golden.beats_shapes(**SIZES), "beats."), shapes_of(DIMS))


def test_the_formula_of_the_golden_weights():
    np.testing.assert_allclose(golden.r("abc", 3), [-0.83306282, -0.74720516, 0.59537503], atol=1e-8)
    np.testing.assert_allclose(golden.weight("ln_speech.weight", (48,))[:3], [1.1149025, 0.8449273, 0.80197746])


def test_filter_bank(numbers):
    fbank = jax.jit(kaldi_fbank)(golden.waves()[0].astype(np.float32))
    # Under a strong tone the energy of the lowest band is float32's rounding of it: 6.5e-5 there, 2e-5 elsewhere.
    np.testing.assert_allclose(fbank, numbers["fbank_f64in"], atol=1e-4)
    np.testing.assert_allclose(kaldi_fbank(jnp.zeros((1, 400))), -2.391693, atol=1e-6)
    assert mel_weights()[3].sum() == 0 and mel_weights()[:, 256].sum() == 0


@pytest.mark.parametrize("tag", ["nomask", "mask"])
def test_every_stage(numbers, params, tag):
    fbank = jnp.asarray(numbers["fbank_f64in"])
    padding = jnp.asarray(golden.waves()[1] & (tag == "mask"))
    frames = beats.coarsen_mask(padding, fbank.shape[1])
    if tag == "mask":
        np.testing.assert_array_equal(frames, numbers["frame_mask"])
        np.testing.assert_array_equal(beats.coarsen_mask(frames, 72), numbers["mask.token_mask"])
    run = jax.jit(lambda *args: beats.Beats(DIMS).apply({"params": params}, *args, capture_intermediates=True))
    (out, layers), seen = run(fbank, frames)
    seen = seen["intermediates"]
    got = {
        "patch_ln": seen["patch_ln"]["__call__"][0],
        "proj": seen["patch_proj"]["__call__"][0],
        "pos_conv": jax.nn.gelu(seen["pos_conv"]["__call__"][0], approximate=False),
        "enc_in": seen["ln"]["__call__"][0],
        **{f"layer{i}": layers[i] for i in range(3)},
        "out": out,
    }
    for name, value in got.items():
        np.testing.assert_allclose(value, numbers[f"{tag}.{name}"], atol=TOLERANCE, err_msg=name)


def test_position_bias_and_buckets(numbers, params):
    bias = beats.RelativeBias(DIMS).apply({"params": params["relative_bias"]}, 72)
    np.testing.assert_allclose(bias, numbers["pos_bias_ungated"], atol=1e-6)
    for n, furthest in ((320, 800), (32, 80)):
        np.testing.assert_array_equal(
            beats.buckets(numbers["rel_pos"].astype(int), n, furthest), numbers[f"bucket_{n}_{furthest}"]
        )


def test_full_size_has_the_documented_keys():
    """252 keys and 90,717,055 parameters with the predictor: every one of ours has its shape in the table."""
    table = golden.beats_shapes()
    assert len(table) == 252
    copies = 11 * 320 * 12  # one table, listed under every layer
    assert sum(int(np.prod(s)) for s in table.values()) - copies == 90_717_055
    two = beats.BeatsDimensions(n_layer=2)
    ones = {name: np.broadcast_to(np.float32(1), shape) for name, shape in golden.beats_shapes(layers=2).items()}
    made = convert_beats(ones, shapes_of(two))
    assert jax.tree.map(np.shape, made) == jax.tree.map(lambda x: x.shape, shapes_of(two))


@pytest.mark.parametrize("name", ["encoder.layers.1.fc1.weight", "encoder.pos_conv.0.weight_g"])
def test_a_missing_or_unexpected_key_is_fatal(name):
    tensors = golden.weights(golden.beats_shapes(**SIZES), "beats.")
    tensors[f"{name}s"] = tensors.pop(name)
    with pytest.raises(LoadError, match=rf"(?s)- {name}\n.*\+ {name}s"):
        convert_beats(tensors, shapes_of(DIMS))

