"""How the experts are used, from the gates that the evaluation recorded."""

from typing import Any

import numpy as np

from jaxmoe.report.read import SystemRun, Utterances


def routing(utterances: Utterances, runs: list[SystemRun]) -> dict[str, Any] | None:
    """Usage, effective number and agreement of the experts of `moe-encoder`, or `moe`, or the first system with
    gates.

    usage: top-1 share; effective_experts: exp of the entropy of the mean gate; mean_entropy: of each utterance's
    gate, nats; ami: adjusted mutual information of the top-1 expert. None when no system has gates.
    """
    run = _gated(runs)
    if run is None or run.gates is None:
        return None
    known = np.isfinite(run.gates).all(axis=1)
    gates = run.gates[known]
    experts = gates.shape[1]
    top = gates.argmax(axis=1)
    mean = gates.mean(axis=0)
    etiology = np.array(utterances["etiology"], dtype=object).astype(str)[known]
    speaker = np.array(utterances["speaker"], dtype=object).astype(str)[known]
    cluster = np.array([-2 if c is None else c for c in run.clusters])[known]
    return {
        "system": run.key,
        "experts": experts,
        "utterances": int(known.sum()),
        "usage": (np.bincount(top, minlength=experts) / len(top)).tolist(),
        "mean_probability": mean.tolist(),
        "effective_experts": float(np.exp(entropy(mean / max(mean.sum(), 1e-12)))),
        "mean_entropy": float(np.mean(entropy(gates))),
        "ami": {
            "etiology": agreement(etiology, top),
            "speaker": agreement(speaker, top),
            # -2 marks utterances that no clustering saw; noise (-1) is a statement of the clustering
            "cluster": agreement(cluster[cluster > -2], top[cluster > -2]),
        },
        "by_etiology": {
            str(value): (np.bincount(top[etiology == value], minlength=experts) / (etiology == value).sum()).tolist()
            for value in sorted(set(etiology))
        },
    }


def _gated(runs: list[SystemRun]) -> SystemRun | None:
    """What the report is about, if it has gates: as `metrics.focus` chooses; else the first system with gates."""
    gated = {run.key: run for run in runs if run.gates is not None}
    return next((gated[key] for key in ("moe-encoder", "moe", *gated) if key in gated), None)


def leading_expert(runs: list[SystemRun]) -> list[str] | None:
    """The expert with the largest gate of each utterance, "" where it has no gates; None without such a system."""
    run = _gated(runs)
    if run is None or run.gates is None:
        return None
    return [f"expert {row.argmax()}" if np.isfinite(row).all() else "" for row in run.gates]


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats along the last axis; 0 log 0 = 0."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def agreement(labels: np.ndarray, experts: np.ndarray) -> float | None:
    """Adjusted mutual information; None where there is only one label (nothing to agree with)."""
    from sklearn.metrics import adjusted_mutual_info_score

    if len(set(labels.tolist())) < 2:
        return None
    return float(adjusted_mutual_info_score(labels, experts))
