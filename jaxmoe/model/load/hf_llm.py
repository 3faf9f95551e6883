"""Hugging Face folders of Qwen2 or Llama (config.json, *.safetensors, tokenizer.json) -> llm.LanguageModel."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
import json
from pathlib import Path
from typing import Any

from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from jaxmoe.model.llm import LanguageModelDimensions

# ours -> theirs, {} the layer. Kernels are transposed: torch keeps [out, in].
NAMES = {
    "token_embedding/embedding": "model.embed_tokens.weight",
    "blocks/attn_norm/scale": "model.layers.{}.input_layernorm.weight",
    "blocks/attn/query/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "blocks/attn/query/bias": "model.layers.{}.self_attn.q_proj.bias",
    "blocks/attn/key/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "blocks/attn/key/bias": "model.layers.{}.self_attn.k_proj.bias",
    "blocks/attn/value/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "blocks/attn/value/bias": "model.layers.{}.self_attn.v_proj.bias",
    "blocks/attn/out/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "blocks/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks/mlp/gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "blocks/mlp/up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "blocks/mlp/down/kernel": "model.layers.{}.mlp.down_proj.weight",
    "norm/scale": "model.norm.weight",
    "output/kernel": "lm_head.weight",
}


def load(folder: Path, stack: bool = True) -> tuple[LanguageModelDimensions, dict[str, Any]]:
    """Dimensions and float32 parameters, layers stacked on axis 0 unless `stack` is False.

    Raises:
        ValueError: another architecture, or tensors missing (-) or unexpected (+).
    """
    from safetensors import safe_open

    folder = Path(folder)
    dims = dimensions(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors; expected the weights of a Qwen2 model there.")
    # framework="flax": numpy has no bfloat16, the usual type of these files
    opened = [safe_open(file, framework="flax") for file in files]
    where = {name: file for file in opened for name in file.keys()}
    if dims.tied:
        where.pop("lm_head.weight", None)  # some exporters write the embedding twice

    def read(name: str, transpose: bool) -> np.ndarray:
        array = np.asarray(where[name].get_tensor(name), np.float32)
        return np.ascontiguousarray(array.T) if transpose else array

    return dims, assemble(dims, NAMES, where, read, folder, stack)


def dimensions(path: Path) -> LanguageModelDimensions:
    """What a transformers config.json says.

    Raises:
        ValueError: another architecture, or an option that llm.py does not compute.
    """
    c = json.loads(path.read_text("utf-8"))
    kind = c.get("model_type")
    if kind not in ("qwen2", "llama"):
        raise ValueError(f"{path}: model_type is {kind!r}; expected 'qwen2' or 'llama'.")
    if kind == "llama" and (c.get("attention_bias") or c.get("mlp_bias")):
        raise ValueError(f"{path}: attention_bias or mlp_bias is on; only Llamas without biases are supported.")
    if c.get("use_sliding_window"):
        raise ValueError(f"{path}: use_sliding_window is on; only models with full attention are supported.")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"{path}: rope type is {rope}; only the default one is supported.")
    heads = c["num_attention_heads"]
    return LanguageModelDimensions(
        n_vocab=c["vocab_size"],
        n_layer=c["num_hidden_layers"],
        n_state=c["hidden_size"],
        n_head=heads,
        n_kv_head=c.get("num_key_value_heads") or heads,  # older Llamas do not say
        n_head_state=c.get("head_dim") or c["hidden_size"] // heads,
        n_mlp=c["intermediate_size"],
        rope_base=float(rope.get("rope_theta", c.get("rope_theta", 10_000.0))),
        norm_eps=float(c["rms_norm_eps"]),
        qkv_bias=kind == "qwen2",
        tied=bool(c.get("tie_word_embeddings", False)),
    )


def assemble(
    dims: LanguageModelDimensions,
    names: Mapping[str, str],
    found: Iterable[str],
    read: Callable[[str, bool], np.ndarray],
    origin: Path,
    stack: bool,
) -> dict[str, Any]:
    """The parameter tree of llm.LanguageModel from tensors of other names.

    names: our path -> theirs with {} for the layer; found: their names at hand; read(name, transpose): one of them as
    float32. Two threads read, a tensor at a time, so that memory stays near the size of the result.
    Raises:
        ValueError: tensors missing (-) or unexpected (+), or of another shape than `dims` says.
    """
    wanted: dict[tuple[str, ...], str] = {}  # our path, layers apart -> their name
    for path, name in names.items():
        if not is_there(dims, path):
            continue
        first, _, rest = path.partition("/")
        if first == "blocks":
            for i in range(dims.n_layer):
                wanted[f"blocks_{i}", *rest.split("/")] = name.format(i)
        else:
            wanted[first, *rest.split("/")] = name
    missing, unexpected = set(wanted.values()) - set(found), set(found) - set(wanted.values())
    if missing or unexpected:
        lines = [f"- {name}" for name in sorted(missing)] + [f"+ {name}" for name in sorted(unexpected)]
        raise ValueError(f"{origin}: tensors are missing (-) or unexpected (+):\n" + "\n".join(lines))

    def get(path: tuple[str, ...]) -> jax.Array:
        array = read(wanted[path], path[-1] == "kernel")
        expected = shape(dims, path)
        if array.shape != expected:
            raise ValueError(f"{origin}: {wanted[path]} is {array.shape}, expected {expected}.")
        return jax.device_put(array, may_alias=True)  # a CPU's copy of 6 GB takes seconds

    with ThreadPoolExecutor(2) as pool:
        if not stack:
            leaves = pool.map(get, wanted)
            return unflatten_dict(dict(zip(wanted, leaves, strict=True)))
        tree: dict[tuple[str, ...], Any] = {}
        for parts in wanted:
            if not parts[0].startswith("blocks_"):
                tree[parts] = get(parts)
            elif parts[0] == "blocks_0":
                layers = [(f"blocks_{i}", *parts[1:]) for i in range(dims.n_layer)]
                tree["blocks", *parts[1:]] = jnp.stack(list(pool.map(get, layers)))
    return unflatten_dict(tree)


def is_there(dims: LanguageModelDimensions, path: str) -> bool:
    """Whether a model of these dimensions has the parameter."""
    return not ((path == "output/kernel" and dims.tied) or (path.endswith("bias") and not dims.qkv_bias))


def shape(dims: LanguageModelDimensions, path: tuple[str, ...]) -> tuple[int, ...]:
    """Shape of one parameter, layers apart, by its path."""
    d = dims
    widths = {
        "query": (d.n_state, d.n_head * d.n_head_state),
        "key": (d.n_state, d.n_kv_head * d.n_head_state),
        "value": (d.n_state, d.n_kv_head * d.n_head_state),
        "out": (d.n_head * d.n_head_state, d.n_state),
        "gate": (d.n_state, d.n_mlp),
        "up": (d.n_state, d.n_mlp),
        "down": (d.n_mlp, d.n_state),
        "output": (d.n_state, d.n_vocab),
    }
    if path[-1] == "embedding":
        return (d.n_vocab, d.n_state)
    if path[-1] == "scale":
        return (d.n_state,)
    return widths[path[-2]] if path[-1] == "kernel" else widths[path[-2]][1:]
