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

from jaxmoe.eval import bleu, semantic, wer
from jaxmoe.eval.bootstrap import holm, paired, speaker_index, speaker_sums
from jaxmoe.eval.matched_pairs import matched_pairs
from jaxmoe.report.errors import bins, lost_sounds, most_confused
from jaxmoe.report.faults import refuse_leaks, warnings
from jaxmoe.report.read import SystemRun, Utterances, read_evaluation, read_json, read_jsonl
from jaxmoe.report.routing import leading_expert, routing
from jaxmoe.report.scores import METRICS, Scores, score_systems
from jaxmoe.report.stress import SMALL_GROUP, stress

# Second comparisons beside those with the baseline: what an addition brings over what it was added to.
PAIRS = (
    *(("moe", "lora"), ("moe-encoder", "moe"), ("moe-custom-mt", "moe"), ("moe-risk", "moe")),
    *(("moe-risk", "moe-encoder"), ("salmonn-tuned", "salmonn")),
)
GROUPS = (
    *("etiology", "severity", "prompt", "category", "sex", "language", "source", "channel", "length", "level", "snr"),
    *("expert", "speaker"),
)
BALANCED = ("etiology", "language", "speaker")  # who is reweighted, so that nobody is drowned by a majority
MOST_VALUES = 40  # of a dimension: a hundred speakers are no table
ALWAYS = ("etiology", "severity", "prompt")  # kept even when every utterance has the same value
LENGTHS_S, LEVELS_DBFS, SNRS_DB = (5.0, 10.0, 30.0), (-35.0, -25.0), (10.0, 20.0, 30.0)


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
        raise ValueError(f"--regime={regime}: expected one of {sorted(wer.REGIMES)}.")
    utterances, runs = read_evaluation(workdir / "eval")
    refuse_leaks(workdir, utterances)
    scored = score_systems(utterances, runs, regime)
    index, speakers = speaker_index(utterances["speaker"])
    groups = group_values(utterances, _sound(workdir), leading_expert(runs))
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
            "personalize": _personalize(workdir),
            "stress": stress(workdir, utterances, runs, scored, baseline, regime, drawing),
            "errors": _errors(utterances, runs, scored, (focus, baseline)),
            "corpus": _corpus(utterances, speakers),
            "worst": _worst(utterances, runs, scored, focus, baseline, worst),
            "warnings": warnings(runs, groups),
            "focus": focus,
            "baseline": baseline,
            "regime": regime,
            "conventions": conventions(regime, bootstrap) | _judges(runs),
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


def _sound(workdir: Path) -> dict[str, dict[str, Any]]:
    """id -> estimated level and signal-to-noise ratio, where `evaluate` has written them."""
    path = workdir / "eval" / "sound.jsonl"
    return {row["id"]: row for _, row in read_jsonl(path)} if path.is_file() else {}


def group_values(
    utterances: Utterances, sound: dict[str, dict[str, Any]], experts: list[str] | None
) -> dict[str, np.ndarray]:
    """Each dimension of GROUPS that tells utterances apart: its value for every utterance, [U] of str."""
    columns: dict[str, Sequence[str]] = {
        name: utterances[name]
        for name in ("etiology", "severity", "category", "sex", "language", "channel", "speaker")
    }
    columns["source"] = ["simulated" if simulated else "recorded" for simulated in utterances["simulated"]]
    columns["prompt"] = ["seen" if seen else "unseen" for seen in utterances["prompt_seen"]]
    columns["length"] = bins(utterances["duration_s"], LENGTHS_S, "s").tolist()
    measured = [sound.get(id_, {}) for id_ in utterances.ids]
    columns["level"] = bins([m.get("level_dbfs") for m in measured], LEVELS_DBFS, "dBFS").tolist()
    columns["snr"] = bins([m.get("snr_db") for m in measured], SNRS_DB, "dB").tolist()
    columns["expert"] = experts or [""] * len(utterances)
    out = {}
    for name in GROUPS:
        values = np.array([v or "unknown" for v in columns[name]], dtype=object)
        if name in ALWAYS or 1 < len(set(values)) <= MOST_VALUES:
            out[name] = values
    return out


