"""A canary speaker is in every file that a run makes; afterwards it is in none, and the rest is as it was."""

import json
from pathlib import Path
import sqlite3

import numpy as np
import pytest
import soundfile

from jaxmoe import forget
from jaxmoe.data import lineage, prepared
from jaxmoe.data.embeddings import Embeddings, write_shard
from jaxmoe.phases import prepare
from jaxmoe.system import personal_folder
from tests.phases.test_prepare import config_for, speech, stored

CANARY, TEXT, HEARD = "canary 7f3a", "The yellow bird sings at dawn.", "The yellow burt sinks at dawn."


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of eight speakers with corpus, latents, clusters, hypotheses, report, lineage and a translation cache."""
    audio = tmp_path / "audio"
    audio.mkdir()
    table = ["path,text,speaker,etiology,split"]
    for s in range(8):
        who = CANARY if s == 3 else f"speaker-{s}"
        for u in range(3):
            soundfile.write(audio / f"{who}-{u}.wav", speech(1.0, 10 * s + u), 16000)
            text = TEXT if (s, u) == (3, 1) else f"Sentence {u}."
            split = "evaluation" if s == 6 else "validation" if s == 7 else "train"
            table.append(f"{who}-{u}.wav,{text},{who},ALS,{split}")
    (audio / "broken.wav").write_text("no sound")
    table.append(f"broken.wav,Nothing.,{CANARY},ALS,train")
    (audio / "t.csv").write_text("\n".join(table))
    workdir = tmp_path / "run"
    prepare.run(config_for(audio / "t.csv", pretrain_share=1.0), workdir)
    rows = prepared.open_metadata(workdir, "train")
    ids, numbers = [r["id"] for r in rows], np.arange(len(rows))
    latents = [np.full((2 + n % 3, 4), n) for n in numbers]
    folder = workdir / "embeddings/tiny/train"
    write_shard(folder, 0, ids, latents, np.tile(numbers[:, None, None, None], (1, 3, 2, 4)))
    window = f"{next(r['id'] for r in rows if r['speaker'] == CANARY)}#0"  # of a long recording, alone in its shard
    write_shard(folder, 1, [window], [np.ones((2, 4))], np.ones((1, 3, 2, 4)))
    lines(workdir / "clusters/assignments.jsonl", [{"id": i, "cluster": 0} for i in ids])
    (workdir / "clusters/map.json").write_text(json.dumps({"points": [{"id": i, "x": 0.5} for i in ids]}))
    heard = [{"id": r["id"], "hypothesis": HEARD if r["text"] == TEXT else r["text"]} for r in rows]
    lines(
        workdir / "eval/moe/hypotheses.jsonl",
        [r | h | {"reference": r["text"]} for r, h in zip(rows, heard, strict=True)],
    )
    lines(workdir / "eval/moe/transcripts.jsonl", heard)
    (workdir / "eval/moe/system.json").write_text(json.dumps({"key": "moe", "sha256": "", "utterances": len(rows)}))
    (workdir / "report").mkdir()
    (workdir / "report/index.html").write_text(f"<td>{CANARY}</td><td>{HEARD}</td>")
    (workdir / "joint.previous").mkdir()
    (workdir / "joint.previous/notes.txt").write_text(f"worst: {CANARY}")
    lineage.write(workdir / "joint", [r["speaker"] for r in rows])
    lineage.write(workdir / "mt", ["speaker-0"])
    for who in (CANARY, "speaker-0"):
        lineage.write(personal_folder(workdir, who), [who], workdir / "joint")
        (personal_folder(workdir, who) / "adapter.bin").write_bytes(b"\0\1")
    (workdir / "old/checkpoints").mkdir(parents=True)
    monkeypatch.setattr(forget, "cache_folder", lambda: tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    with sqlite3.connect(tmp_path / "cache/translations.sqlite") as db:
        db.execute("CREATE TABLE translations (engine TEXT, source TEXT, translation TEXT)")
        for source in (TEXT, HEARD, "Sentence 1."):
            db.execute("INSERT INTO translations VALUES ('local', ?, ?)", (source, f"{source} auf Deutsch"))
    return workdir


def holding(folder: Path, *needles: str) -> list[Path]:
    """Files whose bytes, or whose names, hold one of the needles."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    return [p for p in found if any(n.encode() in p.read_bytes() or n in p.name for n in needles)]


