"""The page: agrees with metrics.json number by number, stands alone, and can be read without eyes."""

from collections.abc import Callable
from html.parser import HTMLParser
import itertools
import json
from pathlib import Path
import shutil

from ml_collections import ConfigDict
import pytest

from jaxmoe.phases import personalize, report
from jaxmoe.report import __main__ as command
from jaxmoe.report import summary
from jaxmoe.report.page import ink, marked, render, shade
from jaxmoe.report.plots import training_curves
from jaxmoe.report.table import text_table
from jaxmoe.report.write import write_report


class _Page(HTMLParser):
    """Elements in order, and the text of every <data>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[tuple[str, str, str]] = []  # data-at, value, text
        self.open: tuple[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "data":
            self.open = (attributes["data-at"] or "", attributes["value"] or "")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.data.append((*self.open, data))
            self.open = None

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag]


def _at(metrics: dict, pointer: str) -> float:
    value = metrics
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


@pytest.fixture
def page(run: Path) -> _Page:
    write_report(run, bootstrap=50)
    return _Page((run / "report" / "index.html").read_text())


def test_page_and_metrics_agree_number_by_number(run: Path, page: _Page):
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert len(page.data) > 300
    for pointer, value, text in page.data:
        expected = _at(metrics, pointer)
        assert float(value) == expected, pointer
        shown = text.replace("\u2212", "-").replace(",", "")
        digits = len(shown.partition(".")[2])
        scale = 100 if (pointer.startswith("/routing/") and "ami" not in pointer) or "noise_share" in pointer else 1
        scale = 1 if pointer.split("/")[-1] in ("effective_experts", "experts", "mean_entropy", "utterances") else scale
        assert float(shown) == pytest.approx(expected * scale, abs=0.5 * 10**-digits + 1e-9), pointer


def test_every_figure_of_a_system_is_on_the_page(run: Path, page: _Page):
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    shown = {pointer for pointer, _, _ in page.data}
    for i, s in enumerate(metrics["systems"]):
        for metric in ("wer", "cer", "bleu", "chrf"):
            assert (f"/systems/{i}/{metric}" in shown) == (s[metric] is not None)
    for i in range(len(metrics["differences"])):
        assert f"/differences/{i}/bleu/difference" in shown


def test_systems_not_run_give_their_reason(run: Path, page: _Page):
    text = (run / "report" / "index.html").read_text()
    assert "not run: the 13B weights are not at hand" in text
    assert "Simulated speech." in text


def test_page_stands_alone(run: Path, page: _Page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "use") or not attributes.get("href", "#").startswith("http")
        for name in ("src", "href", "xlink:href", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    style = (run / "report" / "index.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_page_is_accessible(page: _Page):
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))  # no level is skipped
    assert all(head.get("scope") for head in page.all("th"))
    assert all(picture.get("alt") for picture in page.all("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in page.all("svg"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    anchors = {a["href"][1:] for a in page.all("a") if (a.get("href") or "").startswith("#")}
    assert anchors <= set(ids)


def _luminance(colour: str) -> float:
    if colour.startswith("#"):
        channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    else:
        channels = [int(c) for c in colour[4:-1].split(",")]
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_heat_map_has_contrast():
    for share in (i / 100 for i in range(101)):
        a, b = sorted((_luminance(shade(share)), _luminance(ink(share))))
        assert (b + 0.05) / (a + 0.05) >= 4.5, share  # WCAG 2.1 AA


def test_output_of_models_cannot_inject_markup(run: Path):
    path = run / "eval" / "moe" / "hypotheses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["hypothesis"] = "<script>alert(1)</script> " * 30
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    html = render(write_report(run, bootstrap=10), run)
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html


def test_marked_words():
    assert marked("Turn on the light.", "turn off light") == "turn <mark>off</mark> <del>the</del> light"
    assert marked("a", "") == "<del>a</del>"
    assert marked("", "") == "<em>nothing</em>"


def test_words_of_the_summary_follow_the_figures(run: Path):
    metrics = write_report(run, bootstrap=50)
    text = " ".join(summary.sentences(metrics))
    moe = next(s for s in metrics["systems"] if s["key"] == "moe")
    assert f"{moe['wer']:.1f} of 100 words wrong" in text
    assert "fewer errors per 100 words" in text
    assert summary.change({"difference": 0.2, "ci95": [-0.5, 0.9]}, "errors") == (
        "+0.2 errors, which may be chance (\u22120.5 to +0.9)"
    )
    assert summary.verdict({"ci95": [0.1, 0.4]}, "lower") == "worse"
    assert summary.verdict({"ci95": [0.1, 0.4]}, "higher") == "better"
    metrics["routing"] |= {"usage": [1.0] + [0.0] * 9, "effective_experts": 1.0}
    assert "collapsed" in " ".join(summary.sentences(metrics))


def test_phase_writes_and_prints(run: Path, capsys: pytest.CaptureFixture[str]):
    config = ConfigDict({"report": {"bootstrap": 20, "baseline": "whisper-v2", "worst": 5, "audio": True}})
    report.run(config, run)
    out = capsys.readouterr().out
    assert "Whisper v2 (tiny.en) MoE + Synthetic MT" in out and str(run / "report" / "index.html") in out
    metrics = json.loads((run / "report" / "metrics.json").read_text())
    assert len(metrics["worst"]) == 5
    assert f"{metrics['systems'][3]['wer']:.1f}" in text_table(metrics)
    assert not list((run / "report").glob("*.part"))


def test_page_without_clusters_routing_training_or_moe(run: Path):
    for folder in ("clusters", "gate", "experts", "joint", "baseline", "eval/moe", "eval/moe-distilled", "eval/lora"):
        shutil.rmtree(run / folder)
    metrics = write_report(run, bootstrap=10)
    assert metrics["routing"] is None and metrics["clusters"] is None
    assert metrics["focus"] == "whisper-v3"
    assert metrics["stress"]["recordings"] == "run"
    assert "Use of the experts" not in (run / "report" / "index.html").read_text()


def test_what_personalize_measured_is_shown_while_its_model_is_there(run: Path):
    lines = [
        {"id": f"{s}-{i}", "speaker": s, "etiology": "ALS" if s < "c" else "stroke", "steps": 3 * (s == "a")}
        | {"reference": "red green blue grey", "before": "red green", "after": "red green" + " blue" * (s == "a")}
        for s in "abcd"
        for i in range(2)
    ]
    personalize.report(run / "personalize", lines, speakers=4, shots=10)
    for phase in ("joint", "personalize"):
        (run / phase / "phase.json").write_text(json.dumps({"settings": {"seed": 0}, "done": True}))
    found = write_report(run, bootstrap=10)["personalize"]
    assert (found["wer_before"], found["wer_after"], found["by_etiology"]["ALS"]["wer_after"]) == (50.0, 43.75, 37.5)
    page = (run / "report" / "index.html").read_text()
    assert "Adapting to one person" in page and 'data-at="/personalize/by_etiology/stroke/wer_after">50.0<' in page
    (run / "joint" / "phase.json").write_text(json.dumps({"settings": {"seed": 1}, "done": True}))
    assert write_report(run, bootstrap=10)["personalize"] is None
    assert "Adapting to one person" not in (run / "report" / "index.html").read_text()


def test_training_logs_may_be_cut_and_may_log_usage(run: Path):
    path = run / "joint" / "metrics.jsonl"
    rows = [{"step": s, "loss": 1.0, "usage": [0.5, 0.5, 0.0]} for s in range(3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 3, "lo')
    curves = {c["title"]: c["picture"] for c in training_curves(run)}
    assert list(curves) == ["gate", "experts", "joint", "baseline"]
    assert "effective experts" in curves["joint"] and "effective experts" not in curves["gate"]


def test_page_with_only_the_baseline(run: Path):
    for folder in (run / "eval").iterdir():
        if folder.name != "whisper-v2":
            shutil.rmtree(folder)
    metrics = write_report(run, bootstrap=10)
    assert metrics["differences"] == []
    assert "nothing to compare" in (run / "report" / "index.html").read_text()


def test_command_compares_runs(
    run: Path, make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = make_run(tmp_path / "other", speakers=6, seed=1)
    assert command.main([str(run), str(other), "--bootstrap=10"]) == 0
    out = capsys.readouterr().out
    assert "synthetic" in out and "other" in out and "moe" in out and "effective experts" in out
    assert command.main([str(tmp_path / "absent")]) == 1
    assert "--phase=evaluate" in capsys.readouterr().err
