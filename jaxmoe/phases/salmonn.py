"""Trains SALMONN's connector and LoRA to write down and to translate what is said; all else stays frozen.

Reads   WORKDIR/corpus, WORKDIR/embeddings (with config.embed.context "full", the audio itself)
Writes  WORKDIR/salmonn/           checkpoints, metrics.jsonl, params
        WORKDIR/salmonn/spelling/  the same of the connector's start, where config.salmonn.spell_steps asks for one
"""

from collections.abc import Callable, Iterable
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import optax

from jaxmoe import sharding
from jaxmoe.data import lineage
from jaxmoe.data.batches import iterate
from jaxmoe.data.prompted import PromptedSource, Spoken, every_utterance
from jaxmoe.model.salmonn import Prompted, Salmonn
from jaxmoe.train import spelling
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn, fit
from jaxmoe.train.salmonn import Opened, open_salmonn, utterances
from jaxmoe.train.setup import make_tx

# (params, base, batch, key of the dropout or None) -> loss in nats, summed over the batch, and number of tokens
Loss = Callable[[Any, Any, Prompted, jax.Array | None], tuple[jax.Array, jax.Array]]
Batches = Callable[[], Iterable[Prompted]]


def answer_nll(
    model: Salmonn, params: Any, base: Any, batch: Prompted, dropout: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Nats and tokens of what the language model is to answer, summed over the batch."""
    nll = model.token_nll(base, params, batch, dropout)
    return (nll * batch.weights).sum(), batch.weights.sum()


def make_step(loss: Loss, tx: optax.GradientTransformation) -> StepFn:
    def mean(params: Any, base: Any, batch: Prompted, key: jax.Array) -> jax.Array:
        total, count = loss(params, base, batch, key)
        return total / jnp.maximum(count, 1.0)

    def step(state: states.TrainState, base: Any, batch: Prompted) -> tuple[states.TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)  # derived, so a resumed run repeats exactly
        value, grads = jax.value_and_grad(mean)(state.params, base, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": value}

    return step


def validation(loss: Loss, opened: Opened, batches: Batches) -> Callable[[Any], dict[str, float]]:
    """params -> {"validation_nll"}: nats per token of `batches`."""
    jitted = jax.jit(lambda params, base, batch: loss(params, base, batch, None))

    def evaluate(params: Any) -> dict[str, float]:
        placed = (sharding.put_batch(b, opened.mesh) for b in batches())
        totals = [jax.device_get(jitted(params, opened.base, b)) for b in placed]
        return {"validation_nll": float(sum(t for t, _ in totals) / max(sum(n for _, n in totals), 1.0))}

    return evaluate


@dataclasses.dataclass(frozen=True)
class Training:
    """One of the two trainings of this phase: what is minimised, where it is kept, how long it takes."""

    loss: Loss
    folder: Path
    steps: int
    lr: float
    trainable: str = r".*"


def train(
    config: ConfigDict, opened: Opened, training: Training, source: PromptedSource, held_out: Batches
) -> Any:
    """The parameters after a training that begins with the opened ones."""
    c = config.salmonn.copy_and_resolve_references().unlock()
    c.update(steps=training.steps, lr=training.lr)
    tx = make_tx(c, opened.params, [training.trainable])
    state = fit(
        make_step(training.loss, tx),
        states.create(opened.params, tx, config.seed),
        opened.base,
        iterate(source),
        folder=training.folder,
        steps=c.steps,
        mesh=opened.mesh,
        log_every=c.log_every,
        save_every=c.save_every,
        evaluate=validation(training.loss, opened, held_out),
    )
    return state.params


def run(config: ConfigDict, workdir: Path) -> None:
    c, folder, opened = config.salmonn, workdir / "salmonn", open_salmonn(config, scan=True)
    held_out = utterances(config, workdir, opened, "validation")
    spoken = utterances(config, workdir, opened, "train")
    lineage.write(folder, (x.speaker for x in spoken))

    def source(found: list[Spoken], steps: int, share: float) -> PromptedSource:
        fields = {"steps": steps, "seed": config.seed, "translation_share": share}
        return PromptedSource(found, opened.wrapping, batch_size=c.batch_size, **fields)

    def once(found: list[Spoken], task: str) -> Batches:
        return partial(every_utterance, found, opened.wrapping, c.batch_size, task)

    if c.spell_steps:
        said, heard = ([x for x in found if "asr" in x.targets] for found in (spoken, held_out))
        loss = partial(spelling.nll, opened.model, spelling.vocabulary([*said, *heard]))
        training = Training(loss, folder / "spelling", c.spell_steps, c.spell_lr, r"connector/.*")
        batches = source(said, c.spell_steps, 0.0)
        opened = dataclasses.replace(opened, params=train(config, opened, training, batches, once(heard, "asr")))
    training = Training(partial(answer_nll, opened.model), folder, c.steps, c.lr)
    batches = source(spoken, c.steps, c.translation_share)
    train(config, opened, training, batches, once(held_out, "translation"))
