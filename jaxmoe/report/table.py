"""The table of systems as plain text for a terminal, for one run or several side by side."""

from typing import Any

from jaxmoe.eval.semantic import NAMES

HEADER = ("System", "WER", "95 %", "CER", "BLEU", "95 %", "chrF")


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(ci: list[float] | None) -> str:
    return "" if ci is None else f"{ci[0]:.1f}-{ci[1]:.1f}"


def lay_out(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def text_table(metrics: dict[str, Any]) -> str:
    """All systems of one run; those not run with their reason below the figures."""
    judges = [name for name in NAMES if name in metrics["conventions"]]
    rows: list[tuple[str, ...]] = [(*HEADER, *(NAMES[name] for name in judges), "n")]
    for s in metrics["systems"]:
        if s["status"] == "run":
            ci = s["ci95"]
            english = (_number(s["wer"]), _interval(ci["wer"]), _number(s["cer"]))
            german = (_number(s["bleu"]), _interval(ci["bleu"]), _number(s["chrf"]))
            judged = (_number(s[name]) for name in judges)
            rows.append((s["name"], *english, *german, *judged, str(s["utterances"])))
    lines = lay_out(rows)
    lines.insert(1, "-" * max(len(line) for line in lines))
    lines += [f"{s['name']}: {s['status']}" for s in metrics["systems"] if s["status"] != "run"]
    notes = {s["note"]: s["name"] for s in metrics["systems"] if s.get("note")}
    lines += [f"Note ({name}): {note}" for note, name in notes.items()]
    conventions = metrics["conventions"]
    lines += [f"WER {conventions['wer']}", f"BLEU {conventions['bleu']}", f"95 % {conventions['ci95']}"]
    lines += [f"{NAMES[name]} {conventions[name]}" for name in judges]
    if metrics["corpus"]["simulated_utterances"]:
        lines.append(
            f"{metrics['corpus']['simulated_utterances']} of {metrics['corpus']['utterances']} utterances are"
            " simulated speech."
        )
    return "\n".join(lines)


def comparison(runs: dict[str, dict[str, Any]]) -> str:
    """WER / BLEU of every system in several runs: {name of the run: its metrics}."""
    keys = list(dict.fromkeys(s["key"] for m in runs.values() for s in m["systems"]))
    rows: list[tuple[str, ...]] = [("System (WER / BLEU)", *runs)]
    for key in keys:
        found = [next((s for s in m["systems"] if s["key"] == key), None) for m in runs.values()]
        if any(s and s["status"] == "run" for s in found):
            cells = [
                f"{_number(s['wer'])} / {_number(s['bleu'])}" if s and s["status"] == "run" else "not run"
                for s in found
            ]
            rows.append((key, *cells))
    rows.append(("utterances", *(str(m["corpus"]["utterances"]) for m in runs.values())))
    experts = [m["routing"] for m in runs.values()]
    if any(experts):
        cells = [f"{r['effective_experts']:.1f} of {r['experts']}" if r else "-" for r in experts]
        rows.append(("effective experts", *cells))
    lines = lay_out(rows)
    conventions = {m["conventions"]["wer"] + "; " + m["conventions"]["bleu"] for m in runs.values()}
    if len(conventions) > 1:
        lines.append("The runs were scored under different conventions: their figures do not compare.")
    return "\n".join(lines)
