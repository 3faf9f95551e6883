"""Pre-trains the gate to predict an utterance's cluster from its pooled embedding.

Reads   WORKDIR/embeddings, WORKDIR/clusters
Writes  WORKDIR/gate/  checkpoints, metrics.jsonl, params
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from jaxmoe.data.batches import Utterances
from jaxmoe.model.gate import fold_standardisation
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn
from jaxmoe.train.setup import load_backbone, load_posterior, load_utterances, make_tx, train


def make_step(model: MoEWhisper, tx: Any, class_weights: np.ndarray) -> StepFn:
    """Cross-entropy of G(e) against soft memberships; rows without one (left-out noise) count nothing.

    class_weights [E] multiply a row's loss by its cluster's rarity.
    """
    scale = jnp.asarray(class_weights)

    def loss_fn(params: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = model.gate_logits(params, batch.embedding)  # [B, E]
        weights = batch.posterior @ scale  # [B], 0 where unknown
        nll = -(batch.posterior * jax.nn.log_softmax(logits)).sum(-1)
        loss = (weights * nll).sum() / jnp.maximum(weights.sum(), 1e-9)
        right = (logits.argmax(-1) == batch.posterior.argmax(-1)) & (weights > 0)
        accuracy = right.sum() / jnp.maximum((weights > 0).sum(), 1)
        return loss, {"loss": loss, "accuracy": accuracy}

    def step(state: states.TrainState, base: Any, batch: Any) -> tuple[states.TrainState, dict]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def class_weights(posterior: np.ndarray, balance: float) -> np.ndarray:
    """(mean share / share of e) ** balance for clusters that have members; 0 for experts without any."""
    mass = posterior.sum(0)
    live = mass > 1e-6
    weights = np.zeros_like(mass)
    weights[live] = (mass[live].mean() / mass[live]) ** balance
    return weights


def standardised(model: MoEWhisper, params: Any, utterances: Utterances) -> Any:
    """Initial parameters whose first gate layer standardises the embeddings of `utterances`."""
    e = utterances.embeddings.pooled[utterances.rows]
    gate = jax.tree.map(np.asarray, params["gate"])
    folded = fold_standardisation(gate, e.mean(0), e.std(0) + 1e-6)
    return {**params, "gate": jax.tree.map(jnp.asarray, folded)}


def run(config: ConfigDict, workdir: Path) -> None:
    c = config.gate
    backbone = load_backbone(config)
    posterior = load_posterior(workdir, backbone.model.num_experts)
    utterances = load_utterances(
        config, workdir, backbone, "train", pretrain=True, posterior=posterior
    )
    params = backbone.model.init(jax.random.key(config.seed), backbone.base)
    params = standardised(backbone.model, params, utterances)
    tx = make_tx(config.gate, params, [r"gate/.*"])
    step = make_step(backbone.model, tx, class_weights(utterances.posterior, c.class_balance))
    train(config, workdir, "gate", backbone, backbone.model, utterances, step, params, tx, latents=False)
