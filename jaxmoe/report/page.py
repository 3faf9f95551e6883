"""Renders index.html: one self-contained page from metrics.json, the cluster map and the training curves."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
import re
from typing import Any

import jinja2
from markupsafe import Markup, escape
from rapidfuzz.distance import Levenshtein

from jaxmoe.eval import semantic
from jaxmoe.report import plots, summary
from jaxmoe.report.stress import SMALL_GROUP

DIMENSIONS = {
    "etiology": "Etiology",
    "severity": "Severity",
    "prompt": "Prompt in the training data",
    "category": "Kind of prompt",
    "sex": "Sex",
    "language": "Language background",
    "source": "Simulated or recorded",
    "channel": "Recording channel",
    "length": "Length of the recording",
    "level": "Loudness",
    "snr": "Speech over background noise (estimated)",
    "expert": "Leading expert",
    "speaker": "Speaker",
}
MISSING = "\u2013"  # en dash: not measured


def render(metrics: dict[str, Any], workdir: Path, players: dict[str, str] | None = None) -> str:
    """The page as HTML text. Every number in it is a `<data>` element that names its place in metrics.json.

    players: sound of utterances by id, as data: URLs.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    figure = _figure_of(metrics)
    environment.globals.update(
        figure=figure,
        interval=_interval_of(metrics, figure),
        verdict=summary.verdict,
        label=summary.label,
        bar=bar,
        shade=shade,
        ink=ink,
        marked=marked,
        dimensions=DIMENSIONS,
        small_group=SMALL_GROUP,
    )
    systems = metrics["systems"]
    keys = [s["key"] for s in systems]
    focus = keys.index(metrics["focus"])
    base = keys.index(metrics["baseline"]) if metrics["baseline"] in keys else None
    if base is not None and (systems[base]["status"] != "run" or base == focus):
        base = None
    return environment.get_template("page.html").render(
        m=metrics,
        names={s["key"]: s["name"] for s in systems},
        focus=focus,
        base=base,
        cards=_cards(metrics),
        sentences=summary.sentences(metrics),
        personal=_personal(metrics["personalize"]),
        scale=_top(systems),
        group_scale=_top(list(chain.from_iterable(g.values() for g in systems[focus]["by"].values()))),
        notes=list(dict.fromkeys(s["note"] for s in systems if s["note"])),
        against=list(dict.fromkeys(d["baseline"] for d in metrics["differences"])),
        judges={name: title for name, title in semantic.NAMES.items() if name in metrics["conventions"]},
        other_regime=next((r for r in systems[focus]["regimes"] if r != metrics["regime"]), None),
        maps=[_safe(m) for m in plots.cluster_maps(workdir)],
        curves=[_safe(c) for c in plots.training_curves(workdir)],
        noise_curves=[_safe(c) for c in plots.noise_curves(metrics["stress"], {s["key"]: s["name"] for s in systems})],
        players=players or {},
    )


def _personal(found: dict[str, Any] | None) -> list[tuple[str, tuple[str, ...]]]:
    """Whom phase personalize judged, all first, and where their figures are."""
    if not found:
        return []
    groups = [(summary.label(name), ("personalize", "by_etiology", name)) for name in found.get("by_etiology", {})]
    return [("all", ("personalize",)), *groups]


def _top(rows: list[dict[str, Any]]) -> float:
    """The end of the bars' scale: the highest WER or upper bound."""
    values = [row["wer"] or 0.0 for row in rows] + [row["ci95"]["wer"][1] for row in rows if row["ci95"]["wer"]]
    return max([*values, 1.0])


def _safe(picture: dict[str, str]) -> dict[str, Any]:
    return {"title": picture["title"], "picture": Markup(picture["picture"])}


