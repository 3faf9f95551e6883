"""Writes WORKDIR/report."""

import json
from pathlib import Path
from typing import Any

from jaxmoe.report.metrics import build
from jaxmoe.report.page import render


def write_report(workdir: Path, **options: Any) -> dict[str, Any]:
    """Writes report/metrics.json and report/index.html of a run; `options` are those of `build`.

    Returns the metrics. Raises: as `build`.
    """
    metrics = build(workdir, **options)
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, ensure_ascii=False, indent=1, allow_nan=False)
    for name, content in (("metrics.json", text + "\n"), ("index.html", render(metrics, workdir))):
        part = folder / (name + ".part")  # renamed when whole, so that a killed run leaves the old report
        part.write_text(content, encoding="utf-8")
        part.replace(folder / name)
    return metrics
