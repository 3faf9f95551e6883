"""Customisations in an account at DeepL, against the server on the loopback."""

import dataclasses
import logging

import pytest

from jaxmoe import mt
from jaxmoe.mt import assets
from jaxmoe.mt.account import Account
from jaxmoe.mt.custom import Customisation
from tests.mt.deepl_server import KEY, german, serve

CUSTOM = Customisation(
    {"wheelchair": "Rollstuhl"},
    [("Good night.", "Schlafen Sie gut.")],
    {"style_and_tone": {"formality": "use_formal_tone"}},
    ["Translate what is meant."],
)
COLLEAGUE = {"name": "of a colleague", "dictionaries": [{"entries": "a\tb"}]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("DEEPL_AUTH_KEY", KEY)
    monkeypatch.setattr("jaxmoe.mt.account.PAUSE_S", 0.01)
    with serve() as (url, account):
        yield url, account


def sync(url, made=CUSTOM, run="demo", threshold=95):
    return assets.sync(Account(server_url=url, acknowledge_privacy=True), made, run, memory_threshold=threshold)


def names(account):
    return sorted(row["name"] for rows in account.assets.kept.values() for row in rows.values())


def test_uploaded_once_and_used(server, tmp_path):
    url, account = server
    made = sync(url)
    first = dict(made["request"])
    assert made["request"].keys() == {
        *("glossary", "style_rule", "translation_memory", "translation_memory_threshold", "custom_instructions"),
    }
    assert sync(url) == made  # found again
    assert [call for call in account.assets.calls if call.startswith("POST")] == [
        *("POST glossaries", "POST style_rules", "POST translation_memories"),
    ]
    options = dict(acknowledge_privacy=True, server_url=url, cache_path=tmp_path / "mt.sqlite")
    plain, customised = mt.make("deepl", "", **options), mt.make("deepl", "", **options, custom=made)
    texts = ["Good night.", "My wheelchair is here.", "Nothing of it."]
    assert customised.translate(texts) == ["Schlafen Sie gut.", "Rollstuhl", german(texts[2])]
    assert plain.translate(texts) == [german(text) for text in texts]
    assert customised.name == "customised DeepL" and made["version"] in customised.signature
    assert first["glossary"] not in customised.signature  # an id changes with every upload, the content does not
    (request,) = [r for r in account.requests if "style_id" in r]
    assert request["custom_instructions"] == CUSTOM.instructions and request["translation_memory_threshold"] == 95


def test_stale_is_deleted_and_nothing_else(server):
    url, account = server
    sync(url)
    sync(url, run="another")
    account.assets.answer(
        "",
        "POST",
        "/v3/glossaries",
        {"name": "of a colleague", "dictionaries": [{"entries": "a\tb"}]},
    )
    before = names(account)
    changed = dataclasses.replace(CUSTOM, glossary={"wheelchair": "Rolli"})
    sync(url, changed)
    gone, come = set(before) - set(names(account)), set(names(account)) - set(before)
    assert len(gone) == len(come) == 1 and all(name.startswith("jaxmoe demo ") for name in gone | come)
    (entry,) = [row for row in account.assets.kept["glossaries"].values() if row["name"] in come]
    assert entry["_pairs"] == {"wheelchair": "Rolli"}


def test_an_asset_deleted_at_deepl_is_uploaded_again(server):
    url, account = server
    before = sync(url)
    account.assets.kept["glossaries"].clear()
    after = sync(url)
    assert after["version"] == before["version"] and after["request"]["glossary"] != before["request"]["glossary"]


def test_what_comes_twice_of_a_lost_answer_is_deleted(server):
    url, account = server
    sync(url)
    (row,) = account.assets.kept["glossaries"].values()
    account.assets.kept["glossaries"]["copy"] = row | {"glossary_id": "copy"}
    sync(url)
    assert len(account.assets.kept["glossaries"]) == 1


def test_pages_are_read_to_the_end(server):
    url, account = server
    rule = {"name": "other", "language": "de"}
    for _ in range(60):
        account.assets.answer("", "POST", "/v3/style_rules", rule)
    sync(url)
    listed = assets.assets(Account(server_url=url, acknowledge_privacy=True))
    assert len([asset for asset in listed if asset.kind == "style"]) == 61


def test_parts_can_be_left_out(server):
    url, _ = server
    made = sync(url, dataclasses.replace(CUSTOM, rules={}), threshold=0)
    assert made["request"].keys() == {"glossary", "custom_instructions"}
    assert made["version"] != sync(url)["version"]


def test_a_plan_without_style_rules_is_a_reason_not_to_run(server):
    url, account = server
    account.assets.refuse = "style_rules"
    with pytest.raises(mt.TranslatorUnavailable, match=r"cannot be customised: .*style rules need a paid one"):
        sync(url)


def test_what_is_uploaded_is_said_and_not_shown(server, caplog):
    caplog.set_level(logging.DEBUG)
    sync(server[0])
    assert "PRIVACY" in caplog.text and "uploading glossary, style, memory, up to 47 characters" in caplog.text
    assert "Schlafen" not in caplog.text and "hush" not in caplog.text and KEY not in caplog.text


def test_command_line_lists_and_deletes(server, monkeypatch, capsys):
    url, account = server
    monkeypatch.setenv("DEEPL_SERVER_URL", url)
    sync(url)
    account.assets.answer(
        "",
        "POST",
        "/v3/glossaries",
        {"name": "of a colleague", "dictionaries": [{"entries": "a\tb"}]},
    )
    assets.main(["list"])
    assert "3 found" in capsys.readouterr().out
    assets.main(["delete"])
    assert names(account) == ["of a colleague"]