def pointer(metrics: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    """The value at a path; None as soon as a step is missing or None."""
    value: Any = metrics
    for step in path:
        if value is None or (isinstance(value, dict) and step not in value):
            return None
        value = value[step]
    return value


def _figure_of(metrics: dict[str, Any]) -> Callable[..., Markup]:
    def figure(*path: str | int, digits: int = 1, scale: float = 1.0, signed: bool = False) -> Markup:
        """`<data value data-at>` of one number: `data-at` is its JSON pointer (RFC 6901) in metrics.json."""
        value = pointer(metrics, path)
        if value is None:
            return Markup(f'<span class="missing" title="not measured">{MISSING}</span>')
        at = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
        text = f"{value * scale:{'+' if signed else ''},.{digits}f}".replace("-", "\u2212")
        return Markup('<data value="{}" data-at="{}">{}</data>').format(repr(value), at, text)

    return figure


def _interval_of(metrics: dict[str, Any], figure: Callable[..., Markup]) -> Callable[..., Markup]:
    def interval(*path: str | int) -> Markup:
        """`low to high` of a pair in metrics.json; nothing where there is none."""
        if pointer(metrics, path) is None:
            return Markup("")
        return Markup('<span class="ci">{} to {}</span>').format(figure(*path, 0), figure(*path, 1))

    return interval


def _cards(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Up to four headline figures: {"label", "path", "digits", "scale", "foot"}."""
    systems = metrics["systems"]
    focus = next(i for i, s in enumerate(systems) if s["key"] == metrics["focus"])
    base = summary.by_key(metrics).get(metrics["baseline"])
    out: list[dict[str, Any]] = []
    if systems[focus]["wer"] is not None:
        foot = "of 100 words wrong"
        if base and base["wer"] is not None and base["key"] != metrics["focus"]:
            foot += f"; {base['wer']:.1f} for the baseline"
        out.append({"label": "Word error rate", "path": ("systems", focus, "wer"), "foot": foot})
    if systems[focus]["bleu"] is not None:
        foot = "German translation, 0 to 100, higher is better"
        out.append({"label": "BLEU", "path": ("systems", focus, "bleu"), "foot": foot})
    if metrics["routing"]:
        foot = f"of {metrics['routing']['experts']}; 1 would mean collapsed routing"
        path = ("routing", "effective_experts")
        out.append({"label": "Effective experts", "path": path, "foot": foot})
    worst = next(iter(systems[focus]["by"].get("etiology", {}).items()), None)
    if worst and worst[1]["wer"] is not None and len(systems[focus]["by"]["etiology"]) > 1:
        foot = f"word error rate for {summary.label(worst[0])}, the hardest etiology"
        at = ("systems", focus, "by", "etiology", worst[0], "wer")
        out.append({"label": "Hardest group", "path": at, "foot": foot})
    return [{"digits": 1, "scale": 1.0} | card for card in out]


def bar(value: float | None, ci: list[float] | None, scale: float) -> Markup:
    """A horizontal bar of value / scale with its interval as a line; decoration, hidden from screen readers."""
    if value is None:
        return Markup("")
    width = min(100.0, 100.0 * value / scale)
    parts = f'<i style="width:{width:.1f}%"></i>'
    if ci:
        low, high = (min(100.0, 100.0 * c / scale) for c in ci)
        parts += f'<b style="left:{low:.1f}%;width:{max(high - low, 0.4):.1f}%"></b>'
    return Markup(f'<span class="bar" aria-hidden="true">{parts}</span>')


def shade(share: float) -> str:
    """Background of a heat-map cell for a share in [0, 1]: white to dark blue."""
    light, dark = (255, 255, 255), (8, 72, 135)
    mixed = (round(a + (b - a) * min(max(share, 0.0), 1.0)) for a, b in zip(light, dark, strict=True))
    return "rgb({},{},{})".format(*mixed)


def ink(share: float) -> str:
    """Text colour on `shade(share)` with a contrast of at least 4.5."""
    return "#ffffff" if share > 0.73 else "#000000"


def marked(reference: str, hypothesis: str) -> Markup:
    """The hypothesis with wrong words in `<mark>` and words that are missing in `<del>`."""
    ref, hyp = reference.split(), hypothesis.split()
    opcodes = Levenshtein.opcodes([_plain(w) for w in ref], [_plain(w) for w in hyp])
    parts: list[Markup] = []
    for op in opcodes:
        said = escape(" ".join(hyp[op.dest_start : op.dest_end]))
        if op.tag == "equal":
            parts.append(said)
        elif op.tag == "delete":
            parts.append(Markup("<del>{}</del>").format(" ".join(ref[op.src_start : op.src_end])))
        else:
            parts.append(Markup("<mark>{}</mark>").format(said))
    return Markup(" ").join(parts) if parts else Markup("<em>nothing</em>")


def _plain(word: str) -> str:
    return re.sub(r"[^\w']", "", word.casefold())
