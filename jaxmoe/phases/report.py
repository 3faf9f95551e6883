"""Phase report: the numbers of a run and the page that shows them.

Reads:  WORKDIR/eval/*/{system.json,hypotheses.jsonl}, the same in stress/, clusters/{clusters,map}.json,
        personalize/figures.json, */metrics.jsonl, config.json; corpus/ for the recordings on the page
Writes: WORKDIR/report/{metrics.json,index.html,systems.csv,systems.tex}, WORKDIR/README.md (the model card)
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
