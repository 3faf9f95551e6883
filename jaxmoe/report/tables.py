"""The table of systems for spreadsheets (CSV) and for papers (LaTeX), from metrics.json alone."""

import csv
import io
from typing import Any

FIGURES = (
    *("utterances", "speakers", "wer", "wer_low", "wer_high", "cer", "bleu", "bleu_low", "bleu_high", "chrf"),
    *("comet", "semscore"),
)
COLUMNS = ("system", "name", "kind", "status", "dimension", "group", *FIGURES, "note")


def csv_table(metrics: dict[str, Any]) -> str:
    """A row for every system, and one for each of its groups; empty cells were not measured."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    for system in metrics["systems"]:
        own = {"system": system["key"], "name": system["name"], "kind": system["kind"], "status": system["status"]}
        own["note"] = system["note"]
        writer.writerow(own | _figures(system) | {"dimension": "all", "group": "all"})
        for dimension, groups in system["by"].items():
            for value, figures in groups.items():
                writer.writerow(own | _figures(figures) | {"dimension": dimension, "group": value})
    return buffer.getvalue()


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    out = {name: row.get(name) for name in FIGURES}
    for metric in ("wer", "bleu"):
        out[f"{metric}_low"], out[f"{metric}_high"] = row["ci95"][metric] or (None, None)
    return out


_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {c: "\\" + c for c in "&%$#_{}"}


def escape(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(_ESCAPES.get(c, c) for c in text)


def latex_table(metrics: dict[str, Any]) -> str:
    """A booktabs table of the systems that were run; the conventions stand in its caption."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"System & WER & 95\,\% & BLEU & 95\,\% \\",
        r"\midrule",
    ]
    for system in metrics["systems"]:
        if system["status"] == "run":
            cells = [escape(system["name"])]
            for metric in ("wer", "bleu"):
                value, ci = system[metric], system["ci95"][metric]
                cells += ["--" if value is None else f"{value:.1f}", f"{ci[0]:.1f}--{ci[1]:.1f}" if ci else "--"]
            lines.append(" & ".join(cells) + r" \\")
    conventions, corpus = metrics["conventions"], metrics["corpus"]
    count = corpus["simulated_utterances"]
    simulated = f" {count} of them are simulated speech." if count else ""
    notes = list(dict.fromkeys(s["note"] for s in metrics["systems"] if s["status"] == "run" and s["note"]))
    caption = (
        f"{corpus['utterances']} utterances of {corpus['speakers']} speakers.{simulated} WER {conventions['wer']}."
        f" BLEU {conventions['bleu']}. Intervals: {conventions['ci95']}." + "".join(f" {note}" for note in notes)
    )
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape(caption)}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"
