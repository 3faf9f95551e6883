"""What a run tells DeepL, from the prepared corpus to the translation."""

import json

import pytest

from configs import quickstart
from jaxmoe import mt
from jaxmoe.data import prepared
from jaxmoe.eval import systems
from jaxmoe.mt import assets, custom
from jaxmoe.phases import customize
from tests.mt import corpus
from tests.mt.deepl_server import KEY, german, serve
from tests.mt.test_glossary import FRAMES, NOUNS

PAIRS = [(en.format(e), de.format(d)) for e, d in NOUNS.items() for en, de in FRAMES]
HELD_OUT = [PAIRS[0], ("My wheelchair is broken.", "Mein Rollstuhl ist kaputt.")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPL_AUTH_KEY", KEY)
    corpus.write(tmp_path / "run", train=PAIRS * 3, evaluation=HELD_OUT)
    return quickstart.get_config(), tmp_path / "run"


def translator(workdir, cache):
    fields = dict(quickstart.get_config().mt) | {"acknowledge_privacy": True, "cache_path": cache}
    return assets.customised(workdir, memory_threshold=95, **fields)


def test_train_is_used_and_evaluation_is_not(run, tmp_path, monkeypatch):
    config, workdir = run
    with serve() as (url, account):
        monkeypatch.setenv("DEEPL_SERVER_URL", url)
        with pytest.raises(mt.TranslatorUnavailable, match="--phase=customize has not been run"):
            translator(workdir, tmp_path / "mt.sqlite")
        customize.run(config, workdir)
        assert json.loads((workdir / "custom" / "counts.json").read_text())["left_out_as_held_out"] == 1
        customised = translator(workdir, tmp_path / "mt.sqlite")
        seen, unseen = PAIRS[1][0], HELD_OUT[1][0]
        assert customised.translate([seen, unseen, "Tea?"]) == [PAIRS[1][1], "Rollstuhl", german("Tea?")]
        (memory,) = account.assets.kept["translation_memories"].values()
        assert not memory["_segments"].keys() & {english for english, _ in HELD_OUT}


def test_a_leak_is_refused_before_anything_is_uploaded(run, tmp_path, monkeypatch):
    config, workdir = run
    customize.run(config, workdir)
    (workdir / "custom" / "memory.tmx").write_bytes(custom.to_tmx([*PAIRS[1:5], HELD_OUT[1]]))
    with serve() as (url, account):
        monkeypatch.setenv("DEEPL_SERVER_URL", url)
        with pytest.raises(ValueError, match=r"segment 5 \(utterance evaluation-1\)"):
            translator(workdir, tmp_path / "mt.sqlite")
        assert not account.assets.calls


def test_the_row_is_run_or_says_why_not(run, tmp_path, monkeypatch):
    config, workdir = run
    monkeypatch.setattr("jaxmoe.eval.translators.cache_folder", lambda: tmp_path / "cache")
    make = systems.get("mt-custom").translator.function()
    assert systems.get("moe-custom-mt").translator.function() is make
    with serve() as (url, account):
        monkeypatch.setenv("DEEPL_SERVER_URL", url)
        for engine, acknowledged, reason in (
            ("local", True, "--phase=mt has not been run"),
            ("none", True, "nothing to customise"),
            ("deepl", True, "--phase=customize has not been run"),
            ("deepl", False, "leaves this machine.*acknowledge_privacy=True"),
        ):
            config.mt.engine, config.mt.acknowledge_privacy = engine, acknowledged
            with pytest.raises(systems.NotRun, match=reason):
                make(config, workdir, None)
            if acknowledged and engine == "deepl":
                customize.run(config, workdir)
        config.mt.acknowledge_privacy = True
        account.assets.refuse = "glossaries"
        with pytest.raises(systems.NotRun, match=r"cannot be customised: .*403"):
            make(config, workdir, None)
        account.assets.refuse = ""
        assert make(config, workdir, None).name == "customised DeepL"


def test_german_made_by_machine_is_not_taught(run):
    config, workdir = run
    rows = [{"id": f"train-{n}", "translation": "x", "translation_origin": "DeepL"} for n in range(2)]
    (workdir / "references").mkdir()
    (workdir / prepared.REFERENCES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = workdir / "corpus" / "metadata_train.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["translation"] = lines[1]["translation"] = ""
    lines = [line for line in lines if line["text"] not in (PAIRS[0][0], PAIRS[1][0]) or not line["translation"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prepared.open_metadata(workdir, "train")[1]["translation"] == "x"
    customize.run(config, workdir)
    assert "x" not in {de for _, de in custom.read(workdir / "custom").memory}
