"""SALMONN as a whole against golden numbers of the original (tests/golden/salmonn): logits, loss, gradients, tokens."""

import dataclasses
import functools

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmoe.model import llm_beam
from jaxmoe.model.beats import Beats
from jaxmoe.model.llm import LanguageModel, LanguageModelDimensions
from jaxmoe.model.llm_decode import empty_cache
from jaxmoe.model.load import hf, hf_llm, tree
from jaxmoe.model.load import salmonn as load
from jaxmoe.model.qformer import Connector
from jaxmoe.model.salmonn import Prompted, Salmonn
from jaxmoe.model.whisper import Encoder, ModelDimensions
from jaxmoe.train import losses
from tests.model import salmonn_golden as golden
from tests.model import test_beats, test_qformer

WHISPER = ModelDimensions(80, 100, 48, 4, 2, 1, 1, 48, 4, 1)
LLM = LanguageModelDimensions(260, 2, 64, 4, 4, 16, 128, 10_000.0, 1e-6, False, False)
PROMPTS = ["<Speech><SpeechHere></Speech> Put it in German.", "<Speech><SpeechHere></Speech> German, please!!"]
TARGETS = ["Guten Tag</s>", "Hallo, Welt. Wie geht es dir heute? Mir geht es gut.</s>"]
BOS, PAD = 1, 259


def tokens(text: str) -> list[int]:
    """The golden numbers' tokenizer: a byte is its value + 3, </s> is 2."""
    head, stop, _ = text.partition("</s>")
    return [3 + b for b in head.encode()] + [2] * bool(stop)


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    size = max(map(len, rows))
    return np.array([r + [PAD] * (size - len(r)) for r in rows]), np.array(
        [[1] * len(r) + [0] * (size - len(r)) for r in rows]
    )


def whisper_params() -> dict:
    """The encoder's; its MLP is half as wide as Whisper's, and the other half is zeros, which changes nothing."""

    def read(path: str, layer: int) -> np.ndarray:
        shape = tree.leaf_shapes(WHISPER)[path]
        shape = shape[1:] if "/blocks/" in path else shape
        narrow = tuple(96 if n == 192 else n for n in shape)
        name = hf.tensor_name(path, layer).replace("model.encoder", "speech_encoder")
        array = golden.weight(name, narrow[::-1] if path.endswith("kernel") else narrow)
        array = array.T if path.endswith("kernel") else array
        return np.pad(array, [(0, m - n) for m, n in zip(shape, narrow, strict=True)])

    leaves = {
        p: np.stack([read(p, i) for i in range(2)]) if "/blocks/" in p else read(p, 0)
        for p in tree.leaf_shapes(WHISPER)
        if p.startswith("encoder/")
    }
    return unflatten_dict(leaves, sep="/")["encoder"]


def llm_params(tensors: dict | None = None, stack: bool = True) -> dict:
    tensors = tensors or golden.weights(golden.llama_shapes(2, 64, 128, 260), "llama_model.base_model.model.")
    read = lambda name, path: np.ascontiguousarray(tensors[name].T if path[-1] == "kernel" else tensors[name])
    return hf_llm.assemble(LLM, hf_llm.names(LLM), tensors, read, "golden", stack)


