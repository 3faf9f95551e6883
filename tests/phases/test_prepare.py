"""prepare: what is bad is set aside with its reason, splits are by speaker, and the result repeats."""

import contextlib
import csv
from dataclasses import replace
import json
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np
import pytest
import soundfile

from jaxmoe.data import build, checks, prepared
from jaxmoe.data.checks import Limits, Rejection, check, read_checked
from jaxmoe.data.corpora import Recording, list_corpus
from jaxmoe.data.index import Index
from jaxmoe.phases import prepare

LIMITS = Limits(
    min_seconds=0.3,
    max_seconds=1800.0,
    max_clipped=0.02,
    silence_dbfs=-60.0,
    max_chars_per_second=30.0,
    min_rate_hz=8000,
    trim_silence_db=0.0,
)
REAL = Path(__file__).parents[2] / "../shared/data/real_speech/real.csv"


def config_for(path: object = "", **data: object) -> ConfigDict:
    options = {"pretrain_share": 0.2, "unseen_etiologies": "", "num_workers": 1}
    config = ConfigDict({"seed": 0, "manifest": {"columns": ""}, "quality": vars(LIMITS)})
    config.data = {"corpus": "manifest", "path": str(path), **options, **data}
    return config


def speech(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(16000 * seconds))).astype(np.float32)


def write_table(folder: Path, speakers: int = 4, utterances: int = 3, extra: str = "") -> Path:
    """A manifest of noise: speakers x utterances, then `extra` lines."""
    lines = ["path,text,speaker,etiology"]
    for s in range(speakers):
        for u in range(utterances):
            soundfile.write(folder / f"s{s}u{u}.wav", speech(0.5, 100 * s + u), 16000)
            lines.append(f"s{s}u{u}.wav,Sentence number {u}.,s{s},{'ALS' if s % 2 else 'stroke'}")
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n" + extra)
    return table


def stored(workdir: Path) -> dict[str, list[dict]]:
    splits = json.loads((workdir / "corpus/summary.json").read_text())["splits"]
    return {split: list(prepared.open_split(workdir, split)) for split in splits}


def rejected(workdir: Path) -> dict[str, str]:
    lines = (workdir / "corpus/rejected.jsonl").read_text().splitlines()
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


def test_unseen_etiologies_are_in_evaluation_alone(tmp_path):
    table, workdir = write_table(tmp_path, speakers=8), tmp_path / "run"
    prepare.run(config_for(table, pretrain_share=1.0, unseen_etiologies="ALS"), workdir)
    found = {split: {row["etiology"] for row in rows} for split, rows in stored(workdir).items()}
    assert found["train"] == found["validation"] == {"stroke"} and "ALS" in found["evaluation"]
    assert not rejected(workdir)
    prepare.run(config_for(table, pretrain_share=1.0), workdir)  # another corpus, which is made anew
    assert {row["etiology"] for row in stored(workdir)["train"]} == {"ALS", "stroke"}


def test_bad_files_are_set_aside_with_their_reason(tmp_path):
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam, this is no sound.")
    (tmp_path / "nothing.wav").write_bytes(b"")
    (tmp_path / "cut.flac").write_bytes(b"fLaC\x00\x00\x00\x22 and no more")
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "header.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    soundfile.write(tmp_path / "click.wav", speech(0.05), 16000)
    soundfile.write(tmp_path / "loud.wav", np.sign(speech(1.0)), 16000)
    soundfile.write(tmp_path / "slow.wav", speech(1.0), 4000)
    soundfile.write(tmp_path / "good.wav", speech(1.0), 16000)
    reasons = {
        "letter.wav": "unreadable",
        "nothing.wav": "unreadable",
        "cut.flac": "unreadable",
        "nan.wav": "unreadable",
        "slow.wav": "wrong rate",
        "missing.wav": "missing file",
        "header.wav": "unreadable",
        "silent.wav": "silent",
        "click.wav": "too short",
        "loud.wav": "clipped",
    }
    extra = "".join(f"{name},Some text.,x,ALS\n" for name in reasons)
    extra += f"good.wav,{'far too many words ' * 10},x,ALS\ns0u0.wav,Again.,s0,stroke\ns0u1.wav,,s0,stroke\n"
    run_dir = tmp_path / "run"
    prepare.run(config_for(write_table(tmp_path, extra=extra)), run_dir)
    found = rejected(run_dir)
    assert found == reasons | {
        "good.wav": "text too long for the audio",
        "s0u0.wav": "duplicate id",
        "s0u1.wav": "duplicate id",
    }
    summary = json.loads((run_dir / "corpus/summary.json").read_text())
    assert summary["utterances"] == 12 and sum(summary["rejected"].values()) == len(found)
    assert summary["rejected_by_etiology"]["duplicate id"] == {"stroke": 2}
    assert all(row["detail"] for row in map(json.loads, (run_dir / "corpus/rejected.jsonl").read_text().splitlines()))


