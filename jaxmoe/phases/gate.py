"""Pre-trains the gate to predict an utterance's cluster from its pooled embedding.

Reads   WORKDIR/embeddings, WORKDIR/clusters
Writes  WORKDIR/gate/            checkpoints, metrics.jsonl, params
        WORKDIR/gate/gate.json   accuracy, cross-entropy and calibration error on speakers it has not seen

The parameters kept are those of the lowest cross-entropy on the validation speakers, whose clusters are assigned by
`cluster`; their softmax is then calibrated on the same speakers by one temperature (Guo et al. 2017).
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from jaxmoe.checkpoint import load_params, save_params
from jaxmoe.data.batches import Utterances
from jaxmoe.model.gate import fold_standardisation, fold_temperature
from jaxmoe.model.moe import MoEWhisper
from jaxmoe.train import state as states
from jaxmoe.train.loop import StepFn
from jaxmoe.train.setup import load_backbone, load_posterior, load_utterances, make_tx, train

BINS = 10  # of the calibration error


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


def figures(logits: np.ndarray, posterior: np.ndarray) -> dict[str, float]:
    """What gate logits [U, E] say of memberships [U, E]: accuracy, cross-entropy in nats and expected calibration error
    (Guo et al. 2017, eq. 3, ten bins) over the rows that have a membership."""
    known = posterior.sum(1) > 0
    logits, posterior = logits[known].astype(np.float64), posterior[known]
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    confidence, right = np.exp(log_probs.max(1)), logits.argmax(1) == posterior.argmax(1)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(right[bins == b].sum() - confidence[bins == b].sum()) for b in range(BINS)]
    return {
        "accuracy": float(right.mean()),
        "nll": float(-(posterior * log_probs).sum(1).mean()),
        "calibration_error": float(sum(gaps) / len(right)),
    }


def best_temperature(logits: np.ndarray, posterior: np.ndarray) -> float:
    """The temperature in [0.05, 20] at which softmax(logits / temperature) has the lowest cross-entropy."""
    from scipy.optimize import minimize_scalar

    nll = lambda log_t: figures(logits / np.exp(log_t), posterior)["nll"]
    return float(np.exp(minimize_scalar(nll, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))


def run(config: ConfigDict, workdir: Path) -> None:
    c, folder = config.gate, workdir / "gate"
    backbone = load_backbone(config)
    model = backbone.model
    params = model.init(jax.random.key(config.seed), backbone.base)
    if model.routing == "given":
        print("gate: config.model.routing=given, nothing to train")
        save_params(folder / "params", params)
        return
    posterior = load_posterior(workdir, model.num_experts, fitted=False)
    fitted = load_posterior(workdir, model.num_experts)
    utterances = load_utterances(config, workdir, backbone, "train", pretrain=True, posterior=fitted)
    held_out = load_utterances(config, workdir, backbone, "validation", posterior=posterior)
    unseen = jnp.asarray(held_out.gate_inputs(np.arange(len(held_out))), jnp.float32)
    logits = jax.jit(lambda p: model.gate_logits(p, unseen))

    def evaluate(params: Any) -> dict[str, float]:
        return {f"validation_{k}": v for k, v in figures(np.asarray(logits(params)), held_out.posterior).items()}

    params = standardised(model, params, utterances)
    tx = make_tx(c, params, [r"gate/.*"])
    step = make_step(model, tx, class_weights(utterances.posterior, c.class_balance))
    train(config, workdir, "gate", backbone, model, utterances, step, params, tx, evaluate=evaluate)
    best = load_params(folder / "best", params)
    before = figures(np.asarray(logits(best)), held_out.posterior)
    temperature = best_temperature(np.asarray(logits(best)), held_out.posterior)
    best["gate"] = fold_temperature(best["gate"], temperature)
    after = figures(np.asarray(logits(best)), held_out.posterior)
    save_params(folder / "params", best)
    record = {"temperature": temperature, "uncalibrated": before, "calibrated": after, "utterances": len(held_out)}
    (folder / "gate.json").write_text(json.dumps(record, indent=2))
    print(
        f"  on speakers it has not seen: accuracy {after['accuracy']:.2f}, calibration error "
        f"{before['calibration_error']:.2f} -> {after['calibration_error']:.2f} at temperature {temperature:.2f}"
    )
