"""Phase report: the numbers of a run and the page that shows them.

Reads:  WORKDIR/eval/*/{system.json,hypotheses.jsonl}, clusters/{clusters,map}.json, */metrics.jsonl, config.json
Writes: WORKDIR/report/metrics.json, WORKDIR/report/index.html
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxmoe.report.table import text_table
from jaxmoe.report.write import write_report


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes the report of the systems evaluated so far and prints its table.

    Raises: ValueError naming file and line of what cannot be compared; FileNotFoundError without any system.
    """
    workdir = Path(workdir)
    print(text_table(write_report(workdir, **config.report)))
    print(workdir / "report" / "index.html")