def test_three_hours_of_silence_are_refused_by_their_header(tmp_path, monkeypatch):
    path = tmp_path / "silence.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, subtype="PCM_U8") as file:
        for _ in range(180):
            file.write(np.zeros(60 * 8000, np.int16))
    monkeypatch.setattr(checks.corpora, "read", lambda *_: pytest.fail("decoded"))
    refused = read_checked("manifest", Recording("a", "s", "Text.", str(path)), LIMITS)
    assert isinstance(refused, Rejection) and refused.reason == "too long" and "10800 s" in refused.detail


def test_samples_that_a_corpus_hands_over_are_checked_too():
    bad = speech()
    bad[7] = np.inf
    assert check(bad, "Text.", LIMITS).reason == "not finite"
    assert check(np.zeros(0, np.float32), "Text.", LIMITS).reason == "empty"
    assert check(speech(2), "Text.", replace(LIMITS, max_seconds=1)).reason == "too long"
    assert check(speech(), "Text.", LIMITS) is None
    assert read_checked("manifest", Recording("a", "s", " ", "a.wav"), LIMITS).reason == "no text"


def test_silence_is_trimmed_only_when_asked_for(tmp_path):
    quiet = np.zeros(16000, np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate([quiet, speech(1.0), quiet]), 16000)
    recording = Recording("a", "s", "Text.", str(tmp_path / "a.wav"))
    assert len(read_checked("manifest", recording, LIMITS)) == 3 * 16000
    trimmed = read_checked("manifest", recording, replace(LIMITS, trim_silence_db=40.0))
    assert abs(len(trimmed) - 1.2 * 16000) <= 320  # 0.1 s is left on either side


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    (tmp_path / "a.wav").write_text("no sound")
    (tmp_path / "a.txt").write_text("Text.")
    with pytest.raises(ValueError, match=r"no recording is left.*1 found, 1 set aside.*a\.wav: unreadable"):
        prepare.run(config_for(tmp_path), tmp_path / "run")
    with pytest.raises(ValueError, match="run --phase=prepare"):
        prepared.open_split(tmp_path / "run", "train")


def test_rows_come_back_as_they_went_in(tmp_path):
    table = write_table(tmp_path)
    prepare.run(config_for(table), tmp_path / "run")
    rows = [row for split in stored(tmp_path / "run").values() for row in split]
    assert len(rows) == 12
    for row in rows:
        samples, _ = soundfile.read(tmp_path / row["id"], dtype="int16")
        np.testing.assert_array_equal(row["audio"], samples)
        assert row["audio"].dtype == np.int16 and row["duration_s"] == pytest.approx(0.5)
        assert row["prompt_seen"] is True and row["simulated"] is False and isinstance(row["text"], str)
    metadata = prepared.open_metadata(tmp_path / "run", "train")
    assert [m["id"] for m in metadata] == [r["id"] for r in prepared.open_split(tmp_path / "run", "train")]
    assert set(prepared.lengths(tmp_path / "run", "train")) == {8000}


