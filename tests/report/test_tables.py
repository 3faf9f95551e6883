"""CSV, LaTeX and the model card say what metrics.json says; faults that need other files are found."""

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest
import yaml

from jaxmoe.report.metrics import build
from jaxmoe.report.table import text_table
from jaxmoe.report.tables import csv_table, escape, latex_table
from jaxmoe.report.write import write_report
from tests.report.conftest import write_run


def test_every_row_of_the_csv_is_in_the_metrics(run: Path):
    metrics = json.loads(json.dumps(build(run, bootstrap=20)))
    systems = {s["key"]: s for s in metrics["systems"]}
    rows = list(csv.DictReader(io.StringIO(csv_table(metrics))))
    assert [r["system"] for r in rows if r["dimension"] == "all"] == list(systems)
    for row in rows:
        system = systems[row["system"]]
        of_all = row["dimension"] == "all"
        expected = system if of_all else system["by"][row["dimension"]][row["group"]]
        for metric in ("wer", "bleu", "chrf"):
            assert row[metric] == ("" if expected[metric] is None else str(expected[metric]))


def test_latex_holds_the_systems_that_were_run_and_escapes_their_names(run: Path):
    metrics = build(run, bootstrap=20)
    metrics["systems"][0]["name"] = "50 % of_all & more"
    text = latex_table(metrics)
    assert r"50 \% of\_all \& more & " in text and text.count(r" \\") == 7  # six systems and the head
    assert escape("a_b^{c}\\") == r"a\_b\textasciicircum{}\{c\}\textbackslash{}"


def test_the_model_card_is_one_that_the_hub_reads(run: Path):
    metrics = write_report(run, bootstrap=20)
    _, front, body = (run / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    results = about["model-index"][0]["results"]
    values = {m["type"]: m["value"] for r in results for m in r["metrics"]}
    moe = next(s for s in metrics["systems"] if s["key"] == "moe")
    assert values == {"wer": round(moe["wer"], 2), "bleu": round(moe["bleu"], 2)}
    assert all(r["task"]["type"] and r["dataset"]["name"] for r in results)
    assert "**simulated speech**" in body and "not run: the 13B weights are not at hand" in body
    assert "Not a medical device" in body


def test_a_leaking_speaker_is_named(run: Path):
    path = run / "corpus" / "metadata_train.jsonl"
    path.parent.mkdir()
    path.write_text('{"speaker": "somebody"}\n{"speaker": "spk003"}\n')
    with pytest.raises(ValueError, match=r"metadata_train\.jsonl, line 2: speaker 'spk003' is evaluated as well"):
        build(run, bootstrap=10)


def test_a_group_without_any_output_is_a_warning_on_the_page(run: Path):
    assert build(run, bootstrap=10)["warnings"] == []
    path = run / "eval" / "lora" / "hypotheses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r | {"hypothesis": ""} if r["etiology"] == "als" else r for r in rows]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (warning,) = write_report(run, bootstrap=10)["warnings"]
    assert "recognised nothing in all 40 utterances with etiology als" in warning
    assert warning in (run / "report" / "index.html").read_text()


def test_judges_of_meaning_have_a_column_where_they_were_asked(tmp_path: Path):
    run = write_run(tmp_path, speakers=6, per_speaker=3)
    for key in ("moe", "lora"):
        file = run / "eval" / key / "hypotheses.jsonl"
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        about = json.loads((file.parent / "system.json").read_text())
        (file.parent / "system.json").write_text(json.dumps(about | {"sha256": sha256}))
        ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
        scores = {id_: 0.5 + 0.02 * n for n, id_ in enumerate(ids)}
        of = "0" * 64 if key == "lora" else sha256  # lora's are of older translations
        judged = {"sha256": of, "comet": {"by": "comet-score --model m", "scores": scores}}
        (file.parent / "semantic.json").write_text(json.dumps(judged))
    metrics = write_report(run, bootstrap=20)
    found = {s["key"]: s["comet"] for s in metrics["systems"]}
    assert found["moe"] == pytest.approx(100 * (0.5 + 0.02 * 8.5))
    assert found["lora"] is None and found["mt"] is None
    groups = metrics["systems"][[*found].index("moe")]["by"]["speaker"]
    assert groups["spk000"]["comet"] == pytest.approx(100 * 0.52)
    page = (run / "report" / "index.html").read_text()
    assert ">COMET</th>" in page and "SemScore" not in page and "comet-score --model m" in page
    assert f'data-at="/systems/{[*found].index("moe")}/comet">67.0<' in page
    assert "67.0" in next(line for line in text_table(metrics).splitlines() if "MoE +" in line)
    rows = list(csv.DictReader(io.StringIO((run / "report" / "systems.csv").read_text())))
    assert float(next(r["comet"] for r in rows if r["system"] == "moe")) == pytest.approx(found["moe"])
