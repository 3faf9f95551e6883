"""Trains gate, experts and shared path together: the global loss.

Reads   WORKDIR/embeddings, WORKDIR/clusters, WORKDIR/experts/params
Writes  WORKDIR/joint/  checkpoints, metrics.jsonl, params

One pass of the decoder with the mixture; gradient reaches the gate through g. Balance, z-loss and alignment are over
the global batch, since jit sees all of it. The first config.joint.soft_steps mix all experts, so that each gets
gradient, at a temperature that falls to 1; then only the top k are kept.
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
from jaxmoe.train import losses, optimizer
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn
from jaxmoe.train.setup import load_backbone, load_posterior, load_utterances, make_tx, train, watch_collapse


def scheduled_gates(
    model: MoEWhisper, gate_logits: jax.Array, step: jax.Array, key: jax.Array, c: ConfigDict
) -> jax.Array:
    """Mixing weights [B, E] at a step, from noisy logits (Shazeer et al. 2017, eq. 4, with a fixed deviation).

    They smear over all experts for c.soft_steps, while the temperature falls linearly from c.temperature to 1; then the
    top k are kept.
    """
    logits = gate_logits + c.noise * jax.random.normal(key, gate_logits.shape)
    done = jnp.minimum(step / max(c.soft_steps, 1), 1.0)
    temperature = c.temperature + (1.0 - c.temperature) * done
    return jnp.where(step < c.soft_steps, model.gates(logits, temperature, top_k=0), model.gates(logits))


def make_step(model: MoEWhisper, tx: optax.GradientTransformation, c: ConfigDict) -> StepFn:
    """c: config.joint, of which the loss reads balance, z, align and scheduled_gates the rest."""

    def loss_fn(
        params: Any, base: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        gate_logits = model.gate_logits(params, batch.embedding)  # [B, E]
        gates = scheduled_gates(model, gate_logits, step, key, c)  # [B, E], rows sum to 1
        nll = model.nll(base, params, batch, gates, exact_top_k=not c.soft_steps)
        nll = losses.mean_nll(nll, batch.weights)
        terms = {
            "balance": losses.load_balance(gate_logits),
            "z": losses.z_loss(gate_logits),
            "align": losses.alignment(gate_logits, batch.posterior),
        }
        loss = nll + c.balance * terms["balance"] + c.z * terms["z"] + c.align * terms["align"]
        top1 = jax.nn.one_hot(gates.argmax(-1), model.num_experts).mean(0)
        return loss, {"loss": loss, "nll": nll, **terms, "usage": top1, "mean_gate": gates.mean(0)}

    def step(
        state: states.TrainState, base: Any, batch: Batch
    ) -> tuple[states.TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, base, batch, state.step, key)
        active = metrics["mean_gate"] > 0  # [E], over the global batch
        return optimizer.advance(tx, state, grads, active), metrics

    return step


def run(config: ConfigDict, workdir: Path) -> None:
    backbone, c = load_backbone(config), config.joint
    model = backbone.model
    given = model.routing == "given"
    posterior = load_posterior(workdir, model.num_experts, fitted=not given)
    utterances = load_utterances(config, workdir, backbone, "train", posterior=posterior)
    params = load_params(
        workdir / "experts" / "params", model.init(jax.random.key(config.seed), backbone.base)
    )
    trainable = [r"experts/.*"] + [r"gate/.*"] * (not given) + [r"shared/.*"] * bool(model.shared_rank)
    tx = make_tx(c, params, trainable)
    watch = watch_collapse(posterior, c.min_effective)
    train(config, workdir, "joint", backbone, model, utterances, make_step(model, tx, c), params, tx, watch=watch)
