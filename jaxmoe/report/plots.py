"""Pictures of the page: the cluster map and the training curves, as self-contained SVG or PNG."""

import base64
from collections.abc import Sequence
import io
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmoe.report.read import read_json, read_jsonl
from jaxmoe.report.routing import entropy
from jaxmoe.report.summary import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_VECTOR_POINTS = 1500  # above it an SVG grows past 300 kB and scrolls badly
# Okabe & Ito 2008: told apart with the common colour-vision deficiencies; grey is for noise and unknown.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#5b5ea6")
GREY = "#9aa3ab"
INK = "#26323c"
_ORDER = {name: i for i, name in enumerate(("gate", "experts", "joint", "encoder", "baseline", "cascade"))}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # shape repeats what colour says


def _figure(width: float, height: float) -> "Figure":
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": GREY,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "text.color": INK,
        }
    )
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure", name: str, alt: str) -> str:
    """Inline SVG; `name` keeps the ids of several pictures on one page apart."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # inline, it would style the whole page
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def _png(figure: "Figure", alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


def _label(value: Any) -> str:
    return "noise" if value == -1 else "unknown" if value in (None, "") else label(str(value))


def scatter(points: Sequence[dict[str, Any]], field: str, alt: str) -> str:
    """The cluster map coloured by a field of its points; values beyond the eighth share grey."""
    figure = _figure(5.2, 4.6)
    axes = figure.subplots()
    counts: dict[str, int] = {}
    for point in points:
        counts[_label(point[field])] = counts.get(_label(point[field]), 0) + 1
    named = sorted((v for v in counts if v not in ("noise", "unknown")), key=lambda v: (-counts[v], v))
    styles = {v: (COLOURS[i], MARKERS[i]) for i, v in enumerate(named[: len(COLOURS)])}
    size = 26 if len(points) <= 600 else 12 if len(points) <= 3000 else 4
    shown = sorted(counts, key=lambda v: (v not in styles, v))
    for value in sorted(counts, key=lambda v: v in styles):  # grey first, so that it lies underneath
        colour, marker = styles.get(value, (GREY, "."))
        chosen = [p for p in points if _label(p[field]) == value]
        axes.scatter(
            [p["x"] for p in chosen],
            [p["y"] for p in chosen],
            s=size,
            c=colour,
            marker=marker,
            linewidths=0,
            alpha=0.75,
            label=value if value in styles or value in ("noise", "unknown") else None,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: shown.index(labels[i]))
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        markerscale=1.2,
    )
    if len(points) > MAX_VECTOR_POINTS:
        return _png(figure, alt)
    return _svg(figure, f"map-{field}", alt)


def cluster_maps(workdir: Path) -> list[dict[str, str]]:
    """The map of clusters/map.json by cluster and by etiology: [{"title", "picture"}]; empty without a map."""
    path = workdir / "clusters" / "map.json"
    if not path.is_file():
        return []
    points = read_json(path)["points"]
    if not points:
        return []
    titles = {"cluster": "Coloured by the cluster found", "etiology": "Coloured by etiology"}
    return [
        {
            "title": title,
            "picture": scatter(points, field, f"Map of {len(points)} recordings, {title.lower()}"),
        }
        for field, title in titles.items()
    ]


def _effective_experts(row: dict[str, Any]) -> float | None:
    """What a training step logged of it: the number itself, or the usage that it follows from."""
    if isinstance(row.get("effective_experts"), int | float):
        return float(row["effective_experts"])
    usage = row.get("usage")
    if isinstance(usage, list) and usage and sum(usage) > 0:
        return float(np.exp(entropy(np.array(usage, dtype=np.float64) / sum(usage))))
    return None


def training_curves(workdir: Path) -> list[dict[str, str]]:
    """Loss over steps for every WORKDIR/<phase>/metrics.jsonl: [{"title", "picture"}]."""
    out = []
    paths = [p for p in workdir.glob("*/metrics.jsonl") if p.parent.suffix != ".previous"]
    for path in sorted(paths, key=lambda p: (_ORDER.get(p.parent.name, 9), p)):
        rows = [r for _, r in read_jsonl(path, growing=True) if isinstance(r.get("loss"), int | float)]
        if len(rows) < 2:
            continue
        phase = path.parent.name
        figure = _figure(4.2, 2.7)
        axes = figure.subplots()
        axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color=COLOURS[0], linewidth=1.6)
        held_out = [(r["step"], r["validation_nll"]) for r in rows if "validation_nll" in r]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color=COLOURS[0], linestyle=":", marker="o", markersize=3)
        axes.set_xlabel("step")
        axes.set_ylabel("loss (dotted: validation)" if held_out else "loss")
        alive = [(r["step"], experts) for r in rows if (experts := _effective_experts(r)) is not None]
        if len(alive) > 1:
            twin = axes.twinx()
            twin.plot(
                *zip(*alive, strict=True),
                color=COLOURS[1],
                linestyle="--",
                linewidth=1.4,
            )
            twin.set_ylabel("effective experts (dashed)", color=COLOURS[1])
            twin.set_ylim(bottom=0)
            twin.spines["right"].set_visible(True)
        alt = (
            f"Training loss of {phase}: {rows[0]['loss']:.3g} at step {rows[0]['step']},"
            f" {rows[-1]['loss']:.3g} at step {rows[-1]['step']}"
        )
        out.append({"title": phase, "picture": _svg(figure, f"curve-{phase}", alt)})
    return out


def noise_curves(stress: dict[str, Any], names: dict[str, str]) -> list[dict[str, str]]:
    """WER over the noise's level, one picture a noise, a line a system: [{"title", "picture"}]."""
    if isinstance(stress["noise"], str):
        return []
    curves = stress["noise"]["curves"]
    noises = list(dict.fromkeys(noise for systems in curves.values() for noise in systems))
    top = max((p["wer"] or 0.0 for systems in curves.values() for line in systems.values() for p in line), default=1.0)
    out = []
    for noise in noises:
        figure = _figure(4.2, 3.2)
        axes = figure.subplots()
        for number, (key, systems) in enumerate(curves.items()):
            line = [p for p in systems.get(noise, []) if p["wer"] is not None]
            levels = ["clean" if p["snr_db"] is None else f"{p['snr_db']:g} dB" for p in line]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            rates = [p["wer"] for p in line]
            axes.plot(levels, rates, label=key, color=colour, marker=marker, markersize=5, linewidth=1.6)
            bounds = [p["ci95"] or (p["wer"], p["wer"]) for p in line]
            low, high = ([pair[side] for pair in bounds] for side in (0, 1))
            axes.fill_between(levels, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.set_ylim(0, 1.1 * max(top, 1.0))
        axes.set_ylabel("WER")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        ends = "; ".join(
            f"{names[k]}: {s[noise][0]['wer']:.0f} clean, {s[noise][-1]['wer']:.0f} at worst"
            for k, s in curves.items()
            if noise in s
        )
        out.append({"title": noise, "picture": _svg(figure, f"noise-{noise}", f"WER under {noise}. {ends}")})
    return out
