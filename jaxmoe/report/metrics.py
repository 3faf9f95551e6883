"""Builds metrics.json: scores of every system with intervals, by group, paired differences, routing, clusters.

Everything the page shows as a number is computed here, once.
"""

from collections import Counter
from collections.abc import Sequence
import importlib.metadata
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxmoe.eval import bleu, wer
from jaxmoe.eval.bootstrap import holm, paired, speaker_index, speaker_sums
from jaxmoe.report.read import SystemRun, Utterances, read_evaluation, read_json
from jaxmoe.report.routing import routing
from jaxmoe.report.scores import Scores, score_systems

# Second comparisons beside those with the baseline: what an addition brings over what it was added to.
PAIRS = (("moe", "lora"), ("moe-custom-mt", "moe"), ("moe-risk", "moe"), ("salmonn-tuned", "salmonn"))
GROUPS = ("etiology", "severity", "prompt", "sex", "language", "source", "channel", "length")
ALWAYS = ("etiology", "severity", "prompt")  # kept even when every utterance has the same value
SMALL_GROUP = 5  # speakers: below it an interval over speakers says little, and the page marks the group
LENGTHS = ((5.0, "under 5 s"), (10.0, "5 to 10 s"), (30.0, "10 to 30 s"), (math.inf, "over 30 s"))


def build(
    workdir: Path,
    *,
    bootstrap: int = 1000,
    baseline: str = "whisper-v2",
    worst: int = 20,
    regime: str = "whisper",
    seed: int = 0,
) -> dict[str, Any]:
    """The contents of metrics.json for the systems found under WORKDIR/eval.

    bootstrap: draws over speakers; baseline: key of the system that all others are compared with;
    worst: number of utterances listed; regime: of `wer` and `cer` (the other regime stands beside them).
    Raises: ValueError naming file and line of what cannot be compared; FileNotFoundError without any system.
    """
    if regime not in wer.REGIMES:
        raise ValueError(f"config.report.regime={regime!r}; expected one of {sorted(wer.REGIMES)}.")
    utterances, runs = read_evaluation(workdir)
    scored = score_systems(utterances, runs, regime)
    index, speakers = speaker_index(utterances["speaker"])
    groups = group_values(utterances)
    drawing = {"draws": bootstrap, "seed": seed}
    systems = [_system(run, scored.get(run.key), utterances, groups, index, speakers, drawing) for run in runs]
    focus = _focus(runs)
    config = _config(workdir)
    return _finite(
        {
            "systems": systems,
            "differences": _differences(runs, scored, index, speakers, baseline, drawing),
            "clusters": _clusters(workdir),
            "routing": routing(utterances, runs),
            "corpus": _corpus(utterances, speakers),
            "worst": _worst(utterances, runs, scored, focus, baseline, worst),
            "focus": focus,
            "baseline": baseline,
            "regime": regime,
            "conventions": conventions(regime, bootstrap),
            "versions": versions(config),
            "run": {k: config.get(k) for k in ("device", "git_commit")} | {"workdir": workdir.name},
        }
    )


def _finite(value: Any) -> Any:
    """nan and infinity as None: JSON has neither."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def group_values(utterances: Utterances) -> dict[str, np.ndarray]:
    """Each dimension of GROUPS that tells utterances apart: its value for every utterance, [U] of str."""
    columns: dict[str, Sequence[str]] = {
        name: utterances[name] for name in ("etiology", "severity", "sex", "language", "channel")
    }
    columns["source"] = ["simulated" if simulated else "recorded" for simulated in utterances["simulated"]]
    columns["prompt"] = ["seen" if seen else "unseen" for seen in utterances["prompt_seen"]]
    columns["length"] = [
        next(name for limit, name in LENGTHS if duration <= limit) for duration in utterances["duration_s"]
    ]
    out = {}
    for name in GROUPS:
        values = np.array([v or "unknown" for v in columns[name]], dtype=object)
        if name in ALWAYS or len(set(values)) > 1:
            out[name] = values
    return out


def _system(
    run: SystemRun,
    scores: Scores | None,
    utterances: Utterances,
    groups: dict[str, np.ndarray],
    index: np.ndarray,
    speakers: int,
    drawing: dict[str, int],
) -> dict[str, Any]:
    """One entry of `systems`; figures that do not apply to it are None."""
    entry: dict[str, Any] = {
        "key": run.key,
        "name": run.name,
        "kind": run.kind,
        "status": run.status,
        "mt": run.mt,
        "utterances": 0 if scores is None else len(utterances),
    }
    if scores is None:
        empty = {"wer": None, "cer": None, "bleu": None, "chrf": None}
        return entry | empty | {"ci95": {"wer": None, "bleu": None}, "by": {}, "note": ""}
    everything = np.ones(len(utterances), dtype=bool)
    entry |= scores.summary(everything)
    entry["regimes"] = scores.regimes
    entry["ci95"] = scores.intervals(everything, index, speakers, drawing)
    entry["edits"] = scores.edits
    entry["flags"] = dict(Counter(flag for flags in run.flags for flag in flags).most_common())
    entry["note"] = origin_note(run, utterances)
    entry["by"] = {name: _by_group(scores, values, index, speakers, drawing) for name, values in groups.items()}
    return entry


def _by_group(
    scores: Scores,
    values: np.ndarray,
    index: np.ndarray,
    speakers: int,
    drawing: dict[str, int],
) -> dict[str, Any]:
    """{value: figures} of one dimension, worst first (by WER, or by BLEU where there is no WER)."""
    out = {}
    for value in sorted(set(values)):
        chosen = values == value
        within = len(np.unique(index[chosen]))
        out[value] = scores.summary(chosen) | {
            "utterances": int(chosen.sum()),
            "speakers": within,
            "small": within < SMALL_GROUP,
            "ci95": scores.intervals(chosen, index, speakers, drawing),
        }

    def badness(item: tuple[str, dict[str, Any]]) -> float:
        row = item[1]
        if row["wer"] is not None and math.isfinite(row["wer"]):
            return float(row["wer"])
        return -float(row["bleu"]) if row["bleu"] is not None else -math.inf

    return dict(sorted(out.items(), key=badness, reverse=True))


def origin_note(run: SystemRun, utterances: Utterances) -> str:
    """What a reader must know of this system's BLEU: whether its references were translated by machine."""
    origins = Counter(o for o in utterances["translation_origin"] if o not in ("", "corpus", "human"))
    if not origins:
        return ""
    makers = ", ".join(sorted(origins))
    share = 100.0 * sum(origins.values()) / len(utterances)
    note = f"{share:.0f} % of the German references were made by {makers}"
    if run.mt and any(_same_mt(run.mt, origin) for origin in origins):
        return note + ", the translator that this system uses: its BLEU is flattered."
    return note + "."


