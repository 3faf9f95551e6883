"""Our Whisper computes what transformers' does: latents, every depth's mean, logits, cached decoding."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.data import audio
from jaxmoe.model.load import hf, load_whisper
from jaxmoe.model.whisper import Whisper
from tests.model.checkpoints import random_whisper, real_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

JFK = Path(__file__).parents[1] / "data" / "jfk.flac"
TOLERANCE = 1e-4  # float32 sums of up to 1500 terms in another order, on values up to 50
LARGE_V3 = dict(  # its shape, but not its width
    num_mel_bins=128, vocab_size=51866, d_model=64, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_layers=4, decoder_layers=2, encoder_ffn_dim=256, decoder_ffn_dim=256,
    max_source_positions=1500, max_target_positions=448,
)  # fmt: skip


def features(n_mels: int) -> np.ndarray:
    samples = audio.pad_or_trim(audio.load_audio(JFK))[None]
    return np.asarray(audio.log_mel_spectrogram(jnp.asarray(samples), n_mels))  # [1, M, N]


def run_ours(dims, params, mel: np.ndarray, tokens: np.ndarray, dtype=jnp.float32):
    model = Whisper(dims, dtype)

    @jax.jit
    def run(params, mel, tokens):
        latents, depths = model.apply({"params": params}, mel, method=lambda m, x: m.encoder(x))
        logits = model.apply({"params": params}, latents, tokens, method="logits")
        return latents, depths, logits

    return tuple(map(np.asarray, run(params, mel, tokens)))


def run_theirs(model, mel: np.ndarray, tokens: np.ndarray):
    with torch.no_grad():
        out = model(
            input_features=torch.tensor(mel, dtype=model.dtype),
            decoder_input_ids=torch.tensor(tokens, dtype=torch.long),
            output_hidden_states=True,
        )
    # The last is after the final norm.
    depths = torch.stack([torch.stack([h.mean(1), h.std(1, correction=0)], 1) for h in out.encoder_hidden_states], 1)
    return tuple(x.numpy() for x in (out.encoder_last_hidden_state, depths, out.logits))


@pytest.fixture(scope="module")
def large_v3(tmp_path_factory):
    model = random_whisper(**LARGE_V3)
    folder = tmp_path_factory.mktemp("large-v3")
    model.save_pretrained(folder)
    dims, params = hf.load(folder)
    return model, dims, params


TOKENS = np.array([[50258, 50259, 50360, 50364, 400, 370], [50258, 50261, 50359, 1, 51865, 7]])


def test_random_model_of_large_v3s_shape(large_v3):
    model, dims, params = large_v3
    assert (dims.n_mels, dims.n_vocab, dims.n_audio_layer, dims.n_text_layer) == (128, 51866, 4, 2)
    mel = np.concatenate([features(128), np.roll(features(128), 700, axis=2)])
    latents, depths, logits = run_ours(dims, params, mel, TOKENS)
    theirs = run_theirs(model, mel, TOKENS)
    np.testing.assert_allclose(latents, theirs[0], atol=TOLERANCE)
    # Ours has every block before the final norm; theirs replaces the last block's output by the normed one.
    np.testing.assert_allclose(depths[:, [0, 1, 2, 3, 5]], theirs[1], atol=TOLERANCE)
    np.testing.assert_allclose(logits, theirs[2], atol=TOLERANCE)


def test_cached_decoding_is_teacher_forcing(large_v3):
    _, dims, params = large_v3
    mel = np.concatenate([features(128)] * 2)
    latents, _, logits = run_ours(dims, params, mel, TOKENS)
    model, variables = Whisper(dims), {"params": params}
    cross = model.apply(variables, jnp.asarray(latents), method=lambda m, h: m.decoder.cross_kv(h))
    cache = model.apply(variables, 2, 8, method=lambda m, *a: m.decoder.init_cache(*a))

    @jax.jit
    def step(tokens, cache, position):
        return model.apply(
            variables, tokens, cross, cache=cache, position=position, method=lambda m, *a, **kw: m.decoder(*a, **kw)
        )

    start, cache = step(jnp.asarray(TOKENS[:, :3]), cache, 0)
    np.testing.assert_allclose(start, logits[:, :3], atol=TOLERANCE)
    for t in range(3, TOKENS.shape[1]):
        one, cache = step(jnp.asarray(TOKENS[:, t : t + 1]), cache, t)
        np.testing.assert_allclose(one[:, 0], logits[:, t], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_real_model_and_its_export(name, tmp_path):
    """CTranslate2's file through our tree into transformers' format: the loop closes only if both tables are right."""
    dims, params, tokenizer = load_whisper(real_weights(name))
    hf.save_hf(tmp_path, dims, params, tokenizer)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = transformers.WhisperProcessor.from_pretrained(tmp_path)
    assert model.generation_config.alignment_heads  # what word timestamps need
    mel = features(dims.n_mels)
    tokens = np.array([[*tokenizer.sot_sequence(), *tokenizer.encode(" And so my fellow Americans, ask not")]])
    ours = run_ours(dims, params, mel, tokens)
    theirs = run_theirs(model, mel, tokens)

    language = {"language": "en"} if tokenizer.is_multilingual else {}
    generated = model.generate(torch.tensor(mel), **language)[0].tolist()
    text = tokenizer.decode(generated)
    assert text.replace(",", "") == (
        " And so my fellow Americans ask not what your country can do for you ask what you can do for your country."
    )
    assert processor.decode(generated, skip_special_tokens=True) == text

    # base's latents reach 24, and in float32 either side is 6e-4 away from float64: neither may be much farther. In
    # float64 nothing but the mathematics can differ.
    exact = run_theirs(model.double(), mel, tokens)
    with jax.enable_x64(True):
        params64 = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        ours64 = run_ours(dims, params64, jnp.asarray(mel, jnp.float64), tokens, jnp.float64)
    np.testing.assert_allclose(ours64[0], exact[0], atol=1e-9)
    np.testing.assert_allclose(ours64[2], exact[2], atol=1e-9)
    allowed = max(TOLERANCE, 2 * np.abs(theirs[0] - exact[0]).max())
    np.testing.assert_allclose(ours[0], exact[0], atol=allowed)
    # Two float32 results, each within 1e-4 of the exact one, can be farther apart than that on some processors.
    np.testing.assert_allclose(ours[2], exact[2], atol=TOLERANCE)
    np.testing.assert_allclose(ours[1][:, -1], theirs[1][:, -1], atol=TOLERANCE)


def test_keys_of_padding_stand_for_computing_it(large_v3):
    _, dims, params = large_v3
    model, half = Whisper(dims), dims.n_audio_ctx // 2
    short = features(128)[..., : dims.n_audio_ctx]
    whole = np.concatenate([short, np.zeros_like(short)], axis=2)
    encode = lambda m, *args: m.encoder(*args)
    (expected, _), sown = model.apply({"params": params}, whole, method=encode, mutable=["attention"])
    ((k, v),) = sown["attention"]["encoder"]["blocks"]["kv"]
    padding = k[:, 0, half:], v[:, 0, half:]
    got, _ = model.apply({"params": params}, short, None, padding, method=encode)
    np.testing.assert_allclose(got, expected[:, :half], atol=TOLERANCE)
    alone, _ = model.apply({"params": params}, short, method=encode)
    assert float(jnp.abs(alone - expected[:, :half]).max()) > 100 * TOLERANCE  # it does hear the padding
