"""metrics.json: its contract, its figures computed a second way, and faults that must be found."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil

import jiwer
import numpy as np
import pytest
import sacrebleu

from jaxmoe.eval import systems
from jaxmoe.report import summary
from jaxmoe.report.metrics import build


def _rows(run: Path, key: str) -> list[dict]:
    return [json.loads(line) for line in (run / "eval" / key / "hypotheses.jsonl").read_text().splitlines()]


def _rewrite(run: Path, key: str, change: Callable[[list[dict]], list[dict]]) -> None:
    rows = change(_rows(run, key))
    (run / "eval" / key / "hypotheses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    about = json.loads((run / "eval" / key / "system.json").read_text())
    (run / "eval" / key / "system.json").write_text(json.dumps(about | {"utterances": len(rows)}))


@pytest.fixture
def metrics(run: Path) -> dict:
    return build(run, bootstrap=100)


def _system(metrics: dict, key: str) -> dict:
    return next(s for s in metrics["systems"] if s["key"] == key)


def test_every_system_of_the_table_is_there(metrics: dict):
    assert [s["key"] for s in metrics["systems"]] == [s.key for s in systems.SYSTEMS]
    assert _system(metrics, "salmonn")["status"] == "not run: the 13B weights are not at hand"
    assert _system(metrics, "moe-risk")["status"].startswith("not run: ")
    for s in metrics["systems"]:
        assert {"key", "name", "status", "kind", "wer", "cer", "bleu", "chrf", "utterances", "ci95", "by"} <= set(s)


def test_a_run_with_an_adapted_encoder_is_about_it_and_says_what_it_adds(run: Path, metrics: dict):
    assert metrics["focus"] == "moe"
    folder = shutil.copytree(run / "eval" / "moe", run / "eval" / "moe-encoder")
    about = json.loads((folder / "system.json").read_text())
    (folder / "system.json").write_text(json.dumps(about | {"key": "moe-encoder", "name": "encoder adapted"}))
    _rewrite(run, "moe-encoder", lambda rows: [row | {"hypothesis": row["reference"]} for row in rows])
    found = build(run, bootstrap=100)
    assert found["focus"] == "moe-encoder" and _system(found, "moe-encoder")["wer"] == 0.0
    said = " ".join(summary.sentences(found))
    assert f"against the mixture alone: {_system(found, 'moe')['wer']:.1f} fewer errors per 100 words" in said
    assert "The mixture of experts against one LoRA for everybody" in said


def test_figures_agree_with_jiwer_and_sacrebleu(run: Path, metrics: dict):
    rows = _rows(run, "moe")
    moe = _system(metrics, "moe")
    references, hypotheses = [r["reference"] for r in rows], [r["hypothesis"] for r in rows]
    # the synthetic words pass the normaliser unchanged
    assert moe["wer"] == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert moe["cer"] == pytest.approx(100 * jiwer.cer(references, hypotheses))
    german = [r["translation_reference"] for r in rows]
    output = [r["translation"] for r in rows]
    assert moe["bleu"] == pytest.approx(sacrebleu.corpus_bleu(output, [german]).score)
    assert moe["chrf"] == pytest.approx(sacrebleu.corpus_chrf(output, [german]).score)
    assert metrics["conventions"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")


def test_groups_partition_and_are_sorted_worst_first(run: Path, metrics: dict):
    moe = _system(metrics, "moe")
    for groups in moe["by"].values():
        assert sum(g["utterances"] for g in groups.values()) == len(_rows(run, "moe"))
        rates = [g["wer"] for g in groups.values()]
        assert rates == sorted(rates, reverse=True)
    assert set(moe["by"]["prompt"]) == {"seen", "unseen"}
    chosen = [r for r in _rows(run, "moe") if r["severity"] == "severe"]
    texts = [[r[f] for r in chosen] for f in ("reference", "hypothesis")]
    assert moe["by"]["severity"]["severe"]["wer"] == pytest.approx(100 * jiwer.wer(*texts))


def test_kinds_of_prompts_are_a_group_where_the_corpus_names_them(run: Path, metrics: dict):
    kinds = _system(metrics, "moe")["by"]["category"]
    assert set(kinds) == {"command", "story", "unknown"}
    chosen = [r for r in _rows(run, "moe") if r["category"] == "story"]
    texts = [[r[f] for r in chosen] for f in ("reference", "hypothesis")]
    assert kinds["story"]["wer"] == pytest.approx(100 * jiwer.wer(*texts))
    for key in ("whisper-v2", "whisper-v3", "lora", "moe", "moe-distilled", "mt"):
        _rewrite(run, key, lambda rows: [r | {"category": ""} for r in rows])
    assert "category" not in _system(build(run, bootstrap=10), "moe")["by"]


def test_balanced_counts_every_group_alike(metrics: dict):
    moe = _system(metrics, "moe")
    groups = moe["by"]["etiology"].values()
    assert moe["balanced"]["etiology"] == pytest.approx(sum(g["wer"] for g in groups) / len(groups))
    assert _system(metrics, "mt")["balanced"]["etiology"] is None


def test_no_wer_where_it_means_nothing(metrics: dict):
    assert _system(metrics, "mt")["wer"] is None  # it was given the reference
    assert _system(metrics, "moe-distilled")["wer"] is None  # it writes no English
    assert _system(metrics, "mt")["bleu"] > _system(metrics, "whisper-v2")["bleu"]


def test_intervals_hold_the_figure(metrics: dict):
    for s in metrics["systems"]:
        for metric in ("wer", "bleu"):
            if s["ci95"][metric]:
                assert s["ci95"][metric][0] < s[metric] < s["ci95"][metric][1]


def test_paired_differences(metrics: dict):
    pairs = [(d["system"], d["baseline"]) for d in metrics["differences"]]
    assert pairs[:3] == [("whisper-v3", "whisper-v2"), ("lora", "whisper-v2"), ("moe", "whisper-v2")]
    assert ("moe", "lora") in pairs
    for d in metrics["differences"]:
        first, second = _system(metrics, d["system"]), _system(metrics, d["baseline"])
        assert d["bleu"]["difference"] == pytest.approx(first["bleu"] - second["bleu"])
        assert d["bleu"]["p_holm"] >= d["bleu"]["p"]
    assert next(d for d in metrics["differences"] if d["system"] == "mt")["wer"] is None


def test_routing_by_hand(run: Path, metrics: dict):
    gates = np.array([r["gates"] for r in _rows(run, "moe")])
    routing = metrics["routing"]
    usage = [(gates.argmax(axis=1) == e).mean() for e in range(10)]
    assert routing["usage"] == pytest.approx(usage)
    mean = gates.mean(axis=0) / gates.mean(axis=0).sum()
    assert routing["effective_experts"] == pytest.approx(np.exp(-(mean * np.log(mean)).sum()))
    assert routing["ami"]["etiology"] > 0.7
    for shares in routing["by_etiology"].values():
        assert sum(shares) == pytest.approx(1.0)


def test_collapsed_routing_is_one_effective_expert(run: Path):
    one = [1.0] + [0.0] * 9
    _rewrite(run, "moe", lambda rows: [r | {"gates": one} for r in rows])
    routing = build(run, bootstrap=10)["routing"]
    assert routing["effective_experts"] == pytest.approx(1.0)
    assert routing["usage"] == one
    assert routing["ami"]["etiology"] == pytest.approx(0.0)


def test_utterances_without_gates_are_left_out_of_routing(run: Path):
    before = build(run, bootstrap=10)["routing"]
    _rewrite(run, "moe", lambda rows: [rows[0] | {"gates": None}, *rows[1:]])
    after = build(run, bootstrap=10)["routing"]
    assert (before["utterances"], after["utterances"]) == (240, 239)
    assert sum(after["usage"]) == pytest.approx(1.0)
    _rewrite(run, "moe", lambda rows: [rows[0], rows[1] | {"gates": [1.0]}, *rows[2:]])
    with pytest.raises(ValueError, match=r"moe/hypotheses\.jsonl, line 2: gates of .* expected 10 numbers"):
        build(run, bootstrap=10)


def test_interrupted_evaluation_is_not_run(run: Path):
    (run / "eval" / "lora" / "system.json").unlink()
    lora = _system(build(run, bootstrap=10), "lora")
    assert lora["status"] == "not run: its evaluation was interrupted, run it again" and lora["wer"] is None


def test_bleu_on_machine_references_is_marked(metrics: dict):
    assert "the translator that this system uses" in _system(metrics, "mt")["note"]
    assert "flattered" not in _system(metrics, "moe-distilled")["note"]
    assert metrics["corpus"]["translation_origins"] == {"corpus": 120, "Synthetic MT": 120}


def test_the_result_is_json_and_repeats(run: Path, metrics: dict):
    text = json.dumps(metrics, allow_nan=False)
    assert json.dumps(build(run, bootstrap=100), allow_nan=False) == text


def test_order_of_lines_does_not_matter(run: Path, metrics: dict):
    _rewrite(run, "lora", lambda rows: rows[::-1])
    assert build(run, bootstrap=100) == metrics


def test_sap_regime_becomes_the_main_one(run: Path, metrics: dict):
    sap = build(run, bootstrap=10, regime="sap")
    moe = _system(sap, "moe")
    assert moe["wer"] == moe["regimes"]["sap"]["wer"] == _system(metrics, "moe")["regimes"]["sap"]["wer"]
    assert sap["conventions"]["wer"].startswith("sap")
    with pytest.raises(ValueError, match="--regime=kaldi"):
        build(run, regime="kaldi")


def test_without_references_there_is_no_bleu(run: Path):
    for key in ("whisper-v2", "whisper-v3", "lora", "moe", "moe-distilled", "mt"):
        _rewrite(run, key, lambda rows: [r | {"translation_reference": "", "translation_origin": ""} for r in rows])
    metrics = build(run, bootstrap=10)
    assert all(s["bleu"] is None for s in metrics["systems"])
    assert _system(metrics, "moe")["wer"] > 0


def test_a_single_speaker_gets_no_interval(make_run: Callable[..., Path], tmp_path: Path):
    metrics = build(make_run(tmp_path / "one", speakers=1), bootstrap=10)
    assert _system(metrics, "moe")["ci95"] == {"wer": None, "bleu": None}
    assert metrics["differences"][0]["wer"]["p"] is None


# --- injected faults ---


def test_truncated_line_is_named(run: Path):
    path = run / "eval" / "lora" / "hypotheses.jsonl"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match=r"lora/hypotheses\.jsonl, line 240: the line is cut off"):
        build(run)


def test_truncated_file_is_named(run: Path):
    _rewrite(run, "lora", lambda rows: rows[:-1])
    with pytest.raises(ValueError, match=r"lora/hypotheses\.jsonl, line 239 .*1 of 240 utterances are missing"):
        build(run)


def test_missing_file_is_named(run: Path):
    (run / "eval" / "lora" / "hypotheses.jsonl").unlink()
    with pytest.raises(ValueError, match=r"lora/hypotheses\.jsonl is missing, but system\.json"):
        build(run)


def test_fewer_lines_than_promised(run: Path):
    path = run / "eval" / "moe" / "hypotheses.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(ValueError, match=r"moe/hypotheses\.jsonl, line 237 .*says 240"):
        build(run)


def test_duplicate_id_is_named(run: Path):
    _rewrite(run, "moe", lambda rows: [*rows, rows[4]])
    with pytest.raises(ValueError, match=r"moe/hypotheses\.jsonl, line 241: .*occurs twice \(first in line 5\)"):
        build(run)


def test_other_utterances_are_named(run: Path):
    _rewrite(run, "moe", lambda rows: [*rows[:-1], rows[-1] | {"id": "zzz"}])
    with pytest.raises(ValueError, match=r"1 of 240 utterances are missing"):
        build(run)


@pytest.mark.parametrize("field", ["reference", "translation_reference", "speaker", "etiology"])
def test_disagreement_about_an_utterance_is_named(run: Path, field: str):
    _rewrite(run, "whisper-v3", lambda rows: [*rows[:9], rows[9] | {field: "something else"}, *rows[10:]])
    with pytest.raises(ValueError, match=rf"whisper-v3/hypotheses\.jsonl, line 10: {field} of .*something else"):
        build(run)


def test_swapped_folders_are_named(run: Path):
    (run / "eval" / "moe").rename(run / "eval" / "x")
    (run / "eval" / "lora").rename(run / "eval" / "moe")
    (run / "eval" / "x").rename(run / "eval" / "lora")
    with pytest.raises(ValueError, match=r"key is 'moe', but the folder is 'lora'"):
        build(run)


def test_swapped_files_are_named(run: Path):
    mt, lora = (run / "eval" / k / "hypotheses.jsonl" for k in ("mt", "lora"))
    first, second = mt.read_text(), lora.read_text()
    mt.write_text(second)
    lora.write_text(first)
    with pytest.raises(ValueError, match=r"mt/hypotheses\.jsonl, line \d+: hypothesis .* is not the reference"):
        build(run)


def test_digest_finds_any_change(run: Path):
    path = run / "eval" / "moe" / "system.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"moe/hypotheses\.jsonl, line 1: the file's SHA-256"):
        build(run)


def test_missing_field_is_named(run: Path):
    _rewrite(run, "moe", lambda rows: [{k: v for k, v in rows[0].items() if k != "hypothesis"}, *rows[1:]])
    with pytest.raises(ValueError, match=r"moe/hypotheses\.jsonl, line 1: field 'hypothesis' is missing"):
        build(run)


def test_nothing_evaluated_says_what_to_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="--phase=evaluate"):
        build(tmp_path)
