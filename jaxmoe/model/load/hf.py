"""Whisper in transformers' format: a folder with config.json and safetensors, read and written."""

from collections.abc import Mapping
import json
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxmoe.data.text import Tokenizer
from jaxmoe.model.load import tree
from jaxmoe.model.whisper import ModelDimensions

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_CONFIG = {  # our dimension -> the key in config.json
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
_SETTINGS = {"activation_function": "gelu", "scale_embedding": False}  # what our Whisper computes

_MODULES = {  # our module -> theirs, below "model."
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/ln_post": "encoder.layer_norm",
    "decoder/ln": "decoder.layer_norm",
    **{
        f"{part}/blocks/{ours}": f"{part}.layers.{{l}}.{theirs}"
        for part in ("encoder", "decoder")
        for ours, theirs in (
            ("attn/query", "self_attn.q_proj"),
            ("attn/key", "self_attn.k_proj"),
            ("attn/value", "self_attn.v_proj"),
            ("attn/out", "self_attn.out_proj"),
            ("attn_ln", "self_attn_layer_norm"),
            ("cross_attn/query", "encoder_attn.q_proj"),
            ("cross_attn/key", "encoder_attn.k_proj"),
            ("cross_attn/value", "encoder_attn.v_proj"),
            ("cross_attn/out", "encoder_attn.out_proj"),
            ("cross_attn_ln", "encoder_attn_layer_norm"),
            ("mlp1", "fc1"),
            ("mlp2", "fc2"),
            ("mlp_ln", "final_layer_norm"),
        )
    },
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_EMBEDDING = "model.decoder.embed_tokens.weight"
_TABLES = {
    "encoder/positional_embedding": "model.encoder.embed_positions.weight",
    "decoder/positional_embedding": "model.decoder.embed_positions.weight",
    "decoder/token_embedding/embedding": _EMBEDDING,
}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "normalizer.json")


def tensor_name(path: str, layer: int) -> str:
    """transformers' name of one layer of our leaf."""
    if path in _TABLES:
        return _TABLES[path]
    module, leaf = path.rsplit("/", 1)
    return f"model.{_MODULES[module].format(l=layer)}.{_LEAVES[leaf]}"


def load(folder: Path) -> tuple[ModelDimensions, dict[str, Any]]:
    """Dimensions and float32 parameters of the Whisper in a folder of transformers' format.

    Raises:
      LoadError: another architecture or activation, a missing or unexpected tensor, a shape that is not the
        configuration's.
    """
    dims = _read_dims(folder / "config.json")
    files = _files_by_tensor(folder)
    # The projection is tied to the embedding: some files hold it twice, some only once, under either name.
    if _EMBEDDING not in files and "proj_out.weight" in files:
        embedding = "proj_out.weight"
    else:
        embedding = _EMBEDDING
    paths = tree.leaf_shapes(dims)
    names = {tensor_name(path, layer) for path in paths for layer in range(tree.n_layers(dims, path))}
    found = {_EMBEDDING if name == embedding else name for name in files} - {"proj_out.weight"}
    tree.check_names(folder, names, found)
    opened = {f: safetensors.safe_open(str(folder / f), framework="numpy") for f in set(files.values())}
    if embedding == _EMBEDDING and "proj_out.weight" in files:
        tensors = [opened[files[n]].get_tensor(n) for n in (_EMBEDDING, "proj_out.weight")]
        if not np.array_equal(*tensors):
            raise tree.LoadError(f"{folder}: proj_out.weight is not the token embedding; ours is tied to it.")

    def read(path: str, layer: int) -> np.ndarray:
        name = embedding if path in _TABLES and _TABLES[path] == _EMBEDDING else tensor_name(path, layer)
        array = opened[files[name]].get_tensor(name)
        return array.T if path.endswith("/kernel") else array

    return dims, tree.build(dims, read)


def _read_dims(path: Path) -> ModelDimensions:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise tree.LoadError(f"{path}: {error}; transformers' config.json is expected here.") from error
    if config.get("model_type") != "whisper":
        raise tree.LoadError(f"{path}: model_type is {config.get('model_type')!r}, expected 'whisper'.")
    for key, wanted in _SETTINGS.items():
        if config.get(key, wanted) != wanted:
            raise tree.LoadError(f"{path}: {key} is {config[key]!r}, expected {wanted!r}; only that is implemented.")
    if missing := sorted(set(_CONFIG.values()) - set(config)):
        raise tree.LoadError(f"{path} lacks {', '.join(missing)}; take the file of the original model.")
    return ModelDimensions(**{ours: int(config[theirs]) for ours, theirs in _CONFIG.items()})


def _files_by_tensor(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, of one file or of shards with their index."""
    if (folder / SINGLE).is_file():
        with safetensors.safe_open(str(folder / SINGLE), framework="numpy") as f:
            return dict.fromkeys(f.keys(), SINGLE)
    files: dict[str, str] = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
    if absent := sorted(name for name in set(files.values()) if not (folder / name).is_file()):
        raise tree.LoadError(f"{folder}: {INDEX} names {', '.join(absent)}, which is not there; fetch it again.")
    return files


def save_hf(
    folder: str | Path,
    dims: ModelDimensions,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    dtype: Any = np.float32,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that transformers' WhisperForConditionalGeneration and WhisperProcessor read.

    Args:
      folder: is made; files in it of the same names are replaced.
      params: the tree of load_whisper, complete.
      tokenizer: its files are copied.
      dtype: of the tensors written.
      generation: what generation_config.json says beside the defaults.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = {"/".join(k): v for k, v in _flatten(params)}
    shapes = tree.leaf_shapes(dims)
    tree.check_names("the tree to be saved", shapes, flat)
    tensors: dict[str, np.ndarray] = {}
    for path, shape in shapes.items():
        if np.shape(flat[path]) != shape:
            raise tree.LoadError(f"{path}: found shape {list(np.shape(flat[path]))}, expected {list(shape)}.")
        leaf = np.asarray(flat[path])
        for layer, array in enumerate(leaf if "/blocks/" in path else leaf[None]):
            array = array.T if path.endswith("/kernel") else array
            tensors[tensor_name(path, layer)] = np.ascontiguousarray(array, dtype)
    part = folder / f"{SINGLE}.part"
    safetensors.numpy.save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, folder / SINGLE)
    files = _json_files(dims, tokenizer, np.dtype(dtype).name)
    files["generation_config.json"] |= generation or {}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    for name in _TOKENIZER_FILES:
        if tokenizer.folder and (source := tokenizer.folder / name).is_file() and source.parent != folder:
            shutil.copyfile(source, folder / name)
    if not (folder / "tokenizer.json").exists():  # of older folders: faster-whisper knows no other file
        tokenizer.save(folder / "tokenizer.json")


def _flatten(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(node, Mapping):
        return [(path, node)]
    return [leaf for name, child in node.items() for leaf in _flatten(child, (*path, name))]


def _alignment_heads(folder: Path | None) -> list[list[int]] | None:
    """The [layer, head] pairs of word timestamps: CTranslate2 keeps them in config.json, transformers apart."""
    for name in ("generation_config.json", "config.json"):
        if folder and (folder / name).is_file():
            if heads := json.loads((folder / name).read_text("utf-8")).get("alignment_heads"):
                return heads
    return None


def _json_files(dims: ModelDimensions, tokenizer: Tokenizer, dtype: str) -> dict[str, dict[str, Any]]:
    """config.json, generation_config.json and the two that WhisperProcessor needs."""
    ids = {
        "bos_token_id": tokenizer.eot,
        "eos_token_id": tokenizer.eot,
        "pad_token_id": tokenizer.eot,
        "decoder_start_token_id": tokenizer.sot,
    }
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        **{theirs: getattr(dims, ours) for ours, theirs in _CONFIG.items()},
        "encoder_ffn_dim": 4 * dims.n_audio_state,
        "decoder_ffn_dim": 4 * dims.n_text_state,
        "num_hidden_layers": dims.n_audio_layer,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        **_SETTINGS,
        **ids,
    }
    generation: dict[str, Any] = {
        **ids,
        "is_multilingual": tokenizer.is_multilingual,
        "max_length": dims.n_text_ctx,
        "no_timestamps_token_id": tokenizer.no_timestamps,
        "prev_sot_token_id": tokenizer.sot_prev,
        "max_initial_timestamp_index": 50,  # 1 s, as openai/whisper
        "return_timestamps": False,
        "suppress_tokens": list(tokenizer.suppress_tokens),
        "begin_suppress_tokens": list(tokenizer.suppress_begin),
    }
    if tokenizer.is_multilingual:
        generation["lang_to_id"] = {f"<|{x}|>": tokenizer.language_id(x) for x in tokenizer.languages}
        generation["task_to_id"] = {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate}
    if heads := _alignment_heads(tokenizer.folder):
        generation["alignment_heads"] = heads
    return {
        "config.json": config,
        "generation_config.json": generation,
        "tokenizer_config.json": {
            "tokenizer_class": "WhisperTokenizer",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": 1024,
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "processor_class": "WhisperProcessor",
            "feature_size": dims.n_mels,
        },
    }