def test_nothing_of_a_forgotten_speaker_is_left(run, tmp_path):
    before = stored(run)
    assert holding(run, CANARY, TEXT, HEARD) and holding(tmp_path / "cache", TEXT, HEARD)
    trained = forget.forget(run, CANARY)
    assert trained == [run / "joint", run / "personalize/speaker-0"]  # which began with joint
    assert not personal_folder(run, CANARY).exists()
    for folder in (run, tmp_path / "cache"):
        assert not holding(folder, CANARY, TEXT, HEARD)
    after = stored(run)
    rest = {split: [r for r in rows if r["speaker"] != CANARY] for split, rows in before.items()}
    np.testing.assert_equal(after, rest)
    assert len(after["train"]) == 15
    assert [r["id"] for r in prepared.open_metadata(run, "train")] == [r["id"] for r in after["train"]]
    summary = json.loads((run / "corpus/summary.json").read_text())
    assert summary["utterances"] == 21 and summary["rejected"] == {}
    assert "21 recordings" in (run / "corpus/card.html").read_text()


def test_the_rest_stays_as_it_was(run, tmp_path):
    shard = Embeddings(run / "embeddings/tiny/train")
    latents = {i: shard.latents(n) for n, i in enumerate(shard.ids)}
    hypotheses = (run / "eval/moe/hypotheses.jsonl").read_text().splitlines()
    forget.forget(run, CANARY)
    shard = Embeddings(run / "embeddings/tiny/train")
    assert len(shard) == 15
    for n, id_ in enumerate(shard.ids):
        np.testing.assert_array_equal(shard.latents(n), latents[id_])
        assert shard.depths[n, 0, 0, 0] == latents[id_][0, 0]
    kept = (run / "eval/moe/hypotheses.jsonl").read_text().splitlines()
    assert kept == [line for line in hypotheses if CANARY not in line]
    assert json.loads((run / "eval/moe/system.json").read_text())["utterances"] == 15
    points = json.loads((run / "clusters/map.json").read_text())["points"]
    assert len(points) == 15
    with sqlite3.connect(tmp_path / "cache/translations.sqlite") as db:
        assert db.execute("SELECT source FROM translations").fetchall() == [("Sentence 1.",)]


def test_a_forgotten_speaker_is_not_taken_in_again(run, tmp_path, capsys):
    config = config_for(tmp_path / "audio/t.csv", pretrain_share=1.0)
    forget.forget(run, CANARY)
    prepare.run(config, run)
    assert "nothing to do" in capsys.readouterr().out
    table = tmp_path / "audio/t.csv"
    table.write_text(table.read_text().replace("Sentence 2", "Sentence two"))
    prepare.run(config, run)
    assert "made again" in capsys.readouterr().out
    assert not holding(run, CANARY, TEXT) and len(stored(run)["train"]) == 15


def test_an_unknown_speaker_is_an_error(run, capsys):
    assert not forget.run("nobody", [str(run)])
    assert "no speaker 'nobody'" in capsys.readouterr().err
    assert forget.run(CANARY, [str(run)])
    said = capsys.readouterr().out
    assert str(run / "joint") in said and f"whom they have seen: {run / 'old'}" in said


def test_a_short_id_takes_nothing_else_along(run, capsys):
    """Ids as short as numbers stand in many files by chance: steps, names of checkpoints, settings."""
    heard = run / "eval/moe/hypotheses.jsonl"
    rows = [json.loads(line) for line in heard.read_text().splitlines()]
    rows = [r | {"id": "90-x", "speaker": "90"} if r["speaker"] == "speaker-1" else r for r in rows]
    lines(heard, rows)
    kept = {
        "config.json": {"config": {"joint": {"steps": 90, "name": "90"}}},
        "joint/phase.json": {"phase": "joint", "settings": {"joint": {"steps": 90}}},
        "joint/counts.json": {"90": 3, "of": [1, 90]},
    }
    for name, value in kept.items():
        (run / name).write_text(json.dumps(value))
    (run / "joint/metrics.jsonl").write_text('{"step": 90, "loss": 0.5}\n')
    (run / "joint/checkpoints/90").mkdir(parents=True)
    (run / "joint/checkpoints/90/array").write_bytes(b"\0 90 \0")
    (run / "joint/notes.txt").write_text("step 90 of 90")
    personal_folder(run, "90").mkdir()
    forget.forget(run, "90")
    assert {name: json.loads((run / name).read_text()) for name in kept} == kept
    assert (run / "joint/checkpoints/90/array").exists() and (run / "joint/metrics.jsonl").read_text()
    assert (run / "joint/notes.txt").exists() and not personal_folder(run, "90").exists()
    assert '"90"' not in heard.read_text() and len(heard.read_text().splitlines()) == len(rows) - 3
