"""Three weaknesses looked at: ordinary speech, noise, and accents, from WORKDIR/stress and the evaluation itself."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxmoe.eval import wer
from jaxmoe.eval.bootstrap import paired, speaker_index, speaker_sums
from jaxmoe.report.read import SystemRun, Utterances, read_evaluation
from jaxmoe.report.scores import Scores, score_systems

SMALL_GROUP = 5  # speakers: below it an interval over speakers says little, and the page marks the group
TARGET = 0.5  # points of WER that adaptation may cost on ordinary speech
CONTROLS = ("control", "none", "healthy", "typical")
Drawing = dict[str, int]


def stress(
    workdir: Path,
    utterances: Utterances,
    runs: list[SystemRun],
    scored: dict[str, Scores],
    baseline: str,
    regime: str,
    drawing: Drawing,
) -> dict[str, Any]:
    """{"noise", "silence", "groups"}; each of them a string "not run: REASON" where there is nothing."""
    groups = _groups("evaluation", utterances, scored, baseline, drawing, _evaluation_groups(utterances))
    noise: Any = "not run: config.stress.utterances or config.stress.systems is empty, or no system could be run"
    silence: Any = noise
    if found := _read(workdir / "stress" / "noise"):
        clips, systems = found
        noise, silence = _noise(clips, systems, regime, drawing), _silence(clips, systems)
    recordings = "not run: config.stress.recordings names no table of other people's speech"
    if found := _read(workdir / "stress" / "recordings"):
        clips, systems = found
        languages = np.array([value or "unknown" for value in clips["language"]], dtype=object)
        named = {f"{value}": languages == value for value in sorted(set(languages))}
        groups += _groups("recordings", clips, score_systems(clips, systems, regime), baseline, drawing, named)
        recordings = "run"
    return {"noise": noise, "silence": silence, "groups": groups, "recordings": recordings, "target": TARGET}


def _read(folder: Path) -> tuple[Utterances, list[SystemRun]] | None:
    """What the systems made of one set of clips; None where no system could be run on it."""
    try:
        return read_evaluation(folder)
    except FileNotFoundError:
        return None


def is_control(utterances: Utterances) -> np.ndarray:
    """Which utterances are of people without a disorder, bool [U]."""
    return np.array([str(value).casefold() in CONTROLS for value in utterances["etiology"]])


def _evaluation_groups(utterances: Utterances) -> dict[str, np.ndarray]:
    """Controls, and each language background where there is more than one."""
    out = {"controls": is_control(utterances)}
    languages = np.array([value or "unknown" for value in utterances["language"]], dtype=object)
    if len(set(languages)) > 1:
        out |= {str(value): languages == value for value in sorted(set(languages))}
    return {name: chosen for name, chosen in out.items() if chosen.any()}


def _groups(
    origin: str,
    utterances: Utterances,
    scored: dict[str, Scores],
    baseline: str,
    drawing: Drawing,
    groups: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """WER of every system on each group, its paired difference from the baseline, and whether that meets the target."""
    index, speakers = speaker_index(utterances["speaker"])
    out = []
    for name, chosen in groups.items():
        present = np.unique(index[chosen])
        systems = {}
        for key, scores in scored.items():
            table = scores.statistics("wer")
            if table is None:
                continue
            ci95 = scores.intervals(chosen, index, speakers, drawing, ("wer",))["wer"]
            entry: dict[str, Any] = {"wer": scores.summary(chosen)["wer"], "ci95": ci95}
            base = scored[baseline].statistics("wer") if baseline in scored else None
            if base is not None and key != baseline:
                sums = [speaker_sums(t[chosen], index[chosen], speakers)[present] for t in (table, base)]
                found = paired(sums[0], sums[1], wer.rate, **drawing)
                entry["difference"] = {"difference": found.difference, "ci95": found.ci95, "p": found.p}
                entry["target"] = against_target(found.ci95, len(present))
            systems[key] = entry
        counts = {"utterances": int(chosen.sum()), "speakers": len(present)}
        out.append({"set": origin, "group": name, **counts, "systems": systems})
    return out


def against_target(ci95: tuple[float, float] | None, speakers: int) -> str:
    """Whether TARGET is "met" or "missed" by the whole interval of enough speakers; "open" otherwise."""
    if ci95 is None or speakers < SMALL_GROUP:
        return "open"
    return "met" if ci95[1] <= TARGET else "missed" if ci95[0] > TARGET else "open"


def _noise(clips: Utterances, runs: list[SystemRun], regime: str, drawing: Drawing) -> dict[str, Any]:
    """{"utterances", "curves": {system: {noise: [{"snr_db" (None: clean), "wer", "ci95"}]}}}, cleanest first."""
    channels = np.array(clips["channel"], dtype=object)
    index, speakers = speaker_index(clips["speaker"])
    conditions = sorted({c for c in channels if c not in ("clean", "silence")}, key=lambda c: -_level(c))
    curves: dict[str, Any] = {}
    for key, scores in score_systems(clips, runs, regime).items():
        points = {}
        for condition in ["clean", *conditions]:
            chosen = channels == condition
            ci95 = scores.intervals(chosen, index, speakers, drawing, ("wer",))["wer"]
            level = None if condition == "clean" else _level(condition)
            points[condition] = {"snr_db": level, "wer": scores.summary(chosen)["wer"], "ci95": ci95}
        curves[key] = {
            name: [points["clean"], *(points[c] for c in conditions if _name(c) == name)]
            for name in sorted({_name(c) for c in conditions})
        }
    return {"utterances": int((channels == "clean").sum()), "curves": curves}


def _name(condition: str) -> str:
    return condition.split(" ")[0]


def _level(condition: str) -> float:
    """ "babble 10 dB" -> 10."""
    return float(condition.split(" ")[1])


def _silence(clips: Utterances, runs: list[SystemRun]) -> dict[str, Any]:
    """{system: {"clips", "with_text", "words", "example"}}: what is heard where nobody speaks."""
    chosen = [i for i, channel in enumerate(clips["channel"]) if channel == "silence"]
    out = {}
    for run in runs:
        if not run.was_run:
            continue
        texts = [wer.normalize(run.hypotheses[i]) for i in chosen]
        heard = [t for t in texts if t]
        counts = {"clips": len(texts), "with_text": len(heard), "words": sum(len(t.split()) for t in heard)}
        out[run.key] = counts | {"example": max(heard, key=len, default="")[:200]}
    return out
