"""Parity of Marian with transformers' MarianMTModel on random weights, and adapters in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import beam, lora, marian
from jaxmoe.model.load import marian as loader

V, PAD, EOS = 60, 59, 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' model, and ours read from the folder it wrote."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=V, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, activation_function="swish",
        scale_embedding=True, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD, forced_eos_token_id=None,
        max_position_embeddings=64, init_std=0.3,
    )  # fmt: skip
    model = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(0.3 * torch.randn_like(parameter))  # zeros and ones hide a swap
        model.final_logits_bias.copy_(torch.randn(1, V))
        model.model.shared.weight[PAD] = torch.randn(32)
    folder = tmp_path_factory.mktemp("marian")
    model.save_pretrained(folder)
    dims, params = loader.load(folder)
    return model, folder, marian.Marian(dims), params


@pytest.fixture(scope="module")
def sources():
    """[3, 7] tokens of 7, 5 and 2, padded on the right as transformers wants it, and on the left."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, V - 1, n) for n in (7, 5, 2)]
    right, left = np.full((3, 7), PAD), np.full((3, 7), PAD)
    for i, row in enumerate(rows):
        right[i, : len(row)], left[i, 7 - len(row) :] = row, row
    return right, left


def test_logits(pair, sources):
    import torch

    theirs, _, model, params = pair
    right, left = sources
    tokens = np.concatenate([np.full((3, 1), PAD), np.random.default_rng(1).integers(1, V - 1, (3, 5))], axis=1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(right),
            attention_mask=torch.tensor((right != PAD).astype(int)),
            decoder_input_ids=torch.tensor(tokens),
        ).logits.numpy()
    assert np.abs(expected).max() > 1
    for source in (right, left):
        got = model.apply({"params": params}, jnp.array(source), jnp.array(source != PAD), jnp.array(tokens))
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_greedy_text(pair, sources):
    import torch

    theirs, _, model, params = pair
    right, left = sources
    limit = np.array([12, 12, 5])
    out, number = marian.greedy(model, params, jnp.array(left), jnp.array(left != PAD), jnp.array(limit), 12)
    said = []
    for row in range(3):
        ids = right[row][right[row] != PAD]
        expected = theirs.generate(
            torch.tensor(ids[None]), do_sample=False, num_beams=1, max_new_tokens=int(limit[row]), bad_words_ids=[[PAD]]
        )[0, 1:].tolist()
        expected = expected[: expected.index(EOS)] if EOS in expected else expected
        assert out[row, : int(number[row])].tolist() == expected
        said.append(tuple(expected))
    assert len(set(said)) > 1


@pytest.mark.parametrize(
    "beams, penalty, early, louder", [(4, 1.0, False, 4.5), (6, 1.0, True, 6), (5, 0.3, False, 4), (4, 2.0, False, 6)]
)
def test_beam_text(pair, beams, penalty, early, louder):
    """Forty sources at once; transformers one by one. `louder`: added to the end token's logit, else no text ends."""
    import torch

    theirs, _, model, params = pair
    rng = np.random.default_rng(beams)
    rows = [rng.integers(1, V - 1, n) for n in rng.integers(1, 8, 40)]
    limit = rng.integers(3, 13, 40)
    left = np.stack([np.concatenate([np.full(8 - len(row), PAD), row]) for row in rows])
    with_stops = {**params, "final_bias": params["final_bias"] + louder * (np.arange(V) == EOS)}
    quiet = theirs.final_logits_bias.clone()
    theirs.final_logits_bias[0, EOS] += louder
    arrays = (jnp.array(left), jnp.array(left != PAD), jnp.array(limit))
    out, number = marian.beam_search(
        model, with_stops, *arrays, beam.Rules(EOS, penalty, early), beams=beams, slots=12
    )
    greedy, short = marian.greedy(model, with_stops, *arrays, 12)
    expected = []
    for row in range(40):
        said = theirs.generate(
            torch.tensor(rows[row][None]), do_sample=False, num_beams=beams, length_penalty=penalty,
            early_stopping=early, max_new_tokens=int(limit[row]), bad_words_ids=[[PAD]], renormalize_logits=True,
        )[0, 1:].tolist()  # fmt: skip
        expected.append(said[: said.index(EOS)] if EOS in said else said)
    theirs.final_logits_bias.copy_(quiet)
    text = lambda out, number: [ids[:n].tolist() for ids, n in zip(np.asarray(out), np.asarray(number), strict=True)]
    assert text(out, number) == expected
    assert text(greedy, short) != expected
    assert len(set(map(tuple, expected))) > 3 and 0 < sum(map(len, expected)) < limit.sum()


def test_adapters_applied_equal_merged(pair, sources):
    _, _, model, params = pair
    bank = lora.init_bank(jax.random.key(0), lora.linear_shapes(params, [r"(.*/)?blocks/.*"]), num_experts=1, rank=2)
    assert len(bank) == 6 + 10
    bank = lora.map_experts(lambda leaf: leaf + 0.1, bank)
    columns, left = lora.stack(bank, {}), sources[1]
    tokens = jnp.full((3, 4), PAD)
    args = (jnp.array(left), jnp.array(left != PAD), tokens)
    scales = lora.one_scale(bank, 4.0, 3)
    got = model.apply({"params": params, "lora": lora.nested(columns)}, *args, scales)
    merged = model.apply({"params": lora.merge(params, columns, scales[0])}, *args)
    assert np.abs(got - model.apply({"params": params}, *args)).max() > 0.1
    np.testing.assert_allclose(got, merged, atol=1e-4)


def test_missing_and_unexpected_names_are_fatal(pair, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(pair[1] / "model.safetensors")
    tensors["model.encoder.layers.0.fc9.weight"] = tensors.pop("model.encoder.layers.0.fc1.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((pair[1] / "config.json").read_text())
    with pytest.raises(ValueError, match=r"(?s)- model\.encoder\.layers\.0\.fc1.*\+ model\.encoder\.layers\.0\.fc9"):
        loader.load(tmp_path)


def test_a_bin_file_gives_the_same_parameters(pair, tmp_path):
    import torch

    theirs, folder, _, params = pair
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    _, got = loader.load(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, params))
