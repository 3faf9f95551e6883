"""Systems are run once, again when something they depend on changes, and alone."""

from collections.abc import Iterator
import dataclasses
import json

from ml_collections import ConfigDict
import pytest

from jaxmoe import mt
from jaxmoe.eval import run, systems
from jaxmoe.eval.systems import Clip, NotRun, Part, System

CALLS: list[str] = []  # what recognised how many clips, and what translated
DIE_AFTER = [99]


def recognise(config, workdir, part, clips) -> Iterator[list[dict]]:
    """Upper case, or lower case: a recogniser that depends on one field."""
    CALLS.append(f"{part.groups[0]} {len(clips)}")
    for number, clip in enumerate(clips):
        if number == DIE_AFTER[0]:
            raise KeyboardInterrupt
        yield [{"id": clip.id, "hypothesis": clip.text.upper() + str(config.a[part.groups[0][-1]])}]


class Reversed:
    name, signature = "Reversed", "reversed:1"

    def translate(self, texts):
        CALLS.append(f"translate {len(texts)}")
        return [text[::-1] for text in texts]


def nothing(config, workdir, part, clips):
    raise NotRun("no weights at hand")


def translator(config, workdir, part):
    if config.mt.engine == "none":
        raise mt.TranslatorUnavailable("no engine")
    if config.mt.engine == "gone":
        raise mt.TranslatorUnavailable("no key")
    return Reversed()


HERE = "tests.eval.test_run"
X, Y = (Part(f"{HERE}:recognise", ("joint",), (f"a.{name}",)) for name in "xy")
MT = Part(f"{HERE}:translator", groups=("mt",), title="MT")


@pytest.fixture
def job(tmp_path, monkeypatch):
    rows = (
        System("one", "One {v2} + {mt}", "asr+mt", X, MT),
        System("again", "Again {v2} + {mt}", "asr+mt", X, None),
        System("two", "Two {v3} + {mt}", "asr+mt", Y, MT),
        System("alone", "{mt} on reference transcripts", "mt", None, MT),
        System("absent", "Absent", "e2e", Part(f"{HERE}:nothing"), None),
    )
    monkeypatch.setattr(systems, "SYSTEMS", rows)
    monkeypatch.setattr(systems, "BY_KEY", {row.key: row for row in rows})
    CALLS.clear()
    DIE_AFTER[0] = 99
    config = ConfigDict({"model": {"backbone": "b", "second": "s"}, "a": {"x": 1, "y": 2}, "mt": {"engine": "local"}})
    config.salmonn = {"llm": "", "weights": ""}
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "phase.json").write_text(json.dumps({"phase": "joint", "fingerprint": "f", "done": True}))
    items = [dict.fromkeys(run.FIELDS, "") | {"id": f"u{n}", "text": f"text {n}"} for n in range(3)]
    items = [x | {"translation": "Text", "translation_origin": "corpus"} for x in items]
    clips = [Clip(x["id"], x["text"], 1.0, lambda: None) for x in items]
    return run.Job(config, tmp_path, tmp_path / "eval", items, clips, "sound")


def everything(job):
    return run.evaluate(job, systems.BY_KEY)


def lines(job, key):
    return [json.loads(x) for x in (job.folder / key / "hypotheses.jsonl").read_text().splitlines()]


def test_all_are_run_once_and_one_recogniser_serves_two_rows(job):
    status = everything(job)
    assert CALLS == ["a.x 3", "a.y 3", "translate 9", "translate 3", "translate 3", "translate 3"]
    assert status == dict.fromkeys(("one", "again", "two", "alone"), "run") | {"absent": "not run: no weights at hand"}
    assert lines(job, "one")[0]["hypothesis"] == lines(job, "again")[0]["hypothesis"] == "TEXT 01"
    assert [lines(job, key)[0]["translation"] for key in ("one", "again", "alone")] == ["10 TXET", "", "0 txet"]
    CALLS.clear()
    assert everything(job) == status
    assert CALLS == []


def test_a_changed_field_runs_the_systems_that_depend_on_it_and_no_other(job):
    everything(job)
    before = (job.folder / "one" / "system.json").stat().st_mtime_ns
    CALLS.clear()
    job.config.a.y = 5
    everything(job)
    assert CALLS == ["a.y 3", "translate 3", "translate 3"]
    assert lines(job, "two")[0]["hypothesis"] == "TEXT 05"
    assert (job.folder / "one" / "system.json").stat().st_mtime_ns == before
    assert (job.workdir / "eval.previous" / "two" / "hypotheses.jsonl").exists()