def _same_mt(name: str, origin: str) -> bool:
    a, b = name.casefold(), origin.casefold()
    return a in b or b in a


def _differences(
    runs: list[SystemRun],
    scored: dict[str, Scores],
    index: np.ndarray,
    speakers: int,
    baseline: str,
    drawing: dict[str, int],
) -> list[dict[str, Any]]:
    """Paired differences (system minus other), with p values also corrected for their number per metric."""
    pairs = [(r.key, baseline) for r in runs if r.was_run and r.key != baseline]
    pairs += [pair for pair in PAIRS if pair[1] != baseline]
    out: list[dict[str, Any]] = []
    for key, other in pairs:
        if key not in scored or other not in scored:
            continue
        entry: dict[str, Any] = {"system": key, "baseline": other}
        for metric in ("wer", "bleu"):
            first, second = scored[key].statistics(metric), scored[other].statistics(metric)
            if first is None or second is None:
                entry[metric] = None
                continue
            found = paired(
                speaker_sums(first, index, speakers),
                speaker_sums(second, index, speakers),
                scored[key].function(metric),
                **drawing,
            )
            entry[metric] = {"difference": found.difference, "ci95": found.ci95, "p": found.p}
        if entry["wer"] or entry["bleu"]:
            out.append(entry)
    for metric in ("wer", "bleu"):
        tested = [e[metric] for e in out if e[metric] and e[metric]["p"] is not None]
        for figures, p in zip(tested, holm([f["p"] for f in tested]), strict=True):
            figures["p_holm"] = p
    return out


def _focus(runs: list[SystemRun]) -> str:
    """The system whose utterances and groups are shown in detail: moe, else the last that transcribes."""
    run = [r.key for r in runs if r.was_run]
    transcribing = [r.key for r in runs if r.was_run and r.kind == "asr+mt"]
    return "moe" if "moe" in run else (transcribing or run)[-1]


def _worst(
    utterances: Utterances,
    runs: list[SystemRun],
    scored: dict[str, Scores],
    focus: str,
    baseline: str,
    number: int,
) -> list[dict[str, Any]]:
    """The utterances on which the focus system makes most word errors."""
    counts = scored[focus].counts
    if counts is None:
        return []
    by_key = {run.key: run for run in runs}
    run, base = by_key[focus], by_key.get(baseline)
    order = np.lexsort((-counts.errors / np.maximum(counts.words, 1), -counts.errors))[:number]
    rows = []
    for u in order[counts.errors[order] > 0]:
        row = {
            field: utterances[field][u]
            for field in ("speaker", "etiology", "severity", "reference", "translation_reference")
        }
        row |= {
            "id": utterances.ids[u],
            "hypothesis": run.hypotheses[u],
            "translation": run.translations[u],
            "baseline_hypothesis": base.hypotheses[u] if base and base.was_run and base is not run else None,
            "errors": float(counts.errors[u]),
            "words": float(counts.words[u]),
            "flags": run.flags[u],
        }
        rows.append(row)
    return rows


def _corpus(utterances: Utterances, speakers: int) -> dict[str, Any]:
    simulated = sum(utterances["simulated"])
    return {
        "utterances": len(utterances),
        "speakers": speakers,
        "hours": sum(utterances["duration_s"]) / 3600.0,
        "simulated_utterances": int(simulated),
        "translation_origins": dict(Counter(o or "unknown" for o in utterances["translation_origin"])),
    }


def _clusters(workdir: Path) -> dict[str, Any] | None:
    path = workdir / "clusters" / "clusters.json"
    return read_json(path) if path.is_file() else None


def _config(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    return read_json(path) if path.is_file() else {}


def conventions(regime: str, draws: int) -> dict[str, str]:
    """What the figures mean, in words and signatures."""
    other = next(name for name in wer.REGIMES if name != regime)
    return {
        "wer": wer.DESCRIPTIONS[regime],
        "wer_other": wer.DESCRIPTIONS[other],
        "bleu": bleu.bleu_signature(),
        "chrf": bleu.chrf_signature(),
        "ci95": f"bootstrap over speakers, {draws} draws, 95 % percentile interval; differences are paired",
        "p": "two-sided, from the same draws; p_holm is corrected for the number of comparisons (Holm)",
    }


def versions(config: dict[str, Any]) -> dict[str, str]:
    """Versions written with the run, and those of the packages that computed the figures."""
    out = dict(config.get("versions") or {})
    for package in ("sacrebleu", "rapidfuzz", "numpy", "scikit-learn"):
        out[package] = importlib.metadata.version(package)
    return out
