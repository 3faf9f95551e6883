"""The DeepL engine through its official client, against a server on the loopback."""

import concurrent.futures
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest

from jaxmoe import mt
from jaxmoe.mt.courier import deliver
from tests.mt.deepl_server import KEY, LOST, german, serve

TEXTS = [f"This is sentence number {i}, said {'very ' * (i % 5)}clearly." for i in range(120)]
WORKER = """
import sys
from jaxmoe import mt
from jaxmoe.mt import account
account.PAUSE_S = 0.01
translator = mt.make("deepl", "", acknowledge_privacy=True, server_url=sys.argv[1], cache_path=sys.argv[2])
texts = open(sys.argv[3], encoding="utf-8").read().splitlines()
print("ready", flush=True)
sys.stdin.readline()
translator.translate(texts)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("DEEPL_AUTH_KEY", KEY)
    monkeypatch.delenv("DEEPL_SERVER_URL", raising=False)
    monkeypatch.setattr("jaxmoe.mt.account.PAUSE_S", 0.01)


def make(url, tmp_path, **options):
    options = {"acknowledge_privacy": True, "cache_path": tmp_path / "mt.sqlite"} | options
    return mt.make("deepl", "", server_url=url, **options)


def inline(url, tmp_path, **options):
    """The same without a process of its own, which takes a second to start."""
    translator = make(url, tmp_path, **options)
    courier = translator.courier

    def send(batch):
        deliver(translator.engine, translator.cache, batch, max_chars=courier._max_chars, pause_s=0.01)

    courier.send = send
    return translator


def test_translates_in_order_and_each_text_once(tmp_path):
    with serve() as (url, account):
        translator = make(url, tmp_path)
        texts = [*TEXTS, "", TEXTS[3], "  ", f" {TEXTS[4]} "]
        expected = [german(text.strip()) if text.strip() else "" for text in texts]
        assert translator.translate(texts) == expected
        assert translator.translate(texts) == expected
        assert set(account.accepted.values()) == {1}
        assert account.characters == sum(map(len, TEXTS)) == translator.cache.billed_characters()
        assert [len(request["text"]) for request in account.requests] == [50, 50, 20]
        assert translator.cache.in_doubt() == 0
        request = account.requests[0]
        assert (request["source_lang"], request["target_lang"]) == ("EN", "DE")
        assert request["model_type"] == "prefer_quality_optimized"


def test_second_run_asks_nothing(tmp_path):
    with serve() as (url, account):
        make(url, tmp_path).translate(TEXTS[:5])
        count = len(account.requests)
        assert make(url, tmp_path).translate(TEXTS[:5]) == list(map(german, TEXTS[:5]))
        assert len(account.requests) == count


def test_a_failure_says_how_to_go_on(tmp_path):
    with serve(lambda n: "403" if n else "") as (url, _):
        with pytest.raises(mt.RequestError, match=r"\(403\).*the same command goes on from there") as caught:
            make(url, tmp_path).translate(TEXTS)
        assert KEY not in "".join(traceback.format_exception(caught.value))


def test_the_courier_ends_with_its_translator(tmp_path):
    with serve() as (url, _):
        translator = make(url, tmp_path)
        translator.translate(TEXTS[:1])
        process = translator.courier._process
        assert process.poll() is None  # it waits for more
        del translator
        assert process.wait() == 0


def test_formality_is_sent_and_part_of_the_signature(tmp_path):
    with serve() as (url, account):
        plain, formal = inline(url, tmp_path), inline(url, tmp_path, formality="prefer_more")
        assert plain.signature != formal.signature
        plain.translate(TEXTS[:1])
        formal.translate(TEXTS[:1])
        assert [request.get("formality") for request in account.requests] == ["default", "prefer_more"]


def test_requests_stay_below_the_limit_of_bytes(tmp_path):
    texts = [f"{i} " + "über " * 3000 for i in range(12)]  # each ü is six bytes of JSON
    with serve() as (url, account):
        assert inline(url, tmp_path).translate(texts) == [german(text.strip()) for text in texts]
        assert "413" not in account.faults
        assert 1 < len(account.requests) <= 12


def test_a_text_over_the_limit_is_refused_before_anything_is_sent(tmp_path):
    with serve() as (url, account):
        with pytest.raises(ValueError, match="Split it into sentences"):
            inline(url, tmp_path).translate(["short", "long " * 30_000])
        assert not account.requests


@pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "html", *sorted(LOST)])
def test_passing_faults_are_repeated_and_lost_answers_counted(tmp_path, fault, monkeypatch):
    monkeypatch.setattr("jaxmoe.mt.account.TIMEOUT_S", 1.0)
    with serve(lambda n: fault if n in (0, 2) else "") as (url, account):
        translator = inline(url, tmp_path)
        assert translator.translate(TEXTS) == list(map(german, TEXTS))
        assert set(account.accepted.values()) == {1}
        billed, doubt = translator.cache.billed_characters(), translator.cache.in_doubt()
        assert billed == sum(map(len, TEXTS))
        assert account.characters <= billed + doubt  # never more than we know of
        if fault in LOST:
            assert account.characters == billed + doubt > billed


def test_a_request_that_never_left_is_not_in_doubt(tmp_path):
    with serve() as (url, _):
        pass
    translator = inline(url, tmp_path)
    with pytest.raises(mt.RequestError, match="cannot be reached"):  # nobody listens any more
        translator.courier.send(TEXTS[:1])
    assert translator.cache.in_doubt() == 0


def test_characters_in_doubt_count_against_the_budget(tmp_path):
    size = sum(map(len, TEXTS[:10]))
    with serve(lambda n: "lost") as (url, account):
        with pytest.raises(mt.BudgetExceeded, match=f"{2 * size:,} may be"):
            inline(url, tmp_path, max_chars=2 * size + 1).translate(TEXTS[:10])
        assert account.characters == 2 * size


MESSAGES = {
    "400": r"refuses the request \(400\)",
    "403": r"refuses the key in DEEPL_AUTH_KEY \(403\)",
    "413": r"refuses the request \(413\)",
    "429": r"too many requests \(429\)",
    "456": r"used up \(456\)",
    "500": r"server fails \(500\)",
    "503": r"server fails \(503\)",
    "reset": r"cannot be reached",
    "truncated": r"cannot be reached",
    "malformed": r"cannot be read: 0 translations for 20 texts",
    "short": r"cannot be read: 19 translations for 20 texts",
    "unbilled": r"cannot be read: fields are missing",
    "empty": r"cannot be read: a translation is empty",
}


@pytest.mark.parametrize("fault", MESSAGES)
def test_lasting_faults_are_told_apart_and_lose_nothing(tmp_path, fault, caplog):
    caplog.set_level(logging.DEBUG)
    lasting = [True]
    with serve(lambda n: fault if n >= 2 and lasting[0] else "") as (url, account):
        with pytest.raises(mt.RequestError, match=MESSAGES[fault]) as caught:
            inline(url, tmp_path).translate(TEXTS)
        shown = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert KEY not in shown and KEY.removesuffix(":fx") not in shown
        assert TEXTS[0] not in shown
        assert caught.value.__cause__ is None and caught.value.__context__ is None
        lasting[0] = False
        assert inline(url, tmp_path).translate(TEXTS) == list(map(german, TEXTS))
        assert set(account.accepted.values()) == {1}


def test_wrong_key_is_not_shown(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DEEPL_AUTH_KEY", "another-key-of-mine")
    with serve() as (url, _), pytest.raises(mt.RequestError, match=r"\(403\)") as caught:
        inline(url, tmp_path).translate(TEXTS[:1])
    assert "another-key-of-mine" not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_malformed_key_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPL_AUTH_KEY", "schlüssel\nzweite-zeile")
    with pytest.raises(ValueError, match="copy the key again") as caught:
        make("http://127.0.0.1:9", tmp_path)
    assert "schlüssel" not in str(caught.value)


def test_budget_stops_before_the_request_and_goes_on_when_raised(tmp_path):
    budget = sum(map(len, TEXTS[:100])) + 10
    with serve() as (url, account):
        with pytest.raises(mt.BudgetExceeded, match="raise max_chars") as caught:
            inline(url, tmp_path, max_chars=budget).translate(TEXTS)
        assert str(tmp_path / "mt.sqlite") in str(caught.value)
        assert account.characters <= budget and len(account.accepted) == 100
        with pytest.raises(mt.BudgetExceeded):  # a new process does not get a new budget
            inline(url, tmp_path, max_chars=budget).translate(TEXTS)
        assert inline(url, tmp_path, max_chars=100_000).translate(TEXTS) == list(map(german, TEXTS))
        assert set(account.accepted.values()) == {1}


def test_characters_are_shown_before_sending(tmp_path, caplog):
    with serve(limit=777_000) as (url, _):
        inline(url, tmp_path).translate(TEXTS)
    assert f"120 texts, {sum(map(len, TEXTS)):,} characters to send" in caplog.text
    assert "0 of 777,000 characters" in caplog.text
    assert TEXTS[0] not in caplog.text


def test_unavailable_without_key_or_acknowledgement(tmp_path, monkeypatch):
    with pytest.raises(mt.TranslatorUnavailable, match=r"leaves this machine.*acknowledge_privacy=True"):
        make("http://127.0.0.1:9", tmp_path, acknowledge_privacy=False)
    monkeypatch.delenv("DEEPL_AUTH_KEY")
    with pytest.raises(mt.TranslatorUnavailable, match="export DEEPL_AUTH_KEY"):
        make("http://127.0.0.1:9", tmp_path)


def test_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="formality='polite'"):
        make("http://127.0.0.1:9", tmp_path, formality="polite")
    with pytest.raises(ValueError, match="unencrypted"):
        make("http://example.org", tmp_path)
    with pytest.raises(ValueError, match="cache_path"):
        make("http://127.0.0.1:9", tmp_path, cache_path=None)


def test_server_from_the_environment(tmp_path, monkeypatch):
    with serve() as (url, _):
        monkeypatch.setenv("DEEPL_SERVER_URL", url)
        assert inline("", tmp_path).translate(TEXTS[:1]) == [german(TEXTS[0])]


def start(url, cache, texts):
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", WORKER, url, str(cache), str(texts)]
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def go(process):
    process.stdin.write(b"\n")
    process.stdin.flush()


def test_two_processes_pay_once(tmp_path):
    (tmp_path / "texts").write_text("\n".join(TEXTS), encoding="utf-8")
    with serve() as (url, account):
        workers = [start(url, tmp_path / "mt.sqlite", tmp_path / "texts") for _ in range(2)]
        for worker in workers:
            go(worker)
        assert [worker.wait() for worker in workers] == [0, 0]
        assert account.accepted == dict.fromkeys(TEXTS, 1)


def when_more_than_one_is_billed(account, kill):
    def wait():
        while len(account.billed) < 2:
            time.sleep(0.01)
        kill()

    threading.Thread(target=wait).start()


def test_a_killed_courier_leaves_its_request_in_doubt(tmp_path):
    with serve() as (url, account):
        translator = make(url, tmp_path)
        translator.translate(TEXTS[:1])
        account.work_s = 1.0
        when_more_than_one_is_billed(account, translator.courier._process.kill)
        with pytest.raises(mt.RequestError, match="process that sends the texts died"):
            translator.translate(TEXTS[:50])
        assert translator.cache.in_doubt() == sum(map(len, TEXTS[1:50]))
        account.work_s = 0.0
        assert translator.translate(TEXTS[:50]) == list(map(german, TEXTS[:50]))
        assert account.characters == translator.cache.billed_characters() + translator.cache.in_doubt()


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also in a shell's background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_loses_no_answer_and_mixes_none_up(tmp_path, ctrl_c):
    with serve() as (url, account):
        translator = make(url, tmp_path)
        translator.translate(TEXTS[:1])
        account.work_s = 1.0
        when_more_than_one_is_billed(account, ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            translator.translate(TEXTS[:50])
        account.work_s = 0.0
        assert translator.translate(TEXTS[50:90]) == list(map(german, TEXTS[50:90]))
        assert translator.translate(TEXTS[:50]) == list(map(german, TEXTS[:50]))
        assert set(account.billed.values()) == {1}


def test_threads_share_a_translator(tmp_path):
    with serve() as (url, account):
        translator = make(url, tmp_path)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda at: translator.translate(TEXTS[at : at + 10]), range(0, 120, 10)))
        assert [text for texts in found for text in texts] == list(map(german, TEXTS))
        assert account.billed == dict.fromkeys(TEXTS, 1)


def test_killed_runs_pay_for_every_text_once(tmp_path):
    # Seen to fail, with up to 50 texts paid twice a kill, when the run itself sends the requests.
    texts = [f"{text} ({k})" for k in range(5) for text in TEXTS]  # 12 requests
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")

    def fault(n):
        return ("", "500", "", "503", "429")[n % 5]

    with serve(fault) as (url, account):
        account.work_s = 0.2
        for k in range(3):
            worker = start(url, tmp_path / "mt.sqlite", tmp_path / "texts")
            go(worker)
            while len(account.billed) < 150 * (k + 1):
                time.sleep(0.002)
            os.kill(worker.pid, signal.SIGKILL)  # the server is at work on an answer
            worker.wait()
        translator = make(url, tmp_path)
        assert translator.translate(texts) == list(map(german, texts))
        assert account.billed == account.accepted == dict.fromkeys(texts, 1)
        assert translator.cache.billed_characters() == account.characters == sum(map(len, texts))
        assert translator.cache.in_doubt() == 0
