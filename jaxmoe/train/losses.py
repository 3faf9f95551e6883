"""Losses, all in float32 and in nats."""

import jax
import jax.numpy as jnp


def mean_nll(nll: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over the weighted tokens of the whole (global) batch, from the sum [B] of each utterance's."""
    return nll.sum() / jnp.maximum(weights.sum(), 1.0)


def load_balance(gate_logits: jax.Array) -> jax.Array:
    """E * sum_e f_e P_e (Fedus et al. 2021, eq. 4): f_e the share of utterances whose top-1 is e (no gradient),
    P_e the mean probability; 1 where routing is even, E where it has collapsed."""
    probs = jax.nn.softmax(gate_logits, axis=-1)  # [B, E]
    e = probs.shape[-1]
    f = jax.nn.one_hot(probs.argmax(-1), e).mean(0)
    return e * (f * probs.mean(0)).sum()


def z_loss(gate_logits: jax.Array) -> jax.Array:
    """mean(logsumexp(logits)^2) (Zoph et al. 2022, eq. 5): keeps gate logits small."""
    return jnp.square(jax.nn.logsumexp(gate_logits, axis=-1)).mean()


def alignment(gate_logits: jax.Array, posterior: jax.Array) -> jax.Array:
    """KL(cluster posterior || G(e)), mean over the rows that have a posterior [B, E]; 0 where none has."""
    log_probs = jax.nn.log_softmax(gate_logits, axis=-1)
    log_post = jnp.log(jnp.maximum(posterior, 1e-9))
    known = posterior.sum(-1)  # 1 or 0
    kl = (posterior * (log_post - log_probs)).sum(-1)
    return (kl * known).sum() / jnp.maximum(known.sum(), 1.0)
