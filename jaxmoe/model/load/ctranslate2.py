"""Whisper from a CTranslate2 folder (model.bin), as faster-whisper uses it: float32, float16, bfloat16, int16 or int8;
and to one, by CTranslate2's own converter.

Layout of model.bin, little endian: u32 version, string specification, u32 revision, u32 count, then the variables:
string name, u8 rank, u32 sizes, u8 type, u32 bytes, data; then u32 count of aliases: string alias, string name. A
string is u16 length, bytes, NUL. Source: OpenNMT/CTranslate2 4.8.5, python/ctranslate2/specs/model_spec.py, _serialize.
"""

import importlib.util
from pathlib import Path
import re
import struct
from typing import Any

import ml_dtypes
import numpy as np

from jaxmoe.model.load import tree
from jaxmoe.model.whisper import ModelDimensions

_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16)
_SPECIFICATION, _VERSIONS, _REVISION = "WhisperSpec", (5, 6), 3

# Settings of the computation, with the only value that our Whisper implements (None: any).
_SETTINGS = {
    "activation": 3,  # exact GELU
    "alibi": 0,
    "alibi_use_positive_positions": None,
    "alignment_heads": None,
    "alignment_layer": None,
    "layernorm_embedding": 0,
    "multi_query_attention": 0,
    "num_heads": None,
    "pre_norm": 1,
    "scale_alibi": None,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
}

# Our module -> their layer, and which of how many equal row blocks of it. Self-attention is one matrix for query,
# key and value; cross-attention one for query, one for key and value.
_LAYERS = {
    "encoder/conv1": ("encoder/conv1", 0, 1),
    "encoder/conv2": ("encoder/conv2", 0, 1),
    "encoder/ln_post": ("encoder/layer_norm", 0, 1),
    "decoder/ln": ("decoder/layer_norm", 0, 1),
    **{
        f"{part}/blocks/{ours}": (f"{part}/layer_{{l}}/{theirs}", block, blocks)
        for part in ("encoder", "decoder")
        for ours, theirs, block, blocks in (
            ("attn/query", "self_attention/linear_0", 0, 3),
            ("attn/key", "self_attention/linear_0", 1, 3),
            ("attn/value", "self_attention/linear_0", 2, 3),
            ("attn/out", "self_attention/linear_1", 0, 1),
            ("attn_ln", "self_attention/layer_norm", 0, 1),
            ("cross_attn/query", "attention/linear_0", 0, 1),
            ("cross_attn/key", "attention/linear_1", 0, 2),
            ("cross_attn/value", "attention/linear_1", 1, 2),
            ("cross_attn/out", "attention/linear_2", 0, 1),
            ("cross_attn_ln", "attention/layer_norm", 0, 1),
            ("mlp1", "ffn/linear_0", 0, 1),
            ("mlp2", "ffn/linear_1", 0, 1),
            ("mlp_ln", "ffn/layer_norm", 0, 1),
        )
    },
}
_LEAVES = {"kernel": "weight", "bias": "bias"}
_NORM_LEAVES = {"scale": "gamma", "bias": "beta"}
_TABLES = {
    "encoder/positional_embedding": "encoder/position_encodings/encodings",
    "decoder/positional_embedding": "decoder/position_encodings/encodings",
    "decoder/token_embedding/embedding": "decoder/embeddings/weight",
}


