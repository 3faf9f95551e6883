"""The gate: which experts an utterance's embedding calls for.

G(e) = Dense(E)(ReLU(Dense(hidden)(e))), then softmax, top-k and renormalisation (Shazeer et al. 2017, eqs. 3-5,
with the softmax first so that gradient reaches every kept logit through its probability).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Gate(nn.Module):
    """Embedding e [B, D] -> gate logits [B, E], float32."""

    num_experts: int  # E
    hidden: int = 512

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        h = nn.relu(nn.Dense(self.hidden, name="dense1")(embedding.astype(jnp.float32)))
        return nn.Dense(self.num_experts, name="dense2")(h)


def fold_standardisation(gate: dict, mean: np.ndarray, std: np.ndarray) -> dict:
    """Gate parameters that act on raw embeddings as `gate` acts on (e - mean) / std: folded into the first layer."""
    w = gate["dense1"]["kernel"] / std[:, None]  # [D, hidden]
    first = {"kernel": w, "bias": gate["dense1"]["bias"] - mean @ w}
    return {**gate, "dense1": first}


def fold_temperature(gate: dict, temperature: float) -> dict:
    """Gate parameters whose logits are those of `gate` divided by `temperature`: folded into the last layer."""
    last = {name: leaf / temperature for name, leaf in gate["dense2"].items()}
    return {**gate, "dense2": last}


def top_k_softmax(gate_logits: jax.Array, top_k: int, temperature: float = 1.0) -> jax.Array:
    """Gates g [B, E]: softmax at `temperature`, all but the `top_k` largest set to zero, rows summing to 1.

    top_k 0, or at least E, keeps every expert (the smeared mode).
    """
    probs = jax.nn.softmax(gate_logits / temperature, axis=-1)
    if not 0 < top_k < probs.shape[-1]:
        return probs
    kept = jax.lax.top_k(probs, top_k)[1]  # [B, k]
    mask = jax.nn.one_hot(kept, probs.shape[-1], dtype=probs.dtype).sum(1)  # [B, E]
    probs = probs * mask
    return probs / probs.sum(-1, keepdims=True)
