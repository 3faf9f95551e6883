"""Trains one LoRA expert a cluster, and the shared path, with the gate frozen: the local loss.

Reads   WORKDIR/embeddings, WORKDIR/clusters, WORKDIR/gate/params
Writes  WORKDIR/experts/  checkpoints, metrics.jsonl, params

Every expert answers alone (Jacobs et al. 1991, eq. 1.2): sum_e g_be CE(decoder with the shared path and expert e, y_b),
g constant. An expert's gradient therefore comes from its own utterances only, and one without any does not move.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from jaxmoe.checkpoint import load_params
from jaxmoe.data.batches import Batch
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.train import optimizer
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn
from jaxmoe.train.setup import load_backbone, load_posterior, load_utterances, make_tx, train


def local_loss(
    model: MoEWhisper, params: Any, base: Any, batch: Batch, gates: jax.Array
) -> jax.Array:
    """Sum over utterances and kept experts of g_be CE_be, per target token: a scalar in nats.

    Each utterance is decoded once for each of its top-k experts, as B * k rows with one-hot gates.
    """
    k = min(model.top_k or model.num_experts, model.num_experts)
    weights, chosen = jax.lax.top_k(gates, k)  # [B, k]
    alone = jax.nn.one_hot(chosen, model.num_experts).reshape(-1, model.num_experts)  # [B * k, E]
    rows = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), batch)
    nll = model.nll(base, params, rows, alone)  # [B * k]
    return (weights.reshape(-1) * nll).sum() / jnp.maximum(batch.weights.sum(), 1.0)


def make_step(model: MoEWhisper, tx: optax.GradientTransformation) -> StepFn:
    def loss_fn(params: Any, base: Any, batch: Batch, gates: jax.Array) -> jax.Array:
        return local_loss(model, params, base, batch, gates)

    def step(
        state: states.TrainState, base: Any, batch: Batch
    ) -> tuple[states.TrainState, dict[str, jax.Array]]:
        gates = model.gates(model.gate_logits(state.params, batch.embedding))  # [B, E], constant
        loss, grads = jax.value_and_grad(loss_fn)(state.params, base, batch, gates)
        active = gates.sum(0) > 0  # [E], over the global batch
        return optimizer.advance(tx, state, grads, active), {"loss": loss, "mean_gate": gates.mean(0)}

    return step


def run(config: ConfigDict, workdir: Path) -> None:
    backbone = load_backbone(config)
    model = backbone.model
    posterior = load_posterior(workdir, model.num_experts)
    utterances = load_utterances(
        config, workdir, backbone, "train", pretrain=True, posterior=posterior
    )
    params = model.init(jax.random.key(config.seed), backbone.base)
    params["gate"] = load_params(workdir / "gate" / "params", params)["gate"]
    trainable = [r"experts/.*"] + [r"shared/.*"] * bool(model.shared_rank)
    tx = make_tx(config.experts, params, trainable)
    train(config, workdir, "experts", backbone, model, utterances, make_step(model, tx), params, tx)
