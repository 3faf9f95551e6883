"""Whisper's weights from transformers' and CTranslate2's files: every value in its place, and no key overlooked."""

import json
from pathlib import Path
import shutil
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxmoe.data.text import Tokenizer
from jaxmoe.model.load import LoadError, ctranslate2, hf, load_whisper, tree
from tests.model.checkpoints import random_whisper, real_weights


def assert_equal(a, b, **tolerance) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random Whisper as transformers saves it, with the tokenizer of tiny.en."""
    out = tmp_path_factory.mktemp("hf")
    random_whisper().save_pretrained(out)
    shutil.copy(real_weights("tiny.en") / "tokenizer.json", out)
    (out / "tokenizer_config.json").write_text('{"tokenizer_class": "WhisperTokenizer"}')
    return out


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_values_are_in_their_places(folder):
    """By hand, for one of each kind: a table that swaps two names of equal shape would pass a shape check."""
    theirs = safetensors.numpy.load_file(folder / "model.safetensors")
    dims, params, tokenizer = load_whisper(folder)
    assert (dims.n_mels, dims.n_audio_layer, dims.n_text_layer, dims.n_audio_head, dims.n_text_head) == (80, 3, 2, 4, 2)
    assert tokenizer.eot == 50256
    encoder, decoder = params["encoder"], params["decoder"]
    expected = {
        "encoder.conv1.weight": encoder["conv1"]["kernel"].transpose(2, 1, 0),
        "encoder.layers.2.self_attn.k_proj.weight": encoder["blocks"]["attn"]["key"]["kernel"][2].T,
        "encoder.layers.1.self_attn_layer_norm.bias": encoder["blocks"]["attn_ln"]["bias"][1],
        "decoder.layers.1.encoder_attn.v_proj.weight": decoder["blocks"]["cross_attn"]["value"]["kernel"][1].T,
        "decoder.layers.0.encoder_attn_layer_norm.weight": decoder["blocks"]["cross_attn_ln"]["scale"][0],
        "decoder.layers.0.fc2.bias": decoder["blocks"]["mlp2"]["bias"][0],
        "decoder.layers.0.final_layer_norm.weight": decoder["blocks"]["mlp_ln"]["scale"][0],
        "decoder.layer_norm.weight": decoder["ln"]["scale"],
        "decoder.embed_positions.weight": decoder["positional_embedding"],
    }
    for name, ours in expected.items():
        np.testing.assert_array_equal(theirs[f"model.{name}"], ours, err_msg=name)


def test_tree_is_that_of_the_model(folder):
    from jaxmoe.model.whisper import Whisper

    dims, params, _ = load_whisper(folder)
    mel, tokens = np.zeros((1, 80, 200), np.float32), np.zeros((1, 4), np.int32)
    shapes = jax.eval_shape(Whisper(dims).init, jax.random.key(0), mel, tokens)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_saved_folder_loads_back_the_same(folder, tmp_path):
    dims, params, tokenizer = load_whisper(folder)
    hf.save_hf(tmp_path / "out", dims, params, tokenizer)
    dims2, params2, tokenizer2 = load_whisper(tmp_path / "out")
    assert dims2 == dims and tokenizer2.suppress_tokens == tokenizer.suppress_tokens
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(tokenizer.suppress_tokens)
    assert_equal(params2, params, rtol=0)
    theirs = safetensors.numpy.load_file(folder / "model.safetensors")
    ours = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert_equal(ours, {n: x for n, x in theirs.items() if n != "proj_out.weight"}, rtol=0)


def test_shards_and_half_precision(folder, tmp_path):
    random_whisper().half().save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    shutil.copy(folder / "tokenizer.json", tmp_path)
    assert_equal(load_whisper(tmp_path)[1], load_whisper(folder)[1], rtol=1e-3, atol=1e-7)  # 11 bits
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(LoadError, match="names model-00002"):
        load_whisper(tmp_path)


def test_missing_and_unexpected_tensors_are_named(copied):
    file = copied / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["model.decoder.layers.0.lora"] = tensors.pop("model.decoder.layers.0.fc1.bias")
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(
        LoadError, match=r"- model\.decoder\.layers\.0\.fc1\.bias\n  \+ model\.decoder\.layers\.0\.lora"
    ):
        load_whisper(copied)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("activation_function", "relu", "activation_function is 'relu', expected 'gelu'"),
        ("model_type", "bart", "model_type is 'bart'"),
        ("encoder_layers", 2, r"\+ model\.encoder\.layers\.2\.fc1\.bias"),
        ("decoder_layers", 3, r"- model\.decoder\.layers\.2\.fc1\.bias"),
        ("num_mel_bins", 128, r"encoder/conv1/kernel, layer 0: found shape \[3, 80, 32\], expected \[3, 128, 32\]"),
    ],
)
def test_a_configuration_of_another_model_is_refused(copied, key, value, message):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(LoadError, match=message):
        load_whisper(copied)


def test_untied_projection_is_refused(copied):
    tensors = safetensors.numpy.load_file(copied / "model.safetensors")
    embedding = tensors["model.decoder.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors | {"proj_out.weight": embedding}, copied / "model.safetensors")
    load_whisper(copied)
    safetensors.numpy.save_file(tensors | {"proj_out.weight": embedding + 1}, copied / "model.safetensors")
    with pytest.raises(LoadError, match="not the token embedding"):
        load_whisper(copied)


def test_saving_an_incomplete_tree_is_refused(folder, tmp_path):
    dims, params, tokenizer = load_whisper(folder)
    del params["decoder"]["ln"]["bias"]
    with pytest.raises(LoadError, match="- decoder/ln/bias"):
        hf.save_hf(tmp_path / "out", dims, params, tokenizer)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_without_weights_says_what_it_found(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(LoadError, match=r"found pytorch_model\.bin, expected a folder with model\.safetensors"):
        load_whisper(tmp_path)


# --- CTranslate2 ---


def write_model_bin(path: Path, variables: dict[str, np.ndarray], aliases: dict[str, str], revision: int = 3) -> None:
    """The layout of ctranslate2.specs.model_spec, version 6."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    types = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}
    out = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", revision, len(variables))
    for name, x in variables.items():
        out += string(name) + struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
        out += struct.pack("<BI", types[x.dtype.name], x.nbytes) + x.tobytes()
    out += struct.pack("<I", len(aliases)) + b"".join(string(a) + string(n) for a, n in aliases.items())
    path.write_bytes(out)