def load(folder: Path) -> tuple[ModelDimensions, dict[str, Any]]:
    """Dimensions and float32 parameters of the Whisper in folder/model.bin.

    Raises:
      LoadError: not a Whisper, another layout, a missing or unexpected variable.
    """
    path = folder / "model.bin"
    variables = read_variables(path)
    settings = {name: v for name, v in variables.items() if name.split("/")[-1] in _SETTINGS}
    for name, value in settings.items():
        wanted = _SETTINGS[name.split("/")[-1]]
        if wanted is not None and int(value) != wanted:
            raise tree.LoadError(f"{path}: {name} is {int(value)}, expected {wanted}; no Whisper of OpenAI's differs.")
    weights = {name: v for name, v in variables.items() if name not in settings}
    try:
        dims = _dimensions(variables)
    except KeyError as error:
        raise tree.LoadError(f"{path}: the variable {error} is missing; the file is not a complete Whisper.") from error
    paths = tree.leaf_shapes(dims)
    theirs = {_theirs(p, layer)[0] for p in paths for layer in range(tree.n_layers(dims, p))}
    optional = {"decoder/projection/weight", *(f"{name}_scale" for name in weights)}  # scales: of quantised weights
    tree.check_names(path, theirs, set(weights) - optional)
    _check_projection(path, weights)

    def read(path: str, layer: int) -> np.ndarray:
        name, block, blocks = _theirs(path, layer)
        whole = weights[name]
        rows = slice(block * len(whole) // blocks, (block + 1) * len(whole) // blocks)
        array = whole[rows]
        if (scale := weights.get(f"{name}_scale")) is not None:  # int8: a scale a row; int16: one for all
            scale = np.asarray(scale, np.float32)
            scale = scale[rows].reshape(-1, *(1,) * (array.ndim - 1)) if scale.ndim else scale
            array = array / scale
        return array.T if path.endswith("/kernel") else array

    for key in (p.replace("kernel", "bias") for p in paths if p.endswith("/key/kernel")):
        for layer in range(tree.n_layers(dims, key)):
            if np.any(read(key, layer)):
                raise tree.LoadError(f"{path}: the keys of {key}, layer {layer}, have a bias; Whisper's have none.")
    return dims, tree.build(dims, read)


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a model.bin, aliases resolved, mapped from the file (read-only, in its own type)."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    at = 0

    def take(n: int) -> np.ndarray:
        nonlocal at
        at += n
        if at > len(data):
            raise tree.LoadError(f"{path}: the file ends after {len(data)} of at least {at} bytes; fetch it again.")
        return data[at - n : at]

    def number(code: str) -> int:
        return struct.unpack(f"<{code}", take(struct.calcsize(code)).tobytes())[0]

    def string() -> str:
        return take(number("H")).tobytes().rstrip(b"\0").decode("utf-8", "replace")

    version = number("I")
    specification, revision = (string(), number("I")) if version in _VERSIONS else ("", 0)
    if (specification, revision) != (_SPECIFICATION, _REVISION):
        raise tree.LoadError(
            f"{path}: found version {version}, {specification or 'unknown'} revision {revision}, expected version 6, "
            f"{_SPECIFICATION} revision {_REVISION}; convert the model again with a current CTranslate2."
        )
    variables: dict[str, np.ndarray] = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        code, size = number("B"), number("I")
        if code >= len(_TYPES):
            raise tree.LoadError(f"{path}: {name} has the unknown type {code}.")
        dtype = np.dtype(_TYPES[code])
        # The count of bytes is a u32 and wraps for 4 GiB and more; the shape does not.
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        variables[name] = np.frombuffer(take(size), dtype).reshape(shape)
    for _ in range(number("I")):
        alias, name = string(), string()
        variables[alias] = variables[name]
    return variables


def _theirs(path: str, layer: int) -> tuple[str, int, int]:
    """Their variable for our leaf, and which of how many row blocks of it."""
    if path in _TABLES:
        return _TABLES[path], 0, 1
    module, leaf = path.rsplit("/", 1)
    name, block, blocks = _LAYERS[module]
    leaves = _NORM_LEAVES if name.endswith("layer_norm") else _LEAVES
    return f"{name.format(l=layer)}/{leaves[leaf]}", block, blocks


def _dimensions(variables: dict[str, np.ndarray]) -> ModelDimensions:
    def layers(part: str) -> int:
        return len({m[1] for name in variables if (m := re.match(rf"{part}/layer_(\d+)/", name))})

    width, n_mels, _ = variables["encoder/conv1/weight"].shape
    n_vocab, text_width = variables["decoder/embeddings/weight"].shape
    return ModelDimensions(
        n_mels=n_mels,
        n_audio_ctx=len(variables["encoder/position_encodings/encodings"]),
        n_audio_state=width,
        n_audio_head=int(variables["encoder/num_heads"]),
        n_audio_layer=layers("encoder"),
        n_vocab=n_vocab,
        n_text_ctx=len(variables["decoder/position_encodings/encodings"]),
        n_text_state=text_width,
        n_text_head=int(variables["decoder/num_heads"]),
        n_text_layer=layers("decoder"),
    )


def _check_projection(path: Path, weights: dict[str, np.ndarray]) -> None:
    projection = weights.get("decoder/projection/weight")
    embedding = weights["decoder/embeddings/weight"]
    if projection is not None and projection is not embedding and not np.array_equal(projection, embedding):
        raise tree.LoadError(f"{path}: the output projection is not the token embedding; ours is tied to it.")


def check_converter() -> None:
    """Raises ModuleNotFoundError, with what to do, unless `convert` can run."""
    if missing := [name for name in ("torch", "ctranslate2") if importlib.util.find_spec(name) is None]:
        install = ".venv/bin/python -m pip install -e '.[export]'"
        raise ModuleNotFoundError(f"--format=ctranslate2 needs {' and '.join(missing)}, not installed here: {install}")


def convert(source: Path, folder: Path, quantization: str) -> None:
    """Fills `folder` with what faster-whisper loads without network, from one in transformers' format.

    It is CTranslate2's own converter, with transformers and torch.
    """
    check_converter()
    from ctranslate2.converters import TransformersConverter
    import transformers

    transformers.utils.logging.disable_progress_bar()
    converter = TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"])
    converter.convert(str(folder), quantization=quantization, force=True)  # the folder is there
