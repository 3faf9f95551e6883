"""SALMONN's own weights: salmonn_v1.pth (connector and LoRA) and the BEATs file, every key accounted for.

Both are files of torch.save, read by load/torch_file.py. Tensors of torch are [out, in, *window]; ours are
[*window, in, out].
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
import re
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
import numpy as np

from jaxmoe.model.beats import BeatsDimensions
from jaxmoe.model.load import torch_file, tree
from jaxmoe.model.load.tree import LoadError

Tensors = Mapping[str, Any]  # name -> array

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}

# Our modules -> theirs, {} the layer.
_BEATS = {
    "patch_embedding": "patch_embedding",
    "patch_ln": "layer_norm",
    "patch_proj": "post_extract_proj",
    "pos_conv": "encoder.pos_conv.0",
    "ln": "encoder.layer_norm",
    "relative_bias": "encoder.layers.0.self_attn.relative_attention_bias",
    "blocks/attn/query": "encoder.layers.{}.self_attn.q_proj",
    "blocks/attn/key": "encoder.layers.{}.self_attn.k_proj",
    "blocks/attn/value": "encoder.layers.{}.self_attn.v_proj",
    "blocks/attn/out": "encoder.layers.{}.self_attn.out_proj",
    "blocks/attn/gate": "encoder.layers.{}.self_attn.grep_linear",
    "blocks/attn_ln": "encoder.layers.{}.self_attn_layer_norm",
    "blocks/mlp1": "encoder.layers.{}.fc1",
    "blocks/mlp2": "encoder.layers.{}.fc2",
    "blocks/mlp_ln": "encoder.layers.{}.final_layer_norm",
}
_LAYER = "speech_Qformer.bert.encoder.layer.{}"
_CONNECTOR = {
    "ln_speech": "ln_speech",
    "ln_audio": "ln_audio",
    "proj": "speech_llama_proj",
    "qformer/ln": "speech_Qformer.bert.embeddings.LayerNorm",
    **{
        f"qformer/blocks/{ours}/{part}": f"{_LAYER}.{theirs}.self.{part}"
        for ours, theirs in (("attn", "attention"), ("cross_attn", "crossattention"))
        for part in ("query", "key", "value")
    },
    "qformer/blocks/attn/out": f"{_LAYER}.attention.output.dense",
    "qformer/blocks/attn_ln": f"{_LAYER}.attention.output.LayerNorm",
    "qformer/blocks/cross_attn/out": f"{_LAYER}.crossattention.output.dense",
    "qformer/blocks/cross_attn_ln": f"{_LAYER}.crossattention.output.LayerNorm",
    "qformer/blocks/mlp1": f"{_LAYER}.intermediate_query.dense",
    "qformer/blocks/mlp2": f"{_LAYER}.output_query.dense",
    "qformer/blocks/mlp_ln": f"{_LAYER}.output_query.LayerNorm",
}
_LORA = "llama_model.base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.default.weight"
_LORA_MAPS = {"blocks/attn/query": "q", "blocks/attn/value": "v"}
# Buffers of the modules, and the one shared parameter that named_parameters() lists once: nothing to load.
_BUFFERS = (
    r"speech_Qformer\.bert\.embeddings\.position_ids",
    r"llama_model\.base_model\.model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    r"beats\.encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight",
)


class _Taken:
    """Tensors by name, noting which were read."""

    def __init__(self, tensors: Tensors, where: object):
        self.tensors, self.where = tensors, where
        self.missing: list[str] = []
        self.seen: set[str] = set()

    def read(self, name: str) -> np.ndarray | None:
        if name.endswith("pos_conv.0.weight"):  # weight norm, one for each of the last axis: w = g v / |v|
            g, v = self.read(f"{name}_g"), self.read(f"{name}_v")
            return None if g is None or v is None else g * v / np.sqrt(np.square(v).sum((0, 1), keepdims=True))
        self.seen.add(name)
        if name not in self.tensors:
            self.missing.append(name)
            return None
        return np.asarray(self.tensors[name], np.float32)

    def read_all(self, names: Sequence[str]) -> list[np.ndarray]:
        """All of them, or none if one is missing."""
        found = [x for x in map(self.read, names) if x is not None]
        return found if len(found) == len(names) else []

    def finish(self, ignored: Sequence[str]) -> None:
        """Raise LoadError if a name was missing, or one is there that nobody read."""
        rest = {n for n in set(self.tensors) - self.seen if not any(re.fullmatch(p, n) for p in ignored)}
        tree.check_names(self.where, self.seen, (self.seen - set(self.missing)) | rest)


def _fill(shapes: Any, theirs: Callable[[str], str], taken: _Taken) -> Any:
    """A tree like `shapes` from tensors of torch; leaves under "blocks" are stacked over the {} of their names."""
    out = {}
    for path, leaf in flatten_dict(shapes, sep="/").items():
        stacked = "blocks" in path.split("/")
        names = [theirs(path).format(i) for i in range(leaf.shape[0] if stacked else 1)]
        wanted = leaf.shape[1:] if stacked else leaf.shape
        arrays = [_ours(path, x) for x in taken.read_all(names)]
        for name, array in zip(names, arrays, strict=False):
            if array.shape != wanted:
                raise LoadError(
                    f"{taken.where}: {name} gives {list(array.shape)}, expected {list(wanted)}; "
                    "the weights and their configuration are not of one model."
                )
        if arrays:
            out[path] = np.stack(arrays) if stacked else arrays[0]
    return unflatten_dict(out, sep="/")


def _ours(path: str, array: np.ndarray) -> np.ndarray:
    if path.endswith("/kernel"):
        return array.transpose(*range(2, array.ndim), 1, 0)
    return array.reshape(-1) if path.endswith("gate_scale") else array


def _names(modules: Mapping[str, str]) -> Callable[[str], str]:
    def theirs(path: str) -> str:
        if path.endswith("attn/gate_scale"):
            return "encoder.layers.{}.self_attn.grep_a"
        if path == "query_tokens":
            return "speech_query_tokens"
        module, _, leaf = path.rpartition("/")
        return f"{modules[module]}.{_LEAVES[leaf]}"

    return theirs


def convert_beats(tensors: Tensors, shapes: Any, where: object = "BEATs") -> Any:
    """The entry `model` of a BEATs file -> parameters like `shapes` (of Beats.init)."""
    taken = _Taken(tensors, where)
    params = _fill(shapes, _names(_BEATS), taken)
    shared = r"encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight"
    taken.finish([shared, r"predictor\.(weight|bias)"])
    return params


def convert_connector(
    tensors: Tensors, shapes: Any, n_layer: int, where: object = "SALMONN"
) -> tuple[Any, dict[str, dict[str, np.ndarray]]]:
    """The entry `model` of salmonn_v1.pth -> connector like `shapes`, LoRA bank of the language model's n_layer.

    A bank is {path: {"a" [L, 1, D, R], "b" [L, 1, R, F]}} (model/lora.py).
    """
    taken = _Taken(tensors, where)
    connector = _fill(shapes, _names(_CONNECTOR), taken)
    bank = {}
    for path, name in _LORA_MAPS.items():
        a, b = (taken.read_all([_LORA.format(i, name, part) for i in range(n_layer)]) for part in "AB")
        if a and b:
            bank[path] = {"a": np.stack([x.T for x in a])[:, None], "b": np.stack([x.T for x in b])[:, None]}
    taken.finish(_BUFFERS)
    return connector, bank


def read_beats(path: Path) -> tuple[BeatsDimensions, Tensors]:
    """Sizes and tensors of a BEATs file (entries `cfg` and `model`).

    Raises:
      LoadError: not such a file, or options that model/beats.py does not compute.
    """
    file = torch_file.load(path)
    if not isinstance(file, dict) or not {"cfg", "model"} <= set(file):
        raise LoadError(f"{path}: expected the entries cfg and model of a BEATs file.")
    c = file["cfg"]
    fixed = {
        "conv_bias": False, "activation_fn": "gelu", "layer_norm_first": False, "deep_norm": True,
        "relative_position_embedding": True, "gru_rel_pos": True,
    }  # fmt: skip
    if wrong := {k: c[k] for k, v in fixed.items() if c.get(k, v) != v}:
        raise LoadError(f"{path}: {wrong} is not computed here; expected { {k: fixed[k] for k in wrong} }.")
    dims = BeatsDimensions(
        n_layer=c["encoder_layers"],
        n_state=c["encoder_embed_dim"],
        n_head=c["encoder_attention_heads"],
        n_mlp=c["encoder_ffn_embed_dim"],
        n_patch_state=c["embed_dim"],
        n_patch=c["input_patch_size"],
        conv_width=c["conv_pos"],
        conv_groups=c["conv_pos_groups"],
        n_buckets=c["num_buckets"],
        max_distance=c["max_distance"],
    )
    return dims, file["model"]
