"""Parity of the Flax language model with transformers' Qwen2, Llama and Gemma 3 on random small weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import llm, llm_decode
from jaxmoe.model.load import hf_llm
from tests.model import tiny_llm

TOLERANCE = 1e-4  # float32 sums of a few hundred terms in another order


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
MODELS = {  # Gemma ties its embeddings, the others do not
    "qwen2": tiny_llm.model,
    "llama3": lambda: tiny_llm.llama(original_max_position_embeddings=512, **LLAMA3),
    "gemma3": tiny_llm.gemma,
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """transformers' model, and ours read from the folder it wrote."""
    pytest.importorskip("torch")
    model, folder = MODELS[request.param](), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(params=[False, True], ids=["unrolled", "scanned"])
def ours(request, pair):
    dims, params = hf_llm.load(pair[1], stack=request.param)
    return llm.LanguageModel(dims, scan_layers=request.param), params


def batch(side):
    """Tokens [3, 9] and mask of rows of 9, 6 and 2 tokens, more and fewer than Gemma's window, padding on `side`."""
    tokens = np.random.default_rng(1).integers(3, 97, (3, 9))
    mask = np.arange(9)[None, :] < np.array([9, 6, 2])[:, None]
    if side == "left":
        mask = mask[:, ::-1].copy()
    return tokens * mask, mask


def theirs(model, tokens, mask):
    import torch

    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        return model(
            torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(int)),
            position_ids=torch.tensor(positions),
        ).logits.numpy()


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits(pair, ours, side):
    model, params = ours
    tokens, mask = batch(side)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    logits, _ = model.apply({"params": params}, jnp.array(tokens), jnp.array(positions), jnp.array(mask))
    expected = theirs(pair[0], tokens, mask)
    assert np.abs(expected[mask]).max() > 1
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_tokens(pair, ours, side):
    import torch

    model, params = ours
    tokens, mask = batch(side)
    limit = np.array([9, 9, 5])
    out, number = llm_decode.greedy(
        model,
        params,
        jnp.array(tokens),
        jnp.array(mask),
        jnp.array(limit),
        jnp.array([1, 2]),
        slots=20,
    )
    for row in range(3):
        expected = (
            pair[0]
            .generate(
                torch.tensor(tokens[row][mask[row]][None]),
                do_sample=False,
                max_new_tokens=int(limit[row]),
                eos_token_id=[1, 2],
                pad_token_id=410,
            )[0, mask[row].sum() :]
            .tolist()
        )
        expected = [token for token in expected if token not in (1, 2)]
        assert np.asarray(out)[row, : int(number[row])].tolist() == expected


def test_stop_token_ends_a_row(ours):
    model, params = ours
    tokens, mask = batch("left")
    arrays = (jnp.array(tokens), jnp.array(mask), jnp.array([8, 8, 8]))
    out, number = llm_decode.greedy(model, params, *arrays, jnp.array([-1]), slots=17)
    assert number.tolist() == [8, 8, 8]
    stop = int(out[1, 3])
    _, number = llm_decode.greedy(model, params, *arrays, jnp.array([stop]), slots=17)
    first = [row.tolist().index(stop) if stop in row.tolist() else 8 for row in np.asarray(out)]
    assert number.tolist() == first
    assert first[1] <= 3


def test_zero_limit_leaves_a_row_out(ours):
    model, params = ours
    tokens, mask = batch("right")
    limit = jnp.array([4, 0, 4])
    _, number = llm_decode.greedy(model, params, jnp.array(tokens), jnp.array(mask), limit, jnp.array([-1]), slots=13)
    assert number.tolist() == [4, 0, 4]


@pytest.mark.parametrize("side", ["left", "right"])
def test_shared_prefix_equals_the_whole_prompt(ours, side):
    model, params = ours
    tokens, mask = batch(side)
    prompt = np.random.default_rng(2).integers(3, 97, 5)
    prefix = llm_decode.make_prefix(model, params, jnp.array(prompt))
    limit, stop = jnp.array([6, 6, 6]), jnp.array([1])
    out, number = llm_decode.greedy(model, params, jnp.array(tokens), jnp.array(mask), limit, stop, prefix, slots=20)
    whole = np.concatenate([np.tile(prompt, (3, 1)), tokens], axis=1)
    both = np.concatenate([np.ones((3, 5), bool), mask], axis=1)
    expected, count = llm_decode.greedy(model, params, jnp.array(whole), jnp.array(both), limit, stop, slots=20)
    assert number.tolist() == count.tolist()
    for row, n in enumerate(number.tolist()):
        assert out[row, :n].tolist() == expected[row, :n].tolist()


def test_initialised_tree_is_the_loaded_one(pair, ours):
    """Training may start from random parameters: their names and shapes are those that loaders make."""
    model, params = ours
    made = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, 2), jnp.int32),
        jnp.zeros((1, 2), jnp.int32),
        jnp.ones((1, 2), bool),
    )["params"]
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, params)


def test_missing_and_unexpected_names_are_fatal(pair, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, folder = pair
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.extra.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"(?s)- model\.layers\.0\.mlp\.up_proj.*\+ model\.layers\.0\.mlp\.extra"):
        hf_llm.load(tmp_path)


def test_dimensions_are_hashable(ours):
    assert hash(ours[0].dims) == hash(dataclasses.replace(ours[0].dims))
