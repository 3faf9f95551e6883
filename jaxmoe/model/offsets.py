"""An adaptation of the encoder, to one person or to all who were trained on: offsets of its biases and norms.

It is a tree {"gate_bias": [E], "encoder": {path: offset}}, with an offset for every bias and every scale of a norm,
stacked over layers as they are, and a bias on the gate. A disorder is in the sound, and so few numbers do not learn a
few recordings' words by heart. `compose` adds them to a mixture and its base, so that nothing downstream knows of them.
Source: BitFit, Ben Zaken et al. 2022 (arXiv 2106.10199), which trains the biases of all of a model.
"""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
import jax.numpy as jnp

from jaxmoe.model.moe import MoEWhisper

Params = dict[str, Any]


def init(model: MoEWhisper, base: Params) -> Params:
    """Offsets that change nothing."""
    leaves = flatten_dict(base["encoder"], sep="/")
    offsets = {path: jnp.zeros(x.shape) for path, x in leaves.items() if path.endswith(("bias", "scale"))}
    return {"gate_bias": jnp.zeros(model.num_experts), "encoder": offsets}


def compose(params: Params, base: Params, offsets: Params) -> tuple[Params, Params]:
    """The mixture's parameters and the base's, {"encoder", "decoder"}, with the offsets added."""
    if offsets["gate_bias"].size:
        last = params["gate"]["dense2"]
        biased = {**last, "bias": last["bias"] + offsets["gate_bias"]}
        params = {**params, "gate": {**params["gate"], "dense2": biased}}
    leaves = flatten_dict(base["encoder"], sep="/")
    moved = {path: leaves[path] + x.astype(leaves[path].dtype) for path, x in offsets["encoder"].items()}
    return params, {**base, "encoder": unflatten_dict(leaves | moved, sep="/")}