def _errors(
    utterances: Utterances, runs: list[SystemRun], scored: dict[str, Scores], keys: Sequence[str]
) -> dict[str, Any]:
    """Sounds lost in substituted words, and the words most often confused, of the systems `keys` that transcribe."""
    by_key = {run.key: run for run in runs}
    return {
        key: {
            "lost_sounds": lost_sounds(utterances["reference"], by_key[key].hypotheses),
            "confused": most_confused(utterances["reference"], by_key[key].hypotheses),
        }
        for key in dict.fromkeys(keys)
        if key in scored and scored[key].counts is not None
    }


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
        return entry | dict.fromkeys(METRICS) | {"ci95": {"wer": None, "bleu": None}, "by": {}, "note": ""}
    everything = np.ones(len(utterances), dtype=bool)
    entry |= scores.summary(everything)
    entry["regimes"] = scores.regimes
    entry["ci95"] = scores.intervals(everything, index, speakers, drawing)
    entry["edits"] = scores.edits
    entry["flags"] = dict(Counter(flag for flags in run.flags for flag in flags).most_common())
    entry["note"] = origin_note(run, utterances)
    entry["by"] = {name: _by_group(scores, values, index, speakers, drawing) for name, values in groups.items()}
    entry["balanced"] = {name: balanced(entry["by"][name]) for name in BALANCED if name in groups}
    return entry


def balanced(groups: dict[str, dict[str, Any]]) -> float | None:
    """Mean WER of the groups, every group counted equally: a group with few recordings weighs as much as any other."""
    rates = [figures["wer"] for figures in groups.values()]
    return None if None in rates or not rates else float(np.mean(rates))


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
    """What a reader must know of this system's BLEU: why there is none, or that its references were translated by
    machine."""
    if run.without_mt:
        return f"without German: {run.without_mt}"
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
    # What recognition costs the translation: the same translator on the reference transcripts.
    given = {r.mt: r.key for r in reversed(runs) if r.was_run and r.kind == "mt"}
    pairs += [(r.key, given[r.mt]) for r in runs if r.was_run and r.kind == "asr+mt" and r.mt in given]
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
            if metric == "wer":
                entry[metric]["p_matched"] = matched_pairs(first[:, 0], second[:, 0])
        if entry["wer"] or entry["bleu"]:
            out.append(entry)
    for metric, name in (("wer", "p"), ("bleu", "p"), ("wer", "p_matched")):
        tested = [e[metric] for e in out if e[metric] and e[metric][name] is not None]
        for figures, p in zip(tested, holm([f[name] for f in tested]), strict=True):
            figures[f"{name}_holm"] = p
    return out


def _focus(runs: list[SystemRun]) -> str:
    """The system whose utterances and groups are shown in detail: the one that `transcribe --checkpoint` hears with,
    else the last that transcribes."""
    run = [r.key for r in runs if r.was_run]
    transcribing = [r.key for r in runs if r.was_run and r.kind == "asr+mt"]
    return next((key for key in ("moe-encoder", "moe") if key in run), (transcribing or run)[-1])


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


def _personalize(workdir: Path) -> dict[str, Any] | None:
    """What phase personalize measured, of the model that is there."""
    path = workdir / "personalize" / "figures.json"
    if not path.is_file():
        return None
    from jaxmoe.system import personal_start  # imports JAX

    return read_json(path) if personal_start(workdir)[1] else None


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
        "p_matched": "matched-pairs test over utterances (Gillick & Cox 1989), two-sided; takes them for independent",
    }


def _judges(runs: list[SystemRun]) -> dict[str, str]:
    """What judged the translations' meaning, by metric."""
    by = {name: found["by"] for run in runs for name, found in run.judged.items()}
    return {name: semantic.DESCRIPTIONS[name].format(by=by[name]) for name in semantic.JUDGES if name in by}


def versions(config: dict[str, Any]) -> dict[str, str]:
    """Versions written with the run, and those of the packages that computed the figures."""
    out = dict(config.get("versions") or {})
    for package in ("sacrebleu", "rapidfuzz", "numpy", "scikit-learn"):
        out[package] = importlib.metadata.version(package)
    return out
