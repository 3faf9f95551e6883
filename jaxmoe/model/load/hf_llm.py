"""Hugging Face folders of Qwen2, Llama, Gemma 3 (config.json, *.safetensors, tokenizer.json) -> llm.LanguageModel."""

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

KINDS = ("qwen2", "llama", "gemma3_text")  # model_type of config.json
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
# Gemma gives the name of the MLP's norm to the one after attention.
GEMMA_NAMES = NAMES | {
    "blocks/attn/query_norm/scale": "model.layers.{}.self_attn.q_norm.weight",
    "blocks/attn/key_norm/scale": "model.layers.{}.self_attn.k_norm.weight",
    "blocks/attn_post_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks/mlp_norm/scale": "model.layers.{}.pre_feedforward_layernorm.weight",
    "blocks/mlp_post_norm/scale": "model.layers.{}.post_feedforward_layernorm.weight",
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
        raise ValueError(f"{folder} holds no *.safetensors; expected the weights of a language model there.")
    # framework="flax": numpy has no bfloat16, the usual type of these files
    opened = [safe_open(file, framework="flax") for file in files]
    where = {name: file for file in opened for name in file.keys()}
    if dims.tied:
        where.pop("lm_head.weight", None)  # some exporters write the embedding twice

    def read(name: str, path: tuple[str, ...]) -> np.ndarray:
        array = np.asarray(where[name].get_tensor(name), np.float32)
        if path[-1] == "kernel":
            return np.ascontiguousarray(array.T)
        return array + more if (more := offset(dims, path)) else array

    return dims, assemble(dims, names(dims), where, read, folder, stack)


def dimensions(path: Path) -> LanguageModelDimensions:
    """What a transformers config.json says.

    Raises:
        ValueError: another architecture, or an option that llm.py does not compute.
    """
    c = json.loads(path.read_text("utf-8"))
    kind = c.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{path}: model_type is {kind!r}; expected one of {', '.join(KINDS)}.")
    if kind != "qwen2" and (c.get("attention_bias") or c.get("mlp_bias")):
        raise ValueError(f"{path}: attention_bias or mlp_bias is on; only Qwen2's biases are supported.")
    if c.get("use_sliding_window"):
        raise ValueError(f"{path}: use_sliding_window is on; only Gemma 3's windows are supported.")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    heads = c["num_attention_heads"]
    width = c.get("head_dim") or c["hidden_size"] // heads
    gemma = kind == "gemma3_text"
    rope = rope.get("full_attention", rope)
    base = float(rope.get("rope_theta", c.get("rope_theta", 1e6 if gemma else 1e4)))
    return LanguageModelDimensions(
        n_vocab=c["vocab_size"],
        n_layer=c["num_hidden_layers"],
        n_state=c["hidden_size"],
        n_head=heads,
        n_kv_head=c.get("num_key_value_heads") or heads,  # older Llamas do not say
        n_head_state=width,
        n_mlp=c["intermediate_size"],
        rope_base=base,
        norm_eps=float(c["rms_norm_eps"]),
        qkv_bias=kind == "qwen2",
        tied=bool(c.get("tie_word_embeddings", gemma)),
        rope_divisors=_divisors(rope, base, width, path),
        **(_gemma(c, path) if gemma else {}),
    )


def _gemma(c: dict[str, Any], path: Path) -> dict[str, Any]:
    """What distinguishes Gemma 3; older files say layers and rotations in other words."""
    if c.get("attn_logit_softcapping") or c.get("final_logit_softcapping") or c.get("use_bidirectional_attention"):
        raise ValueError(f"{path}: soft-capped logits or bidirectional attention are on; Gemma 3's texts have neither.")
    layers, every = c["num_hidden_layers"], c.get("sliding_window_pattern", c.get("_sliding_window_pattern", 6))
    local = [(i + 1) % every != 0 for i in range(layers)]
    if c.get("layer_types"):
        local = [kind == "sliding_attention" for kind in c["layer_types"]]
    rope = (c.get("rope_parameters") or {}).get("sliding_attention", {})
    return gemma_dimensions(
        width=c["hidden_size"],
        local=tuple(local),
        window=c["sliding_window"],
        attention_scale=float(c["query_pre_attn_scalar"]) ** -0.5,
        rope_local_base=float(rope.get("rope_theta", c.get("rope_local_base_freq", 10_000.0))),
    )


def gemma_dimensions(width: int, **more: Any) -> dict[str, Any]:
    """Fields of LanguageModelDimensions that every Gemma 3 of this width has, and `more`."""
    return {"embedding_scale": width**0.5, "gelu": True, "qk_norm": True, "post_norms": True, **more}


def _divisors(rope: dict[str, Any], base: float, width: int, path: Path) -> tuple[float, ...]:
    """What longer contexts divide the rotation's frequencies by: one number, or Llama 3.1's smooth transition.

    Source: transformers' modeling_rope_utils.py, _compute_llama3_parameters.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return ()
    if kind == "linear":
        return (float(rope["factor"]),) * (width // 2)
    if kind != "llama3":
        raise ValueError(f"{path}: rope type is {kind!r}; expected default, linear or llama3.")
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    waves = rope["original_max_position_embeddings"] * base ** (-np.arange(0, width, 2) / width) / (2 * np.pi)
    smooth = np.clip((waves - low) / (high - low), 0.0, 1.0)  # waves in the original context: few are stretched
    return tuple(float(x) for x in 1.0 / ((1.0 - smooth) / factor + smooth))


def names(dims: LanguageModelDimensions) -> dict[str, str]:
    """Our path -> theirs of every parameter that a model of these dimensions has."""
    table = GEMMA_NAMES if dims.post_norms else NAMES
    return {path: name for path, name in table.items() if is_there(dims, path)}


def offset(dims: LanguageModelDimensions, path: tuple[str, ...]) -> float:
    """What is added to the numbers of a file: Gemma keeps its norms' scales less one."""
    return float(dims.post_norms and path[-1] == "scale")


def assemble(
    dims: LanguageModelDimensions,
    names: Mapping[str, str],
    found: Iterable[str],
    read: Callable[[str, tuple[str, ...]], np.ndarray],
    origin: Path,
    stack: bool,
) -> dict[str, Any]:
    """The parameter tree of llm.LanguageModel from tensors of other names.

    names: our path -> theirs with {} for the layer, of what `dims` has; found: their names at hand; read(name, our
    path): one of them as float32, as we have it. Two threads read, a tensor at a time, so that memory stays near the
    size of the result.
    Raises:
        ValueError: tensors missing (-) or unexpected (+), or of another shape than `dims` says.
    """
    wanted: dict[tuple[str, ...], str] = {}  # our path, layers apart -> their name
    for path, name in names.items():
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
        array = read(wanted[path], path)
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
    if path == "output/kernel":
        return not dims.tied
    if path.endswith("bias"):
        return dims.qkv_bias
    if path.endswith(("query_norm/scale", "key_norm/scale")):
        return dims.qk_norm
    return dims.post_norms or "post_norm" not in path


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
        return (d.n_head_state if path[-2] in ("query_norm", "key_norm") else d.n_state,)
    return widths[path[-2]] if path[-1] == "kernel" else widths[path[-2]][1:]
