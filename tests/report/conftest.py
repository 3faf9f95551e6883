"""A synthetic run: made-up words, errors and gates with known structure, for tests of the report alone."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = (
    "the nurse opened a window before winter rain and called her brother about blue paper boats near an"
    " old bridge where several green lamps were lit at night"
).split()
GERMAN = (
    "die Schwester öffnete ein Fenster vor dem Winterregen und rief ihren Bruder wegen blauer Papierboote"
    " am alten Hafen wo sieben grüne Lampen nachts brannten"
).split()
ETIOLOGIES = ("parkinson", "als", "cerebral palsy", "down", "stroke", "control")
# share of words spoilt, and systems not run
SYSTEMS: dict[str, tuple[str, str, float | None]] = {
    "whisper-v2": ("Whisper v2 (tiny.en), no fine-tuning, + Synthetic MT", "asr+mt", 0.32),
    "whisper-v3": ("Whisper v3 (base), no fine-tuning, + Synthetic MT", "asr+mt", 0.28),
    "lora": ("Whisper v2 (tiny.en), one LoRA, + Synthetic MT", "asr+mt", 0.20),
    "moe": ("Whisper v2 (tiny.en) MoE + Synthetic MT", "asr+mt", 0.15),
    "moe-distilled": ("Whisper v2 (tiny.en) MoE distilled to German, no MT", "e2e", 0.35),
    "salmonn": ("SALMONN, no fine-tuning", "e2e", None),
    "mt": ("Synthetic MT on reference transcripts", "mt", 0.08),
}


def _spoil(rng: np.random.Generator, text: str, share: float) -> str:
    words = []
    for word in text.split():
        draw = rng.random()
        if draw < share * 0.6:
            words.append(str(rng.choice(WORDS)))
        elif draw > share:
            words.append(word)
        if rng.random() < share * 0.1:
            words.append("again")
    return " ".join(words)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _utterances(rng: np.random.Generator, speakers: int, per_speaker: int) -> list[dict[str, Any]]:
    rows = []
    for s in range(speakers):
        etiology = ETIOLOGIES[s % len(ETIOLOGIES)]
        severity = "none" if etiology == "control" else ("mild", "severe")[s // len(ETIOLOGIES) % 2]
        for n in range(per_speaker):
            length = int(rng.integers(4, 12))
            rows.append(
                {
                    "id": f"spk{s:03d}-{n:03d}",
                    "speaker": f"spk{s:03d}",
                    "voice": f"voice{s % 4}",
                    "channel": f"channel{s % 3}",
                    "etiology": etiology,
                    "severity": severity,
                    "sex": "fm"[s % 2],
                    "language": "en-US",
                    "prompt": f"p{n % 5}",
                    "prompt_seen": n % 5 < 3,
                    "category": ("command", "story", "")[n % 3],
                    "duration_s": round(float(rng.uniform(2, 12)), 2),
                    "simulated": True,
                    "reference": " ".join(rng.choice(WORDS, length)),
                    "transcript": "",
                    "translation_reference": " ".join(rng.choice(GERMAN, length)) + ".",
                    "translation_origin": "Synthetic MT" if n % 2 else "corpus",
                }
            )
    return rows


def _gates(rng: np.random.Generator, etiology: str, experts: int) -> list[float]:
    logits = rng.normal(size=experts)
    logits[ETIOLOGIES.index(etiology) % experts] += 3.0
    gates = np.exp(logits) / np.exp(logits).sum()
    return [round(float(g), 6) for g in gates]


def write_run(workdir: Path, speakers: int = 24, per_speaker: int = 10, experts: int = 10, seed: int = 0) -> Path:
    """Writes a synthetic workdir as evaluate, cluster and the training phases would."""
    rng = np.random.default_rng(seed)
    utterances = _utterances(rng, speakers, per_speaker)
    for key, (name, kind, share) in SYSTEMS.items():
        rows = []
        if share is not None:
            for row in utterances:
                spoilt = share * (0.3 if row["etiology"] == "control" else 1.6 if row["severity"] == "severe" else 1)
                hypothesis = {"asr+mt": _spoil(rng, row["reference"], spoilt), "e2e": "", "mt": row["reference"]}[kind]
                moe = key.startswith("moe")
                rows.append(
                    row
                    | {
                        "hypothesis": hypothesis,
                        "translation": _spoil(rng, row["translation_reference"][:-1], spoilt) + ".",
                        "gates": _gates(rng, row["etiology"], experts) if moe else None,
                        "cluster": ETIOLOGIES.index(row["etiology"]) - 1 if moe else None,
                        "avg_logprob": -0.3,
                        "compression_ratio": 1.2,
                        "flags": ["repetition"] if rng.random() < 0.02 else [],
                    }
                )
            write_jsonl(workdir / "eval" / key / "hypotheses.jsonl", rows)
        (workdir / "eval" / key).mkdir(parents=True, exist_ok=True)
        about = {
            "key": key,
            "name": name,
            "kind": kind,
            "status": "run" if share is not None else "not run: the 13B weights are not at hand",
            "mt": None if kind == "e2e" else "Synthetic MT",
            "utterances": len(rows),
        }
        (workdir / "eval" / key / "system.json").write_text(json.dumps(about))
    _write_stress(workdir, rng, utterances)
    _write_clusters(workdir, rng, utterances)
    _write_training(workdir, rng, experts)
    (workdir / "config.json").write_text(
        json.dumps({"config": {"seed": seed}, "versions": {"jax": "0.0"}, "git_commit": "0" * 40, "device": "cpu"})
    )
    return workdir


def _write_stress(workdir: Path, rng: np.random.Generator, utterances: list[dict[str, Any]]) -> None:
    """Six utterances under babble, silence on which whisper-v2 invents text, and recordings of two accents."""
    own = {"translation": "", "flags": [], "gates": None, "cluster": None}
    nothing = {"translation_reference": "", "translation_origin": ""}
    for key, share in (("whisper-v2", 0.32), ("moe", 0.15)):
        noisy, spoken = [], []
        for row in utterances[::40]:
            for condition, worse in (("clean", 1.0), ("babble 10 dB", 1.5), ("babble 0 dB", 3.0)):
                hypothesis = _spoil(rng, row["reference"], share * worse)
                known = {"id": f"{row['id']}@{condition}", "channel": condition, "hypothesis": hypothesis}
                noisy.append(row | nothing | own | known)
        silent = utterances[0] | nothing | own | {"reference": "", "channel": "silence", "speaker": "nobody"}
        text = "thank you" if key == "whisper-v2" else ""
        noisy += [silent | {"id": f"silence-{n}", "hypothesis": text if n else ""} for n in range(4)]
        for n, row in enumerate(utterances[:60]):
            accent = ("Welsh", "Mandarin")[n // 10 % 2]
            hypothesis = _spoil(rng, row["reference"], 0.05 if accent == "Welsh" else share)
            spoken.append(row | nothing | own | {"language": accent, "hypothesis": hypothesis, "etiology": "unknown"})
        for name, rows in (("noise", noisy), ("recordings", spoken)):
            folder = workdir / "stress" / name / key
            write_jsonl(folder / "hypotheses.jsonl", rows)
            about = {"key": key, "name": key, "kind": "asr+mt", "status": "run", "mt": None, "utterances": len(rows)}
            (folder / "system.json").write_text(json.dumps(about))


def _write_clusters(workdir: Path, rng: np.random.Generator, utterances: list[dict[str, Any]]) -> None:
    points = []
    for row in utterances:
        k = ETIOLOGIES.index(row["etiology"])
        x, y = rng.normal(size=2) * 0.6 + 4 * np.array([np.cos(k), np.sin(k)])
        points.append(
            {"x": float(x), "y": float(y), "cluster": k - 1, "sentence": row["prompt"]}
            | {f: row[f] for f in ("id", "etiology", "severity", "voice", "speaker", "channel")}
        )
    folder = workdir / "clusters"
    folder.mkdir(parents=True)
    (folder / "map.json").write_text(json.dumps({"points": points}))
    ami = {"etiology": 0.81, "severity": 0.32, "speaker": 0.12, "channel": 0.05, "sentence": 0.01}
    figures = {"found": 5, "noise_share": 1 / 6, "ami": ami, "ami_held_out": ami | {"etiology": 0.7}, "dbcv": 0.4}
    (folder / "clusters.json").write_text(json.dumps(figures))


def _write_training(workdir: Path, rng: np.random.Generator, experts: int) -> None:
    for phase, level in (("gate", 2.0), ("experts", 3.0), ("joint", 1.6), ("baseline", 2.5)):
        rows = []
        for step in range(0, 200, 10):
            row: dict[str, Any] = {"step": step, "time_s": step / 10}
            row["loss"] = level * float(np.exp(-step / 80)) + 0.3 + 0.05 * float(rng.normal())
            if phase == "joint":
                row["usage"] = [1 / experts] * experts
                row["effective_experts"] = 4 + step / 100
            rows.append(row)
        write_jsonl(workdir / phase / "metrics.jsonl", rows)


@pytest.fixture
def make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "synthetic")
