"""What a phase carries from step to step: arrays only."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """step (scalar int32), params {"gate", "shared", "experts"}, opt_state, key (typed PRNG key, never advanced:
    each step derives its own by fold_in, so that a resumed run repeats exactly)."""

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def create(params: Any, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """A state at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(seed))
