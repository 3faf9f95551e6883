"""Ordinary, noisy and accented speech: the figures by hand, the verdicts, and what the page says without them."""

import html
import json
from pathlib import Path

import jiwer
import pytest

from jaxmoe.report import summary
from jaxmoe.report.metrics import build
from jaxmoe.report.stress import against_target
from jaxmoe.report.write import write_report


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]


def wer(chosen: list[dict]) -> float:
    return 100 * jiwer.wer([r["reference"] for r in chosen], [r["hypothesis"] for r in chosen])


def test_curves_groups_and_silence_by_hand(run: Path):
    found = build(run, bootstrap=50)["stress"]
    noisy = rows(run / "stress" / "noise" / "moe")
    line = found["noise"]["curves"]["moe"]["babble"]
    assert [p["snr_db"] for p in line] == [None, 10.0, 0.0] and found["noise"]["utterances"] == 6
    for point, channel in zip(line, ("clean", "babble 10 dB", "babble 0 dB"), strict=True):
        assert point["wer"] == pytest.approx(wer([r for r in noisy if r["channel"] == channel]))
        assert point["ci95"][0] <= point["wer"] <= point["ci95"][1]
    assert found["silence"]["moe"] == {"clips": 4, "with_text": 0, "words": 0, "example": ""}
    assert found["silence"]["whisper-v2"] == {"clips": 4, "with_text": 3, "words": 6, "example": "thank you"}
    groups = {(g["set"], g["group"]): g for g in found["groups"]}
    assert set(groups) == {("evaluation", "controls"), ("recordings", "Mandarin"), ("recordings", "Welsh")}
    spoken = [r for r in rows(run / "stress" / "recordings" / "moe") if r["language"] == "Mandarin"]
    assert groups["recordings", "Mandarin"]["systems"]["moe"]["wer"] == pytest.approx(wer(spoken))
    controls = [r for r in rows(run / "eval" / "moe") if r["etiology"] == "control"]
    entry = groups["evaluation", "controls"]
    assert entry["systems"]["moe"]["wer"] == pytest.approx(wer(controls)) and entry["speakers"] == 4
    base = [r for r in rows(run / "eval" / "whisper-v2") if r["etiology"] == "control"]
    assert entry["systems"]["moe"]["difference"]["difference"] == pytest.approx(wer(controls) - wer(base))


@pytest.mark.parametrize(
    ("interval", "speakers", "verdict"),
    [
        ((-0.3, 0.5), 5, "met"),
        ((-0.3, 0.6), 5, "open"),
        ((0.4, 6.0), 5, "open"),
        ((0.6, 6.0), 5, "missed"),
        ((-9.0, -1.0), 5, "met"),
        ((-9.0, -1.0), 4, "open"),
        (None, 1, "open"),
    ],
)
def test_the_target_is_decided_by_the_whole_interval_of_enough_speakers(interval, speakers, verdict):
    assert against_target(interval, speakers) == verdict


def test_the_summary_says_it_in_words(run: Path):
    said = " ".join(summary.sentences(build(run, bootstrap=50)))
    assert "For people without a disorder (4 speakers), the change by adaptation is" in said
    assert "For the recordings \u201cWelsh\u201d (3 speakers)" in said
    assert "Noise hurts most as babble at 0 dB" in said
    assert "On 4 recordings without speech it writes text in 0." in said


def test_without_stress_the_page_says_what_was_not_run(run: Path):
    for path in (run / "stress").glob("*/*/hypotheses.jsonl"):  # no system could be run
        path.unlink()
        about = json.loads((path.parent / "system.json").read_text())
        (path.parent / "system.json").write_text(json.dumps(about | {"status": "not run: no weights"}))
    found = write_report(run, bootstrap=10)["stress"]
    assert found["noise"].startswith("not run: ") and found["recordings"].startswith("not run: ")
    page = html.unescape((run / "report" / "index.html").read_text())
    assert found["noise"] in page and found["recordings"] in page
