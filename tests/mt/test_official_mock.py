"""Against DeepL's own mock server (github.com/DeepLcom/deepl-mock), where one runs: see docs/deepl.md.

It translates "proton beam" and exact entries of a glossary, and checks each request against DeepL's OpenAPI description
when it is started with VALIDATE_REQUESTS=1 and VALIDATE_RESPONSES=1.
"""

import os
import uuid

import pytest

from jaxmoe import mt
from jaxmoe.mt import assets
from jaxmoe.mt.account import Account
from jaxmoe.mt.courier import deliver
from jaxmoe.mt.custom import Customisation

PORT = os.environ.get("DEEPL_MOCK_SERVER_PORT", "")
URL = f"http://127.0.0.1:{PORT}"
pytestmark = pytest.mark.skipif(not PORT, reason="DEEPL_MOCK_SERVER_PORT is not set: no official mock server runs here")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("DEEPL_AUTH_KEY", f"jaxmoe-{uuid.uuid4()}")  # an account of its own
    monkeypatch.delenv("DEEPL_SERVER_URL", raising=False)
    monkeypatch.setattr("jaxmoe.mt.account.PAUSE_S", 0.05)


def make(tmp_path, **options):
    options = {"acknowledge_privacy": True, "cache_path": tmp_path / "mt.sqlite"} | options
    return mt.make("deepl", "", server_url=URL, **options)


def session(tmp_path, **faults):
    """A translator without a process of its own, whose requests tell the server to fail."""
    translator = make(tmp_path)
    headers = {"mock-server-session": str(uuid.uuid4()), "mock-server-session-allow-reconnections": "1"}
    headers |= {f"mock-server-session-{name.replace('_', '-')}": str(value) for name, value in faults.items()}
    translator.engine._account.client.headers.update(headers)
    translator.courier.send = lambda batch: deliver(
        translator.engine, translator.cache, batch, max_chars=400_000, pause_s=0.05
    )
    return translator


def used():
    return Account(server_url=URL, acknowledge_privacy=True).client.get_usage().character.count


def test_translates_through_the_courier_and_pays_once(tmp_path):
    texts = ["proton beam", *(f"Sentence {n}." for n in range(60))]
    assert make(tmp_path).translate(texts)[0] == "Protonenstrahl"
    translator = make(tmp_path)
    assert len(translator.translate(texts)) == 61
    assert used() == sum(map(len, texts)) == translator.cache.billed_characters()
    assert translator.cache.in_doubt() == 0


@pytest.mark.parametrize("fault", [{"429_count": 2}, {"5xx_count": 2}, {"5xx_count": 2, "5xx_status": 504}])
def test_passing_faults(tmp_path, fault):
    translator = session(tmp_path, **fault)
    assert translator.translate(["proton beam"]) == ["Protonenstrahl"]
    assert used() == len("proton beam")


def test_no_response(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmoe.mt.account.TIMEOUT_S", 1.0)
    translator = session(tmp_path, no_response_count=2)
    assert translator.translate(["proton beam"]) == ["Protonenstrahl"]
    assert used() == len("proton beam")


def test_quota_and_key(tmp_path, monkeypatch):
    with pytest.raises(mt.RequestError, match=r"used up \(456\)"):
        session(tmp_path, init_character_limit=5).translate(["proton beam"])
    monkeypatch.setenv("DEEPL_AUTH_KEY", "invalid")
    with pytest.raises(mt.RequestError, match=r"refuses the key in DEEPL_AUTH_KEY \(403\)"):
        make(tmp_path).translate(["a proton beam"])


def test_glossary_and_style_rule(tmp_path):
    content = Customisation(
        {"artist": "Maler", "prize": "Gewinn"},
        [("memories cannot be uploaded to it", "das geht nicht")],
        {"style_and_tone": {"formality": "use_casual_tone"}},
        ["Translate what is meant."],
    )
    account = Account(server_url=URL, acknowledge_privacy=True)
    # DeepL's description of its API wants "en" and "de" here, its client sends "EN" and "DE".
    account.client.headers.update({"mock-server-session": "jaxmoe", "mock-server-session-allow-extra-body": "1"})
    made = assets.sync(account, content, "mock", memory_threshold=0)
    assert assets.sync(account, content, "mock", memory_threshold=0) == made
    assert make(tmp_path, custom=made).translate(["artist", "proton beam"]) == ["Maler", "Protonenstrahl"]
    ours = [asset for asset in assets.assets(account) if asset.name.startswith("jaxmoe mock ")]
    assert sorted(asset.kind for asset in ours) == ["glossary", "style"]
    for asset in ours:
        assets.delete(account, asset)
    assert not [asset for asset in assets.assets(account) if asset.name.startswith("jaxmoe ")]


def test_a_server_without_uploads_of_memories_is_a_reason(tmp_path):
    content = Customisation({}, [("a", "b")], {}, [])
    with pytest.raises(mt.TranslatorUnavailable, match=r"cannot be customised: .*404"):
        assets.sync(Account(server_url=URL, acknowledge_privacy=True), content, "mock", memory_threshold=95)
