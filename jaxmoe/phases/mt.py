"""Fine-tunes the local translator on sentence pairs: one LoRA, early stopping.

Reads   WORKDIR/corpus (train pairs; validation pairs that are not among them), config.mt_tuning.pairs
Writes  WORKDIR/mt/  adapters.safetensors (the best by validation), checkpoints, metrics.jsonl, pairs.json

Pairs given beside the corpus's own are left out where their English is a sentence of its evaluation split: what is seen
in training is what the corpus's train speakers read, and reported as such.
"""

from collections.abc import Callable, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import optax

from jaxmoe import sharding
from jaxmoe.checkpoint import load_params
from jaxmoe.data import lineage
from jaxmoe.data import pairs as pair_data
from jaxmoe.data.batches import iterate
from jaxmoe.data.pairs import Encoded, Pair, PairBatch, PairSource
from jaxmoe.model import lora
from jaxmoe.mt import local
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn, fit
from jaxmoe.train.setup import make_tx

TARGETS = (r"(.*/)?blocks/.*",)  # every linear map of every layer
TokenNll = Callable[[Any, Any, jax.Array, PairBatch], jax.Array]
Loss = Callable[[Any, Any, PairBatch], tuple[jax.Array, jax.Array]]


def make_loss(token_nll: TokenNll, alpha: float) -> Loss:
    """(bank, base, batch) -> negative log-likelihood in nats and number of the German tokens of a batch."""

    def loss(bank: Any, base: Any, batch: PairBatch) -> tuple[jax.Array, jax.Array]:
        columns = lora.nested(lora.stack(bank, {}))
        scales = lora.one_scale(bank, alpha, len(batch.source))
        nll = token_nll(base, columns, scales, batch)
        return (nll * batch.weights).sum(), batch.weights.sum()

    return loss


def make_step(loss: Loss, tx: optax.GradientTransformation) -> StepFn:
    def mean(bank: Any, base: Any, batch: PairBatch) -> jax.Array:
        total, count = loss(bank, base, batch)
        return total / count

    def step(state: states.TrainState, base: Any, batch: PairBatch) -> tuple[states.TrainState, dict[str, jax.Array]]:
        value, grads = jax.value_and_grad(mean)(state.params, base, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": value}

    return step


def make_validation(
    loss: Loss, base: Any, pairs: Sequence[Encoded], batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """bank -> nats per German token of `pairs`."""
    batches, jitted = pair_data.all_batches(pairs, batch_size), jax.jit(loss)

    def validate(bank: Any) -> dict[str, float]:
        totals = [jax.device_get(jitted(bank, base, batch)) for batch in batches]
        return {"validation_nll": float(sum(t for t, _ in totals) / sum(n for _, n in totals))}

    return validate


def tune(
    config: ConfigDict,
    folder: Path,
    model: str,
    train: Sequence[Pair],
    validation: Sequence[Pair],
) -> Path:
    """Trains adapters of `model` on pairs as config.mt_tuning says and returns their file in `folder`."""
    c, path = config.mt_tuning, local.find(model)
    network = local.open_network(path)
    base, token_nll = network.trainable()
    encoded = [pair_data.encode(p, network.source, network.target, c.max_tokens) for p in (train, validation)]
    if not all(encoded):
        raise ValueError(f"config.mt_tuning: {len(train)} pairs to train on, {len(validation)} to validate; need both.")
    mesh = sharding.make_mesh(**config.mesh)
    base = jax.device_put(base, sharding.replicated(mesh))
    shapes = lora.linear_shapes(base["params"], TARGETS)
    bank = lora.init_bank(jax.random.key(config.seed), shapes, num_experts=1, rank=c.rank)
    tx, loss = make_tx(c, bank, [r".*"]), make_loss(token_nll, c.alpha)
    fit(
        make_step(loss, tx),
        states.create(bank, tx, config.seed),
        base,
        iterate(PairSource(encoded[0], batch_size=c.batch_size, steps=c.steps, seed=config.seed)),
        folder=folder,
        steps=c.steps,
        mesh=mesh,
        log_every=c.log_every,
        save_every=c.save_every,
        evaluate=make_validation(loss, base, encoded[1], c.batch_size),
        select="validation_nll",
        patience=c.patience,
    )
    best = load_params(folder / "best", bank)
    lora.save(folder / local.ADAPTERS, jax.device_get(best), alpha=c.alpha, base=local.digest(path))
    return folder / local.ADAPTERS


def run(config: ConfigDict, workdir: Path) -> None:
    corpus = {split: pair_data.corpus_pairs(workdir, split) for split in ("train", "validation", "evaluation")}
    train, validation = corpus["train"], pair_data.without(corpus["validation"], corpus["train"])
    if not validation:
        train, validation = pair_data.divide(train)
    more: list[Pair] = []
    if config.mt_tuning.pairs:
        given = pair_data.read_tsv(Path(config.mt_tuning.pairs))
        more = pair_data.without(given, [*corpus["evaluation"], *validation, *train])
    folder = workdir / "mt"
    lineage.write(folder, pair_data.speakers(workdir, ("train", "validation")))  # validation chooses what is kept
    counts = {"corpus": len(train), "given": len(more), "validation": len(validation)}
    print(", ".join(f"{name} pairs: {count}" for name, count in counts.items()))
    tune(config, folder, config.mt.model, [*train, *more], validation)
    (folder / "pairs.json").write_text(json.dumps(counts | {"sha256": _digest(config)}))


def news(config: ConfigDict, workdir: Path) -> str:
    """Whether the pairs given beside the corpus's own are others now than were trained on."""
    file = workdir / "mt" / "pairs.json"
    known = json.loads(file.read_text()).get("sha256") if file.exists() else None
    if known in (None, _digest(config)):
        return ""
    return f"{config.mt_tuning.pairs} is not what was trained on; --phase=mt --force trains on what is there now."


def _digest(config: ConfigDict) -> str:
    """Of the file of pairs; "" where there is none."""
    path = Path(config.mt_tuning.pairs)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
