"""One person's own adaptation on top of the mixture: a bias on the gate and a small LoRA beside the shared path.

Personal parameters are {"gate_bias": [E], "lora": bank of one expert of rank r}. `compose` folds them into ordinary
mixture parameters whose shared path is r wider, so that nothing downstream knows of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxmoe.model import lora
from jaxmoe.model.moe import MoEWhisper

Params = dict[str, Any]


def init(model: MoEWhisper, base: Params, key: jax.Array, rank: int) -> Params:
    """Parameters that change nothing; rank 0 leaves the LoRA out."""
    shapes = lora.linear_shapes(base, model.targets)
    bank = lora.init_bank(key, shapes, num_experts=1, rank=rank) if rank else {}
    return {"gate_bias": jnp.zeros(model.num_experts), "lora": bank}


def widened(model: MoEWhisper, rank: int) -> MoEWhisper:
    """The model whose parameters `compose` gives."""
    return dataclasses.replace(model, shared_rank=model.shared_rank + rank)


def compose(params: Params, personal: Params) -> Params:
    """Mixture parameters of `widened(model, rank)` that compute `params` plus the personal ones, scaled alike."""
    out = dict(params)
    if personal["gate_bias"].size:
        last = params["gate"]["dense2"]
        biased = {**last, "bias": last["bias"] + personal["gate_bias"]}
        out["gate"] = {**params["gate"], "dense2": biased}
    if not personal["lora"]:
        return out

    def join(path: str) -> dict[str, jax.Array]:
        own, shared = personal["lora"][path], params["shared"].get(path)
        if shared is None:
            return own
        a = jnp.concatenate([shared["a"], own["a"]], axis=3)  # [L, 1, D, R + r]
        return {"a": a, "b": jnp.concatenate([shared["b"], own["b"]], axis=2)}  # [L, 1, R + r, F]

    out["shared"] = {path: join(path) for path in personal["lora"]}
    return out
