"""What a prepared corpus holds, counted from its tables: no audio is read."""

from collections import Counter
import json
from pathlib import Path
from typing import Any

from jaxmoe.data import prepared
from jaxmoe.data.checks import SAMPLE_RATE_HZ
from jaxmoe.data.corpora import SPLITS


def summarise(folder: Path) -> dict[str, Any]:
    """Counts of what is stored and what was set aside, from the tables in `folder`."""
    splits = {s: _summarise_split(folder, s) for s in SPLITS if prepared.metadata_file(folder, s).exists()}
    reasons: Counter[str] = Counter()
    by_etiology: dict[str, Counter[str]] = {}
    with open(folder / "rejected.jsonl", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            reasons[row["reason"]] += 1
            by_etiology.setdefault(row["reason"], Counter())[row["etiology"]] += 1
    return {
        "utterances": sum(s["utterances"] for s in splits.values()),
        "hours": round(sum(s["hours"] for s in splits.values()), 4),
        "splits": splits,
        "rejected": dict(reasons.most_common()),
        "rejected_by_etiology": {reason: dict(by_etiology[reason].most_common()) for reason in sorted(by_etiology)},
    }


def _summarise_split(folder: Path, split: str) -> dict[str, Any]:
    counts: Counter[tuple[str, str]] = Counter()
    samples, speakers = 0, set()
    with open(prepared.metadata_file(folder, split), encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            counts[row["etiology"], row["severity"]] += 1
            samples += row["samples"]
            speakers.add(row["speaker"])
    by_etiology: dict[str, dict[str, int]] = {}
    for (etiology, severity), n in sorted(counts.items()):
        by_etiology.setdefault(etiology, {})[severity] = n
    return {
        "utterances": sum(counts.values()),
        "speakers": len(speakers),
        "hours": round(samples / SAMPLE_RATE_HZ / 3600, 4),
        "by_etiology": by_etiology,
    }


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """For people."""
    print(f"{summary['utterances']} recordings, {summary['hours']:.2f} h, in {folder}")
    for split in SPLITS:
        if split not in summary["splits"]:
            print(f"  {split:<11} empty: it takes three speakers or a column split; of one person, no column speaker")
            continue
        s = summary["splits"][split]
        print(f"  {split:<11}{s['utterances']:>7} recordings {s['speakers']:>5} speakers {s['hours']:>8.2f} h")
    if summary["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["rejected"].items())
        print(f"  set aside: {reasons}; see {folder / 'rejected.jsonl'}")
    print(f"  data card: {folder / 'card.html'}")