def test_prompt_seen_counts_only_what_train_really_holds(tmp_path):
    lines = ["path,text,speaker,split"]
    for name, split in (("a", "train"), ("b", "validation"), ("c", "evaluation")):
        for u in range(2):
            soundfile.write(tmp_path / f"{name}{u}.wav", speech(1.0, u), 16000)
            lines.append(f"{name}{u}.wav,Sentence {u}.,{name},{split}")
    (tmp_path / "a1.wav").write_bytes(b"")  # the only reading of "Sentence 1." in train is refused
    (tmp_path / "t.csv").write_text("\n".join(lines))
    prepare.run(config_for(tmp_path / "t.csv", pretrain_share=1.0), tmp_path / "run")
    assert {r["text"]: r["prompt_seen"] for r in prepared.open_split(tmp_path / "run", "evaluation")} == {
        "Sentence 0.": True,
        "Sentence 1.": False,
    }


def test_second_run_does_nothing_and_a_change_is_noticed(tmp_path, capsys):
    table = write_table(tmp_path)
    run_dir = tmp_path / "run"
    prepare.run(config_for(table), run_dir)
    made = (run_dir / "corpus/summary.json").stat().st_mtime_ns
    prepare.run(config_for(table, num_workers=2), run_dir)  # the number of workers changes no result
    assert "nothing to do" in capsys.readouterr().out
    assert (run_dir / "corpus/summary.json").stat().st_mtime_ns == made
    table.write_text(table.read_text().replace("number 1", "number one"))
    prepare.run(config_for(table), run_dir)
    assert "made again" in capsys.readouterr().out
    assert any("number one" in r["text"] for r in prepared.open_split(run_dir, "train"))


def shard_bytes(run_dir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run_dir / "corpus/speech/1.0.0").iterdir())}


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    table = write_table(tmp_path, speakers=20)
    prepare.run(config_for(table), tmp_path / "straight")
    done = []

    def killed(shard, path):
        if len(done) == 2:
            path.with_name(path.name + ".tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(shard.number)
        write(shard, path)

    write = build.write_shard
    monkeypatch.setattr(build, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(config_for(table), tmp_path / "killed")
    with pytest.raises(ValueError, match="run --phase=prepare"):
        prepared.open_split(tmp_path / "killed", "train")
    again = []
    monkeypatch.setattr(build, "write_shard", lambda shard, path: (again.append(shard.number), write(shard, path)))
    prepare.run(config_for(table), tmp_path / "killed")
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "straight")
    assert len(done) == 2 and len(again) + len(done) == len(list(shard_bytes(tmp_path / "killed"))) - 3


def test_shards_are_what_tfds_writes_itself(tmp_path):
    """download_and_prepare of the same builder, in one process, gives the same records in the same order."""
    run_dir = tmp_path / "run"
    prepare.run(config_for(write_table(tmp_path)), run_dir)
    builder = build.builder_class()(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    with contextlib.closing(Index(run_dir / "corpus/index.sqlite")) as index:
        (run_dir / "corpus/shards").mkdir()
        builder.shards = [
            build.Shard(run_dir / "corpus", "manifest", LIMITS, split, number, numbers)
            for split in ("train", "validation", "evaluation")
            for number, numbers in enumerate(index.shards(split))
        ]
        builder.download_and_prepare()
    for split, rows in stored(run_dir).items():
        np.testing.assert_equal(list(prepared.Split(builder.as_data_source(split))), rows)
    assert {p.name for p in Path(builder.data_path).iterdir()} == set(shard_bytes(run_dir))


def test_result_does_not_depend_on_workers_or_order(tmp_path):
    (tmp_path / "gone.wav").write_text("no sound")
    table = write_table(tmp_path, speakers=12, extra="gone.wav,Text.,s0,stroke\n")
    prepare.run(config_for(table), tmp_path / "one")
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *reversed(lines)]))
    prepare.run(config_for(table, num_workers=2), tmp_path / "two")
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")
    assert rejected(tmp_path / "one") == rejected(tmp_path / "two") == {"gone.wav": "unreadable"}


