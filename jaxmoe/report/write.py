"""Writes WORKDIR/report and the model card."""

import json
from pathlib import Path
from typing import Any

from jaxmoe.report.metrics import build
from jaxmoe.report.model_card import model_card
from jaxmoe.report.page import render
from jaxmoe.report.sound import players
from jaxmoe.report.tables import csv_table, latex_table


def write_report(workdir: Path, *, audio: bool = False, **options: Any) -> dict[str, Any]:
    """Writes report/{metrics.json,index.html,systems.csv,systems.tex} and README.md, the model card, of a run.

    audio: whether the page holds the recordings of the utterances it lists; `options` are those of `build`.
    Returns the metrics. Raises: as `build`.
    """
    metrics = build(workdir, **options)
    sound = players(workdir, [row["id"] for row in metrics["worst"]]) if audio else {}
    (workdir / "report").mkdir(parents=True, exist_ok=True)
    files = {
        "report/metrics.json": json.dumps(metrics, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
        "report/index.html": render(metrics, workdir, sound),
        "report/systems.csv": csv_table(metrics),
        "report/systems.tex": latex_table(metrics),
        "README.md": model_card(metrics, workdir),
    }
    for name, content in files.items():
        file = workdir / name
        part = file.with_name(file.name + ".part")  # renamed when whole, so that a killed run leaves the old report
        part.write_text(content, encoding="utf-8", newline="")
        part.replace(file)
    return metrics