@pytest.fixture(scope="module")
def convert(folder, tmp_path_factory):
    """Converts the random Whisper with CTranslate2's own converter, once a precision."""
    converters = pytest.importorskip("ctranslate2.converters")
    pytest.importorskip("torch")
    done = {}

    def run(quantization: str) -> Path:
        if quantization not in done:
            out = tmp_path_factory.mktemp("ct2") / quantization
            converters.TransformersConverter(str(folder)).convert(str(out), quantization=quantization)
            shutil.copy(folder / "tokenizer.json", out)
            done[quantization] = out
        return done[quantization]

    return run


@pytest.mark.parametrize(
    "quantization, atol",
    [  # rounding of values below 2; the step of int8 is the row's largest / 127, of int16 the matrix's / 1024
        ("float32", 0.0),
        ("float16", 5e-4),
        ("bfloat16", 4e-3),
        ("int8", 4e-3),
        ("int8_float16", 4e-3),
        ("int16", 5e-4),
    ],
)
def test_every_precision_of_ctranslate2(folder, convert, quantization, atol):
    dims, params, _ = load_whisper(folder)
    dims2, params2, tokenizer = load_whisper(convert(quantization))
    assert dims2 == dims and tokenizer.eot == 50256
    assert_equal(params2, params, rtol=0, atol=atol)


@pytest.fixture
def rewritten(convert, tmp_path):
    """Writes the converted model again with changed variables."""
    source = convert("float32")
    read = ctranslate2.read_variables(source / "model.bin")
    variables = {name: np.array(x) for name, x in read.items()}
    del variables["decoder/projection/weight"]

    def run(changes: dict[str, np.ndarray | None], revision: int = 3) -> Path:
        changed = {name: x for name, x in (variables | changes).items() if x is not None}
        aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
        write_model_bin(tmp_path / "model.bin", changed, aliases, revision)
        shutil.copy(source / "tokenizer.json", tmp_path)
        return tmp_path

    return run, variables


def test_variables_missing_and_unexpected(rewritten):
    run, variables = rewritten
    load_whisper(run({}))
    name = "decoder/layer_1/ffn/linear_0/bias"
    with pytest.raises(LoadError, match=f"- {name}\n  \\+ encoder/lora"):
        load_whisper(run({name: None, "encoder/lora": variables[name]}))
    with pytest.raises(LoadError, match="'encoder/conv1/weight' is missing"):
        load_whisper(run({"encoder/conv1/weight": None}))


def test_another_computation_is_refused(rewritten):
    run, variables = rewritten
    with pytest.raises(LoadError, match="decoder/activation is 0, expected 3"):
        load_whisper(run({"decoder/activation": np.array(0, np.int8)}))
    bias = variables["encoder/layer_0/self_attention/linear_0/bias"].copy()
    bias[32] = 1.0  # the first of the keys', after 32 queries
    with pytest.raises(LoadError, match="encoder/blocks/attn/key/bias, layer 0, have a bias"):
        load_whisper(run({"encoder/layer_0/self_attention/linear_0/bias": bias}))
    with pytest.raises(LoadError, match="WhisperSpec revision 4, expected version 6"):
        load_whisper(run({}, revision=4))


def test_a_cut_or_foreign_file_is_refused(rewritten, tmp_path):
    run, _ = rewritten
    path = run({}) / "model.bin"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(LoadError, match="the file ends after"):
        load_whisper(tmp_path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LoadError, match="found version"):
        load_whisper(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(LoadError, match="the file ends after 0"):
        load_whisper(tmp_path)


def test_leaf_shapes_count_the_parameters_of_tiny_en():
    dims, params, tokenizer = load_whisper(real_weights("tiny.en"))
    assert isinstance(tokenizer, Tokenizer)
    assert sum(np.prod(s) for s in tree.leaf_shapes(dims).values()) == 37_760_256  # of openai/whisper's tiny.en
    assert sum(x.size for x in jax.tree.leaves(params)) == 37_760_256
