"""The page in a real browser: its script runs, tables sort, and nothing is asked of the network."""

from pathlib import Path
import re
import shutil
import subprocess

import pytest

from jaxmoe.report.write import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
PROBE = """<script>
addEventListener("load", function () {
  var sortable = document.querySelector("table.sortable"), column = 1;
  var shown = function () { return Array.from(sortable.tBodies[0].rows).map(function (row) {
    var data = row.cells[column] && row.cells[column].querySelector("data"); return data ? data.value : "-"; }); };
  sortable.querySelectorAll("thead button")[column].click();
  document.body.setAttribute("data-sorted", shown().join(" "));
  document.body.setAttribute("data-wide", document.documentElement.scrollWidth > innerWidth);
  document.body.setAttribute("data-asked", performance.getEntriesByType("resource").map(function (e) { return e.name; })
    .filter(function (name) { return !name.startsWith("data:"); }).join(" "));
});
</script></body>"""


def browse(page: Path, *arguments: str) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    done = subprocess.run([*command, *arguments, f"file://{page}"], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_page_works_in_a_browser(run: Path):
    write_report(run, bootstrap=10)
    page = run / "report" / "index.html"
    page.write_text(page.read_text().replace("</body>", PROBE))
    for width in (1280, 500):  # 500 is the least a desktop Chromium opens
        body = re.search(r"<body ([^>]*)>", browse(page, f"--window-size={width},900", "--dump-dom")).group(1)
        found = dict(re.findall(r'data-(\w+)="([^"]*)"', body))
        values = [float(v) for v in found["sorted"].split() if v != "-"]
        assert len(values) > 3 and values == sorted(values)
        assert found["wide"] == "false"  # the page itself never scrolls sideways, only its tables
        assert found["asked"] == ""


def test_it_prints(run: Path):
    write_report(run, bootstrap=10)
    target = run / "page.pdf"
    browse(run / "report" / "index.html", f"--print-to-pdf={target}", "--no-pdf-header-footer")
    assert target.read_bytes().startswith(b"%PDF") and target.stat().st_size > 50_000
