"""The data card of a prepared corpus: what a model trained on it has and has not heard, as one page."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from jaxmoe.data import prepared
from jaxmoe.data.corpora import SPLITS

LENGTHS_S = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60)  # edges of the histogram; the last bin is open
WINDOW_S = 30.0


def describe(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of the card, counted from the tables in WORKDIR/corpus; `summary` is summary.json's."""
    hours: dict[str, Counter[str]] = defaultdict(Counter)  # split -> etiology -> hours
    speakers: dict[tuple[str, str, str], set[str]] = defaultdict(set)  # (split, etiology, severity)
    languages: dict[str, set[str]] = defaultdict(set)
    prompts: dict[str, set[str]] = {split: set() for split in SPLITS}
    utterances: Counter[tuple[str, str, str]] = Counter()
    lengths = [0] * len(LENGTHS_S)
    shares: Counter[str] = Counter()
    for split in SPLITS:
        for row in _rows(prepared.metadata_file(folder, split)):
            kind, seconds = (split, row["etiology"], row["severity"]), row["duration_s"]
            hours[split][row["etiology"]] += seconds / 3600
            speakers[kind].add(row["speaker"])
            utterances[kind] += 1
            languages[row["language"] or "not known"].add(row["speaker"])
            prompts[split].add(row["prompt"])
            lengths[max(i for i, edge in enumerate(LENGTHS_S) if seconds >= edge)] += 1
            shares["simulated"] += row["simulated"]
            shares["german"] += bool(row["translation"])
            shares["long"] += seconds > WINDOW_S
            shares["seen in train"] += split != "train" and row["prompt_seen"]
            shares["held out"] += split != "train"
    total = max(sum(utterances.values()), 1)
    return {
        "corpus": summary["corpus"],
        "summary": summary,
        "splits": [split for split in SPLITS if hours[split]],
        "hours": {split: dict(by) for split, by in hours.items()},
        "etiologies": [e for e, _ in sum(hours.values(), Counter()).most_common()],
        "kinds": [
            {"split": s, "etiology": e, "severity": v, "speakers": len(speakers[s, e, v]), "utterances": n}
            for (s, e, v), n in sorted(utterances.items(), key=lambda x: (SPLITS.index(x[0][0]), *x[0][1:]))
        ],
        "lengths": [
            (f"{low}–{high} s" if high else f"over {low} s", n)
            for low, high, n in zip(LENGTHS_S, [*LENGTHS_S[1:], 0], lengths, strict=True)
        ],
        "languages": sorted(((name, len(who)) for name, who in languages.items()), key=lambda x: (-x[1], x[0])),
        "overlap": [[len(prompts[a] & prompts[b]) for b in SPLITS] for a in SPLITS],
        "shares": {name: n / (max(shares["held out"], 1) if name == "seen in train" else total)
                   for name, n in shares.items()},
        "rejected": _rejected(summary),
    }  # fmt: skip


def _rows(path: Path) -> Any:
    if path.exists():
        with open(path, encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _rejected(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(reason, how many, of whom), most frequent first."""
    return [
        (reason, n, ", ".join(f"{e} {m}" for e, m in summary["rejected_by_etiology"][reason].items()))
        for reason, n in summary["rejected"].items()
    ]


def bars(items: Sequence[tuple[str, float]], unit: str, digits: int = 0) -> str:
    """A bar chart as inline SVG: (label, value) from top to bottom."""
    from markupsafe import Markup, escape

    most = max([value for _, value in items], default=0) or 1
    rows = []
    for n, (label, value) in enumerate(items):
        y, width = 24 * n, 420 * value / most
        rows.append(
            f'<text x="205" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="212" y="{y + 2}" width="{width:.1f}" height="17"/>'
            f'<text x="{218 + width:.1f}" y="{y + 15}">{value:,.{digits}f} {escape(unit)}</text>'
        )
    height = 24 * len(items)
    return Markup(f'<svg viewBox="0 0 760 {height}" width="760" role="img">{"".join(rows)}</svg>')


def write_card(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes WORKDIR/corpus/card.html."""
    environment = Environment(loader=PackageLoader("jaxmoe", "report"), autoescape=select_autoescape())
    environment.globals["bars"] = bars
    card = describe(folder, summary)
    part = folder / "card.html.part"
    part.write_text(environment.get_template("data_card.html").render(card=card, splits=SPLITS), encoding="utf-8")
    part.replace(folder / "card.html")