@pytest.fixture(scope="module")
def setting():
    """Model, base, params, batch."""
    connector = Connector(64, test_qformer.DIMS)
    model = Salmonn(Encoder(WHISPER), Beats(test_beats.DIMS), connector, LanguageModel(LLM), 8, 32.0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    connector, bank = load.convert_connector(
        golden.weights(golden.connector_shapes(**test_qformer.SIZES)), shapes["connector"], 2
    )
    assert jax.tree.map(np.shape, bank) == jax.tree.map(lambda x: x.shape, shapes["lora"])
    sounds = golden.weights(golden.beats_shapes(**test_beats.SIZES), "beats.")
    base = {
        "whisper": whisper_params(),
        "beats": load.convert_beats(sounds, test_beats.shapes_of(test_beats.DIMS)),
        "llm": llm_params(),
    }
    audio, padding = golden.waves()
    mel = golden.r("spectrogram", 2 * 80 * 200).reshape(2, 80, 200).astype(np.float32)
    speech, _ = jax.jit(model.encoder.apply)({"params": base["whisper"]}, mel)
    wrapped = ["USER: " + p + "\nASSISTANT:" for p in PROMPTS]
    before = np.array([[BOS, *tokens(w.split("<SpeechHere>")[0])] for w in wrapped])
    after, after_mask = padded([tokens(w.split("<SpeechHere>")[1]) for w in wrapped])
    targets, weights = padded([tokens(t)[:40] for t in TARGETS])
    audio = audio.astype(np.float32)
    batch = Prompted(speech, None, audio, padding, before, after, after_mask > 0, targets, weights * 1.0)
    return model, base, {"connector": connector, "lora": bank}, batch


def test_inputs(setting):
    model, base, params, batch = setting
    numbers = golden.load("salmonn")
    np.testing.assert_allclose(batch.speech, numbers["whisper_out"], atol=1e-4)
    x, mask = jax.jit(model.prompt)(base, params, batch)
    given = x.shape[1]
    np.testing.assert_array_equal(mask, numbers["attention_mask"][:, :given] > 0)
    np.testing.assert_allclose(x, numbers["inputs_embeds"][:, :given], atol=1e-4)
    labels = np.where(batch.weights > 0, batch.targets, -100)
    np.testing.assert_array_equal(labels, numbers["labels"][:, given:])


def test_windows_after_the_speech_are_not_heard(setting):
    """BEATs' 72 tokens make four windows, of which 40 positions of speech begin three."""
    model, base, params, batch = setting
    batch = batch.replace(speech=batch.speech[:, :40], heard=np.ones((2, 40), bool))
    _, mask = jax.jit(model.prompt)(base, params, batch)
    before = batch.before.shape[1]
    np.testing.assert_array_equal(mask[:, before : before + 4], [[True, True, True, False]] * 2)


def test_logits_loss_and_gradients(setting):
    model, base, params, batch = setting
    numbers = golden.load("salmonn")

    @jax.jit
    @jax.value_and_grad
    def loss_fn(params):
        nll = model.token_nll(base, params, batch, count_padding=True)
        return losses.mean_nll((nll * batch.weights).sum(1), batch.weights)

    logits = jax.jit(model.logits, static_argnames="count_padding")(base, params, batch, count_padding=True)
    expected = numbers["logits"][:, -1 - batch.targets.shape[1] : -1]
    real = batch.weights > 0
    assert np.abs(expected[real]).max() > 1
    np.testing.assert_allclose(np.asarray(logits)[real], expected[real], atol=1e-4)
    loss, grads = loss_fn(params)
    assert float(loss) == pytest.approx(6.135015964508057, abs=1e-5)
    hits = (np.asarray(logits).argmax(-1) == batch.targets) & real
    assert [hits.sum(), real.sum()] == numbers["correct_total"].tolist()
    np.testing.assert_allclose(gradient_norms(grads), numbers["grad_norms"], rtol=1e-4, atol=1e-6)
    assert (numbers["grad_norms"] == 0).sum() == 8


def gradient_norms(grads) -> list[float]:
    """L2 norms in the sorted order of the original's keys: ours renamed by the loader's own table."""
    norms, theirs = {}, load._names(load._CONNECTOR)
    for path, leaf in flatten_dict(grads["connector"], sep="/").items():
        stacked = "blocks" in path.split("/")
        for i in range(leaf.shape[0] if stacked else 1):
            norms[theirs(path).format(i)] = np.linalg.norm(leaf[i] if stacked else leaf)
    for path, name in load._LORA_MAPS.items():
        for part, x in grads["lora"][path].items():
            norms |= {load._LORA.format(i, name, part.upper()): np.linalg.norm(x[i]) for i in range(2)}
    return [norms[name] for name in sorted(norms)]


@functools.partial(jax.jit, static_argnames=("model", "beams", "limit"))
def search(model, merged, x, mask, penalty, beams, limit):
    """First logits, tokens and their number. The original reads the last slot even where it is padding, and gives
    padding position 1."""
    length, slots = x.shape[1], x.shape[1] + beams * limit
    positions = jnp.where(mask, mask.cumsum(1) - 1, 1)
    logits, cache = model.apply(
        {"params": merged}, x, positions, jnp.pad(mask, ((0, 0), (0, slots - length))), method="from_embeddings",
        cache=empty_cache(model, 2, slots), read=jnp.full(2, length - 1),
    )  # fmt: skip
    return logits, *llm_beam.extend(model, merged, logits, cache, mask, 2, penalty, beams=beams, max_tokens=limit)


@pytest.mark.parametrize(
    "tag, beams, penalty, loud, scan",
    [
        ("gen_beam1", 1, 1.0, False, True),
        ("gen_beam4", 4, 1.0, False, True),
        ("gen_beam4", 4, 1.0, False, False),
        ("eos4_beam1_lp1", 1, 1.0, True, True),
        ("eos4_beam4_lp0", 4, 0.0, True, True),
        ("eos4_beam4_lp1", 4, 1.0, True, True),
        ("eos4_beam4_lp2", 4, 2.0, True, True),
    ],
)
def test_tokens(setting, tag, beams, penalty, loud, scan):
    """Both items at once; the original ran them one by one. `loud`: with the end token's row of the head times 4."""
    whole, _, params, _ = setting
    numbers = golden.load("salmonn")
    model = LanguageModel(LLM, scan_layers=scan)
    tensors = golden.weights(golden.llama_shapes(2, 64, 128, 260), "llama_model.base_model.model.")
    if loud:
        tensors["lm_head.weight"][2] *= 4
    merged = dataclasses.replace(whole, llm=model).merged({"llm": llm_params(tensors, stack=scan)}, params)
    x, mask = numbers["gen_embeds"], numbers["gen_mask"] > 0
    logits, out, number = search(model, merged, x, mask, penalty, beams, 24 if loud else 16)
    if not loud:
        np.testing.assert_allclose(logits, numbers["gen_first_logits"], atol=1e-4)
    for row in range(2):
        expected = [t for t in numbers[f"{tag}_item{row}"][0, 1:].tolist() if t != 2]  # after a BOS of its own
        assert np.asarray(out)[row, : int(number[row])].tolist() == expected
