"""Optimizers: which leaves train, and experts that stay put when a batch holds none of their utterances."""

from collections.abc import Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmoe.train.state import TrainState

PyTree = Any


def label(params: PyTree, trainable: Sequence[str]) -> PyTree:
    """A tree of "train" and "freeze": "train" where a leaf's path ("experts/decoder/blocks/mlp1/a") matches a regex.

    Raises:
      ValueError: if a pattern matches no leaf.
    """
    names = lambda path: "/".join(str(getattr(k, "key", k)) for k in path)
    paths = [names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in trainable:
        if not any(re.fullmatch(pattern, p) for p in paths):
            raise ValueError(f"trainable pattern {pattern!r} matches none of: {', '.join(paths)}.")
    is_trained = lambda p: any(re.fullmatch(t, p) for t in trainable)
    choose = lambda path, _: "train" if is_trained(names(path)) else "freeze"
    return jax.tree_util.tree_map_with_path(choose, params)


def make_tx(
    labels: PyTree, *, lr: float, steps: int, warmup: int, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay to 10 % on leaves labelled "train"; the others get zero updates and
    no moments."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, lr, min(warmup, max(steps - 1, 1)), max(steps, 2), 0.1 * lr
    )
    # The clip is inside "train": outside, frozen gradients would enter the norm and XLA could not drop them.
    train = optax.chain(
        optax.clip_by_global_norm(clip_norm), optax.adamw(schedule, weight_decay=weight_decay)
    )
    return optax.partition({"train": train, "freeze": optax.set_to_zero()}, labels)


def hold_idle(active: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` with the experts that are not `active` [E] put back to `old`; leaves of experts have E on axis 1.

    Adam's momentum and weight decay would otherwise move an expert that saw no utterance. Applied to params and to
    opt_state alike: whatever sits under a key "experts" is treated, everything else is taken from `new`.
    """

    def pick(path: tuple[Any, ...], n: jax.Array, o: jax.Array) -> jax.Array:
        if not any(getattr(k, "key", None) == "experts" for k in path) or n.ndim < 2:
            return n
        keep = active.reshape((1, -1) + (1,) * (n.ndim - 2))
        return jnp.where(keep, n, o)

    return jax.tree_util.tree_map_with_path(pick, new, old)


def advance(tx: optax.GradientTransformation, state: TrainState, grads: PyTree, active: jax.Array) -> TrainState:
    """The state after a step with `grads`, experts that are not `active` [E] held."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = hold_idle(active, optax.apply_updates(state.params, updates), state.params)
    opt_state = hold_idle(active, opt_state, state.opt_state)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)
