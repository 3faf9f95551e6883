"""An adaptation of the encoder, to one person or to all who were trained on.

It is a tree {"gate_bias": [E], "encoder": {path: offset}}, with an offset for every bias and every scale of a norm,
stacked over layers as they are, and a bias on the gate; for many speakers also "lora", a bank of one adapter on every
linear map. A disorder is in the sound, and so few numbers as the offsets do not learn a few recordings' words by heart.
`compose` adds all of it to a mixture and its base, so that nothing downstream knows of it.
Source: BitFit, Ben Zaken et al. 2022 (arXiv 2106.10199), which trains the biases of all of a model.
"""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp

from jaxmoe.model import lora
from jaxmoe.model.moe import MoEWhisper

LORA_SCALE = 2.0  # alpha / rank

Params = dict[str, Any]


def init(model: MoEWhisper, base: Params, rank: int = 0, seed: int = 0) -> Params:
    """What changes nothing; with "lora" if its rank is not 0, drawn from `seed`."""
    leaves = flatten_dict(base["encoder"], sep="/")
    offsets = {path: jnp.zeros(x.shape) for path, x in leaves.items() if path.endswith(("bias", "scale"))}
    tree = {"gate_bias": jnp.zeros(model.num_experts), "encoder": offsets}
    if rank:
        shapes = lora.linear_shapes({"encoder": base["encoder"]}, [".*"])
        tree["lora"] = lora.init_bank(jax.random.key(seed), shapes, num_experts=1, rank=rank)
    return tree


def compose(params: Params, base: Params, offsets: Params) -> tuple[Params, Params]:
    """The mixture's parameters and the base's, {"encoder", "decoder"}, with the adaptation added."""
    if offsets["gate_bias"].size:
        last = params["gate"]["dense2"]
        biased = {**last, "bias": last["bias"] + offsets["gate_bias"]}
        params = {**params, "gate": {**params["gate"], "dense2": biased}}
    leaves = flatten_dict(base["encoder"], sep="/")
    moved = {path: leaves[path] + x.astype(leaves[path].dtype) for path, x in offsets["encoder"].items()}
    base = {**base, "encoder": unflatten_dict(leaves | moved, sep="/")}
    if bank := offsets.get("lora"):
        base = lora.merge(base, lora.stack(bank, {}), lora.one_scale(bank, LORA_SCALE * lora.rank(bank))[0])
    return params, base
