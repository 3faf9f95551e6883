"""From SAP's annotation to both regimes of WER, by way of prepare and evaluate."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxmoe.data import markup, prepared
from jaxmoe.eval import run, systems
from jaxmoe.eval.systems import Part, System
from jaxmoe.phases import prepare
from jaxmoe.report.read import read_evaluation
from jaxmoe.report.scores import score_systems
from tests.data import trees
from tests.phases.test_prepare import config_for

ANNOTATED = "Please (turn) turn on {u:} light [noise]."


def hear_all(config, workdir, part, clips) -> Iterator[list[dict]]:
    """Writes down all that is said, an unknown word and the repetition too."""
    said = {x["id"]: markup.readings(x["transcript"], "the")[0] for x in prepared.open_metadata(workdir, "evaluation")}
    yield [{"id": clip.id, "hypothesis": said[clip.id]} for clip in clips]


def test_sap_scores_the_annotation_and_whisper_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trees.sap_tree(tmp_path / "2025-11-02", 10, 2, lambda path, n: trees.sound(path, 1.5, n))
    for file in tmp_path.rglob("*.json"):
        file.write_text(file.read_text().replace(trees.SENTENCES[0], ANNOTATED).replace(trees.SENTENCES[2], ANNOTATED))
    config = config_for(tmp_path / "2025-11-02", corpus="sap")
    config.sap = {"disfluencies": False}
    config.model, config.salmonn = {"backbone": "b", "second": "s"}, {"llm": "", "weights": ""}
    workdir = tmp_path / "run"
    prepare.run(config, workdir)
    row = System("all", "All", "asr+mt", Part(f"{__name__}:hear_all"), None)
    monkeypatch.setattr(systems, "SYSTEMS", (row,))
    monkeypatch.setattr(systems, "BY_KEY", {"all": row})
    items, clips = prepared.open_metadata(workdir, "evaluation"), run.split_clips(workdir, "evaluation")
    run.evaluate(run.Job(config, workdir, workdir / "eval", items, clips, "sound"), ["all"])
    utterances, runs = read_evaluation(workdir / "eval")
    marked = [t == ANNOTATED for t in utterances["transcript"]]
    assert 0 < sum(marked) < len(marked)
    assert {r for r, m in zip(utterances["reference"], marked, strict=True) if m} == {"Please turn on light."}
    sap, whisper = (score_systems(utterances, runs, regime)["all"].counts for regime in ("sap", "whisper"))
    assert (sap.errors == 0).all()  # the reference with disfluencies; the unknown word matches any
    assert whisper.errors.tolist() == [2.0 if m else 0.0 for m in marked]  # "turn" and "the" are too many
    assert sap.words[marked].tolist() == [6.0] * sum(marked)
