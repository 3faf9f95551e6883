"""Trains one LoRA for everybody: what the mixture has to beat.

Reads   WORKDIR/embeddings
Writes  WORKDIR/baseline/  checkpoints, metrics.jsonl, params

The same data and linear maps as the mixture, no gate. config.baseline.rank 0 takes the rank at which it has as many
trainable parameters as the shared path and all experts together.
"""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import optax

from jaxmoe.data.batches import Batch
from jaxmoe.model.moe import MoEWhisper, one_lora
from jaxmoe.train import losses
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn
from jaxmoe.train.setup import load_backbone, load_utterances, make_tx, train


def make_step(model: MoEWhisper, tx: optax.GradientTransformation) -> StepFn:
    def loss_fn(params: Any, base: Any, batch: Batch) -> jax.Array:
        gates = model.gate_logits(params, batch.embedding)  # [B, 0]
        return losses.mean_nll(model.nll(base, params, batch, gates), batch.weights)

    def step(
        state: states.TrainState, base: Any, batch: Batch
    ) -> tuple[states.TrainState, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, base, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": loss}

    return step


def run(config: ConfigDict, workdir: Path) -> None:
    backbone = load_backbone(config)
    model = one_lora(backbone.model, config.baseline.rank)
    utterances = load_utterances(config, workdir, backbone, "train")
    params = model.init(jax.random.key(config.seed), backbone.base)
    tx = make_tx(config.baseline, params, [r"shared/.*"])
    train(config, workdir, "baseline", backbone, model, utterances, make_step(model, tx), params, tx)
