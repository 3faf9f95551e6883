"""German for utterances without, and what becomes of it."""

import json

import pytest

from configs import quickstart
from jaxmoe import mt, stages
from jaxmoe.data import prepared
from jaxmoe.data.pairs import corpus_pairs
from tests.mt import corpus
from tests.mt.deepl_server import KEY, german, serve

TRAIN = [("Good morning.", "Guten Morgen."), ("Good night.", ""), ("Good night.", "")]
EVALUATION = [("Where is my tea?", ""), ("Good night.", "")]


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPL_AUTH_KEY", KEY)
    monkeypatch.setattr("jaxmoe.phases.references.cache_folder", lambda: tmp_path / "cache")
    corpus.write(tmp_path / "run", train=TRAIN, evaluation=EVALUATION)
    config = quickstart.get_config()
    config.references.engine, config.mt.acknowledge_privacy = "deepl", True
    record = {"done": True, "fingerprint": stages.fingerprint(config, "prepare"), "settings": {}}
    (tmp_path / "run" / "corpus" / "phase.json").write_text(json.dumps(record))
    with serve() as (url, account):
        monkeypatch.setenv("DEEPL_SERVER_URL", url)
        yield config, tmp_path / "run", account


def test_fills_what_is_missing_and_records_the_origin(setting):
    config, workdir, account = setting
    assert corpus_pairs(workdir, "evaluation") == []
    stages.run(config, workdir, "references")
    train, evaluation = (prepared.open_metadata(workdir, split) for split in ("train", "evaluation"))
    made = german("Good night.")
    assert [row["translation"] for row in train] == ["Guten Morgen.", made, made]
    assert [row["translation_origin"] for row in train] == ["corpus", "DeepL", "DeepL"]
    assert {row["translation_origin"] for row in evaluation} == {"DeepL"}
    assert len(corpus_pairs(workdir, "evaluation")) == 2
    assert account.accepted == {"Good night.": 1, "Where is my tea?": 1}  # each sentence once, through the cache


def test_again_costs_nothing_and_gives_the_same(setting):
    config, workdir, account = setting
    stages.run(config, workdir, "references")
    first = (workdir / prepared.REFERENCES).read_bytes()
    stages.run(config, workdir, "references", force=True)
    assert (workdir / prepared.REFERENCES).read_bytes() == first
    assert set(account.accepted.values()) == {1}


def test_a_budget_stops_it_and_a_higher_one_goes_on(setting):
    config, workdir, account = setting
    config.mt.max_chars = 5
    with pytest.raises(mt.BudgetExceeded):
        stages.run(config, workdir, "references")
    assert not (workdir / prepared.REFERENCES).exists() and not account.accepted
    before = stages.fingerprint(config, "references")
    config.mt.max_chars = 1000
    assert stages.fingerprint(config, "references") == before  # nothing is begun anew
    stages.run(config, workdir, "references")
    assert len(prepared.references(workdir)) == 4


def test_off_unless_an_engine_is_named():
    config = quickstart.get_config()
    assert not stages.is_wanted(config, "references")
    assert "references" not in stages.needs(config, "evaluate")
    config.references.engine = "local"
    assert "references" in stages.needs(config, "evaluate")