def test_a_phase_done_anew_runs_its_systems_again_and_one_not_done_is_named(job):
    everything(job)
    record = job.workdir / "joint" / "phase.json"
    record.write_text(record.read_text().replace('"f"', '"g"'))
    CALLS.clear()
    everything(job)
    assert CALLS[:2] == ["a.x 3", "a.y 3"]
    record.unlink()
    assert everything(job)["one"] == "not run: --phase=joint has not been run"


def test_a_row_without_its_translator_says_why(job, capsys):
    job.config.mt.engine = "none"
    assert everything(job)["one"] == "run" and "without" not in capsys.readouterr().out  # as was asked for
    job = dataclasses.replace(job, config=ConfigDict(job.config.to_dict() | {"mt": {"engine": "gone"}}))
    everything(job)
    assert json.loads((job.folder / "one" / "system.json").read_text())["without_mt"] == "no key"
    assert "one: without German: no key" in capsys.readouterr().out


def test_a_salmonn_that_is_no_release_says_so():
    row = systems.get("salmonn")
    names = {"v2": "b", "v3": "s"}
    fields = {"llm": "models/gemma-3-270m", "weights": ""}
    config = ConfigDict({"salmonn": fields})
    assert row.name(**names, llm=run._llm(config)) == "SALMONN (gemma-3-270m, connector from scratch), no fine-tuning"
    config.salmonn.weights = "salmonn_v1.pth"
    assert run._llm(config) == " (gemma-3-270m)"


def test_other_recordings_are_recognised_again(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "summary.json").write_text("{}")
    sources = [run.corpus_source(tmp_path)]
    for result in ("a", "b"):
        (tmp_path / "corpus" / "phase.json").write_text(json.dumps({"result": result}))
        sources.append(run.corpus_source(tmp_path))
    assert len(set(sources)) == 3


def test_another_translator_keeps_the_transcripts(job):
    job.config.mt.engine = "none"
    assert everything(job)["alone"] == "not run: no engine"
    assert json.loads((job.folder / "one" / "system.json").read_text())["name"] == "One b + no MT"
    CALLS.clear()
    job.config.mt.engine = "local"
    everything(job)
    assert CALLS == ["translate 9", "translate 3", "translate 3", "translate 3"]
    assert lines(job, "one")[0]["translation"] == "10 TXET"


def test_a_killed_recogniser_goes_on_after_its_last_whole_line(job):
    DIE_AFTER[0] = 2
    with pytest.raises(KeyboardInterrupt):
        everything(job)
    path = job.folder / "one" / "transcripts.jsonl"
    path.write_text(path.read_text() + '{"id": "u2", "hypo')
    CALLS.clear()
    DIE_AFTER[0] = 99
    everything(job)
    assert CALLS[0] == "a.x 1"
    assert [x["hypothesis"] for x in lines(job, "one")] == ["TEXT 01", "TEXT 11", "TEXT 21"]


def test_transcripts_of_other_settings_are_never_continued(job):
    DIE_AFTER[0] = 2
    with pytest.raises(KeyboardInterrupt):
        everything(job)
    DIE_AFTER[0], job.config.a.x = 99, 7
    CALLS.clear()
    everything(job)
    assert CALLS[0] == "a.x 3"
    assert {x["hypothesis"][-1] for x in lines(job, "one")} == {"7"}


def test_other_sound_is_recognised_again(job):
    everything(job)
    CALLS.clear()
    everything(dataclasses.replace(job, source="other"))
    assert CALLS[:2] == ["a.x 3", "a.y 3"]


def test_a_job_may_leave_translation_out(job):
    run.evaluate(dataclasses.replace(job, translate=False), ["one"])
    assert CALLS == ["a.x 3"] and lines(job, "one")[0]["translation"] == ""


def test_damaged_hypotheses_are_made_again(job):
    everything(job)
    (job.folder / "one" / "hypotheses.jsonl").write_text("")
    everything(job)
    assert len(lines(job, "one")) == 3


def test_a_system_no_longer_asked_for_leaves_the_table(job):
    everything(job)
    run.evaluate(job, ["one"])
    assert sorted(p.name for p in job.folder.iterdir()) == ["one"]


def test_a_recogniser_that_forgets_a_clip_is_an_error(job, monkeypatch):
    monkeypatch.setattr(f"{HERE}.recognise", lambda *args: iter([[{"id": "u0", "hypothesis": "x"}]]))
    with pytest.raises(ValueError, match=r"one: its recogniser gave nothing for 2 clips, e\.g\. 'u1'"):
        everything(job)


def test_unknown_systems_are_named(job):
    with pytest.raises(ValueError, match=r"\['three'\] are unknown"):
        run.evaluate(job, ["one", "three"])


def test_every_part_of_the_table_can_be_imported():
    for system in systems.SYSTEMS:
        for part in filter(None, (system.recogniser, system.translator)):
            assert callable(part.function())