def test_recordings_over_thirty_seconds_stay_whole(tmp_path):
    for s in range(3):
        soundfile.write(tmp_path / f"{s}.wav", speech(41.0, s), 16000)
        (tmp_path / f"{s}.txt").write_text("Text.")
    prepare.run(config_for(tmp_path), tmp_path / "run")
    assert len(prepared.open_split(tmp_path / "run", "train")[0]["audio"]) == 41 * 16000


def test_manifest_formats_agree(tmp_path):
    rows = [{"file": f"{n}.wav", "words": f"Text {n}; and more", "who": "s"} for n in range(2)]
    columns = "path=file, text=words, speaker=who"
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t"), ("excel.csv", ";")):
        with open(tmp_path / name, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    for name in ("t.jsonl", "t.csv", "t.tsv", "excel.csv"):
        found = list(list_corpus("manifest", str(tmp_path / name), 0, columns=columns))
        expected = [(f"{n}.wav", f"Text {n}; and more", "s") for n in range(2)]
        assert [(r.id, r.text, r.speaker) for r in found] == expected
        assert found[0].path == str(tmp_path / "0.wav")


def test_manifest_errors_say_where_and_what(tmp_path):
    def listed(path: object, **options: str) -> None:
        list(list_corpus("manifest", str(path), 0, **options))

    (tmp_path / "t.csv").write_text("file,text\na.wav,A.\n")
    (tmp_path / "t.jsonl").write_text('{"path": "a.wav", "text": "A."}\n{broken\n')
    (tmp_path / "s.csv").write_text("path,text,split\na.wav,A.,dev\n")
    with pytest.raises(ValueError, match=r"no column path, found file, text"):
        listed(tmp_path / "t.csv")
    with pytest.raises(ValueError, match=r"'path:file', expected OURS=THEIRS"):
        listed(tmp_path / "t.csv", columns="path:file")
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: not JSON"):
        listed(tmp_path / "t.jsonl")
    with pytest.raises(ValueError, match=r"s\.csv, line 2: split 'dev'"):
        listed(tmp_path / "s.csv")
    with pytest.raises(ValueError, match=r"config\.data\.path='.*nowhere'"):
        listed(tmp_path / "nowhere")


def test_unknown_corpus_and_split_name_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"config\.data\.corpus='dmeo', expected one of demo, manifest, sap"):
        prepare.run(config_for(corpus="dmeo"), tmp_path)
    with pytest.raises(ValueError, match="run --phase=prepare"):
        prepared.open_split(tmp_path, "train")
    for s in range(2):
        soundfile.write(tmp_path / f"{s}.wav", speech(), 16000)
        (tmp_path / f"{s}.txt").write_text("Text.")
    prepare.run(config_for(tmp_path), tmp_path / "run")
    with pytest.raises(ValueError, match=r"no split 'evaluation', found train \(2\)"):
        prepared.open_split(tmp_path / "run", "evaluation")


@pytest.mark.skipif(not REAL.exists(), reason=f"needs the clips of real speech at {REAL}")
def test_a_real_table_with_its_own_column_names(tmp_path):
    config = config_for(REAL, num_workers=2)
    config.manifest.columns = "text=transcript,etiology=condition"
    prepare.run(config, tmp_path)
    rows = [row for split in stored(tmp_path).values() for row in split]
    with open(REAL, encoding="utf-8") as file:
        listed = len(list(csv.DictReader(file)))
    assert len(rows) + len(rejected(tmp_path)) == listed and len(rows) > 0.95 * listed
    assert len({row["speaker"] for row in rows}) > 10


def test_demo_end_to_end(tmp_path):
    config = config_for(corpus="demo", num_workers=1)
    per_speaker = {f"{split}_utterances": 1 for split in ("train", "validation", "evaluation")}
    config.demo = {"train_speakers_per_voice": 1, "held_out_speakers_per_voice": 2, **per_speaker}
    prepare.run(config, tmp_path)
    splits = stored(tmp_path)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 22, "validation": 6, "evaluation": 6}
    assert not rejected(tmp_path)
    assert all(row["simulated"] and row["translation"] for rows in splits.values() for row in rows)
    assert 3 <= sum(row["pretrain"] for row in splits["train"]) <= 6
