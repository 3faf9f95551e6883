"""What every format's loader shares: the shapes of Whisper's parameter tree and the strict match of names."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxmoe.model.whisper import ModelDimensions


class LoadError(ValueError):
    """Weights that are not what this project's Whisper expects."""


def leaf_shapes(dims: ModelDimensions) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter; "blocks" carries the layers on its first axis."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder/conv1/kernel": (3, dims.n_mels, dims.n_audio_state),
        "encoder/conv1/bias": (dims.n_audio_state,),
        "encoder/conv2/kernel": (3, dims.n_audio_state, dims.n_audio_state),
        "encoder/conv2/bias": (dims.n_audio_state,),
        "encoder/positional_embedding": (dims.n_audio_ctx, dims.n_audio_state),
        "decoder/token_embedding/embedding": (dims.n_vocab, dims.n_text_state),
        "decoder/positional_embedding": (dims.n_text_ctx, dims.n_text_state),
    }
    stacks = (
        ("encoder", "ln_post", dims.n_audio_layer, dims.n_audio_state, ("attn",)),
        ("decoder", "ln", dims.n_text_layer, dims.n_text_state, ("attn", "cross_attn")),
    )
    for part, last_norm, layers, width, attentions in stacks:
        blocks = f"{part}/blocks"
        linear = {f"{blocks}/mlp1": (width, 4 * width), f"{blocks}/mlp2": (4 * width, width)}
        for attention in attentions:
            for name in ("query", "key", "value", "out"):
                linear[f"{blocks}/{attention}/{name}"] = (width, width)
        for path, (fan_in, fan_out) in linear.items():
            shapes[f"{path}/kernel"] = (layers, fan_in, fan_out)
            if not path.endswith("/key"):
                shapes[f"{path}/bias"] = (layers, fan_out)
        for norm in (*(f"{blocks}/{a}_ln" for a in attentions), f"{blocks}/mlp_ln", f"{part}/{last_norm}"):
            stacked = (layers,) if norm.startswith(blocks) else ()
            shapes[f"{norm}/scale"] = shapes[f"{norm}/bias"] = (*stacked, width)
    return shapes


def n_layers(dims: ModelDimensions, path: str) -> int:
    """How many layers the blocks of this path's half have."""
    return dims.n_audio_layer if path.startswith("encoder/") else dims.n_text_layer


def build(dims: ModelDimensions, read: Callable[[str, int], np.ndarray]) -> dict[str, Any]:
    """The nested float32 tree, from read(path, layer), which returns one layer's array in our orientation."""
    params: dict[str, Any] = {}
    for path, shape in leaf_shapes(dims).items():
        leaf = np.empty(shape, np.float32)
        slots = leaf if "/blocks/" in path else leaf[None]
        for layer, slot in enumerate(slots):
            array = read(path, layer)
            if array.shape != slot.shape:
                raise LoadError(
                    f"{path}, layer {layer}: found shape {list(array.shape)}, expected {list(slot.shape)}; "
                    "the weights and their configuration are not of one model."
                )
            slot[...] = array
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


def check_names(where: object, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise LoadError unless both are the same set."""
    expected, found = set(expected), set(found)
    if expected != found:
        lines = [f"  - {name}" for name in sorted(expected - found)]
        lines += [f"  + {name}" for name in sorted(found - expected)]
        raise LoadError(
            f"{where} does not hold the expected weights: missing (-) and unexpected (+) names:\n"
            + "\n".join(lines[:40])
            + (f"\n  ... and {len(lines) - 40} more" if len(lines) > 40 else "")
        )
