"""Trains SALMONN's connector and LoRA to write down and to translate what is said; all else stays frozen.

Reads   WORKDIR/corpus, WORKDIR/embeddings (with config.embed.context "full", the audio itself)
Writes  WORKDIR/salmonn/  checkpoints, metrics.jsonl, params
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import optax

from jaxmoe import sharding
from jaxmoe.data import lineage
from jaxmoe.data.batches import iterate
from jaxmoe.data.prompted import PromptedSource
from jaxmoe.model.salmonn import Prompted, Salmonn
from jaxmoe.train import losses
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn, fit
from jaxmoe.train.salmonn import Opened, open_salmonn, utterances
from jaxmoe.train.setup import make_tx


def make_step(model: Salmonn, tx: optax.GradientTransformation) -> StepFn:
    def loss_fn(params: Any, base: Any, batch: Prompted, key: jax.Array) -> jax.Array:
        logits = model.logits(base, params, batch, key)
        return losses.mean_nll(logits, batch.targets, batch.weights)

    def step(state: states.TrainState, base: Any, batch: Prompted) -> tuple[states.TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)  # derived, so a resumed run repeats exactly
        loss, grads = jax.value_and_grad(loss_fn)(state.params, base, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

    return step


def validation(opened: Opened, source: PromptedSource) -> Callable[[Any], dict[str, float]]:
    """params -> {"validation_nll"}: nats per token of the translations of `source`."""

    @jax.jit
    def nll(params: Any, base: Any, batch: Prompted) -> tuple[jax.Array, jax.Array]:
        logits = opened.model.logits(base, params, batch)
        return losses.utterance_nll(logits, batch.targets, batch.weights).sum(), batch.weights.sum()

    def evaluate(params: Any) -> dict[str, float]:
        batches = (sharding.put_batch(source[i], opened.mesh) for i in range(len(source)))
        totals = [jax.device_get(nll(params, opened.base, b)) for b in batches]
        return {"validation_nll": float(sum(t for t, _ in totals) / sum(n for _, n in totals))}

    return evaluate


def run(config: ConfigDict, workdir: Path) -> None:
    c, opened = config.salmonn, open_salmonn(config, scan=True)
    make = lambda found, **more: PromptedSource(found, opened.wrapping, batch_size=c.batch_size, **more)
    held_out = utterances(config, workdir, opened, "validation")
    spoken = utterances(config, workdir, opened, "train")
    lineage.write(workdir / "salmonn", (x.speaker for x in spoken))
    train = make(spoken, steps=c.steps, seed=config.seed, translation_share=c.translation_share)
    count = max(len(held_out) // c.batch_size, 1)
    tx = make_tx(c, opened.params, [r".*"])
    fit(
        make_step(opened.model, tx),
        states.create(opened.params, tx, config.seed),
        opened.base,
        iterate(train),
        folder=workdir / "salmonn",
        steps=c.steps,
        mesh=opened.mesh,
        log_every=c.log_every,
        save_every=c.save_every,
        evaluate=validation(opened, make(held_out, steps=count, seed=0, translation_share=1.0, buckets=1)),
    )
