"""Trains gate, experts and shared path together: the global loss.

Reads   WORKDIR/embeddings, WORKDIR/clusters, WORKDIR/experts/params
Writes  WORKDIR/joint/  checkpoints, metrics.jsonl, params

One pass of the decoder with the mixture; gradient reaches the gate through g. Balance, z-loss and alignment are over
the global batch, since jit sees all of it.
"""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import optax

from jaxmoe.checkpoint import load_params
from jaxmoe.data.batches import Batch
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.train import losses, optimizer
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn
from jaxmoe.train.setup import load_backbone, load_posterior, load_utterances, make_tx, train


def make_step(
    model: MoEWhisper,
    tx: optax.GradientTransformation,
    *,
    balance: float,
    z: float,
    align: float,
    temperature: float,
) -> StepFn:
    def loss_fn(params: Any, base: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        gate_logits = model.gate_logits(params, batch.embedding)  # [B, E]
        gates = model.gates(gate_logits, temperature)  # [B, E], rows sum to 1
        logits = model.logits(base, params, batch.latents, batch.tokens, gates, batch.mask)
        nll = losses.mean_nll(logits, batch.targets, batch.weights)
        terms = {
            "balance": losses.load_balance(gate_logits),
            "z": losses.z_loss(gate_logits),
            "align": losses.alignment(gate_logits, batch.posterior),
        }
        loss = nll + balance * terms["balance"] + z * terms["z"] + align * terms["align"]
        top1 = jax.nn.one_hot(gates.argmax(-1), model.num_experts).mean(0)
        return loss, {
            "loss": loss,
            "nll": nll,
            **terms,
            "usage": top1,
            "mean_gate": gates.mean(0),
        }

    def step(
        state: states.TrainState, base: Any, batch: Batch
    ) -> tuple[states.TrainState, dict[str, jax.Array]]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, base, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        active = metrics["mean_gate"] > 0  # [E], over the global batch
        params = optimizer.hold_idle(active, params, state.params)
        opt_state = optimizer.hold_idle(active, opt_state, state.opt_state)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def run(config: ConfigDict, workdir: Path) -> None:
    backbone = load_backbone(config)
    model = backbone.model
    posterior = load_posterior(workdir, model.num_experts)
    utterances = load_utterances(config, workdir, backbone, "train", posterior=posterior)
    params = load_params(
        workdir / "experts" / "params", model.init(jax.random.key(config.seed), backbone.base)
    )
    trainable = [r"gate/.*", r"experts/.*"] + [r"shared/.*"] * bool(model.shared_rank)
    tx = make_tx(config.joint, params, trainable)
    c = config.joint
    step = make_step(model, tx, balance=c.balance, z=c.z, align=c.align, temperature=c.temperature)
    train(config, workdir, "joint", backbone, model, utterances, step, params, tx)
