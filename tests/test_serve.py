"""The server: OpenAI's API with real sound, what it refuses, who may ask, and how it ends."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import http.client
import io
import itertools
import json
import logging
from pathlib import Path
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from typing import Any

import av
import pytest
import soundfile

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn

from jaxmoe import segments
from jaxmoe.serve import __main__ as command
from jaxmoe.serve import engine as engines
from jaxmoe.serve.app import Service, make_app
from jaxmoe.serve.guard import LOOPBACK, Guard
from jaxmoe.system import load_system
from tests.model.checkpoints import real_weights

ROOT = Path(__file__).parents[1]
JFK = ROOT / "tests" / "data" / "jfk.flac"
WORDS = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
KEY = "a key of more than 16 letters"
UPLOAD = 2_000_000  # bytes
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMES = "timestamp_granularities[]"


class Upper:  # stands at the seam of jaxmoe.mt.make; the engines have their own tests
    name, broken = "upper case", False

    def translate(self, texts: Sequence[str]) -> list[str]:
        if self.broken:
            raise RuntimeError(f"it chokes on {texts}")
        return [t.upper() for t in texts]


@dataclasses.dataclass
class Served:
    """A running server and a client of it."""

    service: Service
    port: int

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
        """Status, body (parsed where it is JSON) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = response.headers["content-type"].startswith("application/json")
        return response.status, json.loads(content) if is_json else content.decode(), response.headers

    def transcribe(self, sound: bytes, name: str = "jfk.flac", fields: Any = (), **more: str) -> Any:
        body, kind = form([*fields, *more.items()], sound, name)
        return self.ask("POST", "/v1/audio/transcriptions", body, Content_Type=kind)[:2]


def form(fields: Sequence[tuple[str, str]], sound: bytes | None, name: str = "a.flac") -> tuple[bytes, str]:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields]
    if sound is not None:
        head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        parts.append(head + sound + b"\r\n")
    return b"".join([*parts, b"--b--\r\n"]), "multipart/form-data; boundary=b"


def start(patch: pytest.MonkeyPatch, *arguments: str, key: str = "", line: int = 4) -> Iterator[Served]:
    patch.setattr("jaxmoe.compilation.enable_cache", lambda: None)  # conftest has one of its own
    patch.setattr("jaxmoe.mt.make", lambda *args, **kwargs: Upper())
    args = command.parser().parse_args(["--beam_size=1", "--best_of=1", *arguments])
    service = Service(engines.Engine(args), line=line, max_bytes=UPLOAD, needs_key=bool(key))
    app = Guard(make_app(service), LOOPBACK, key)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Served(service, listener.getsockname()[1])
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive() and service.worker.stop(60)


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        system = load_system(real_weights("tiny.en"))
        patch.setattr("jaxmoe.system.load_system", lambda *args, **kwargs: system)  # loaded once for all tests
        warm_up = engines.Engine.warm_up
        patch.setattr(engines.Engine, "warm_up", lambda self: itertools.islice(warm_up(self), 1))  # search alone
        yield patch


@pytest.fixture(scope="module")
def served(patch) -> Iterator[Served]:
    yield from start(patch, "--translate_to=de")


@pytest.fixture(scope="module")
def sound() -> bytes:
    return JFK.read_bytes()


def words(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower()).strip()


def encoded(container: str, codec: str, rate: int) -> bytes:
    """The recording as a browser's recorder would give it."""
    samples, _ = soundfile.read(JFK, dtype="float32")
    out = io.BytesIO()
    flags = {"movflags": "frag_keyframe+empty_moov"} if container == "mp4" else {}
    with av.open(out, "w", format=container, options=flags) as made:
        stream = made.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 16000
        kind = stream.codec_context.format
        resampler = av.AudioResampler(format=kind, rate=rate, frame_size=stream.frame_size or 960)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            made.mux(stream.encode(part))
        made.mux(stream.encode(None))
    return out.getvalue()


def test_answers_are_openais(served, sound):
    status, plain = served.transcribe(sound, model="whisper-1")
    assert status == 200 and words(plain["text"]) == WORDS and set(plain) == {"text", "usage"}
    assert served.transcribe(sound, response_format="text") == (200, plain["text"] + "\n")
    fields = {"model": "tiny.en", "language": "en", "temperature": "0", TIMES: "segment"}
    status, full = served.transcribe(sound, fields=fields.items(), response_format="verbose_json")
    assert status == 200 and full["text"] == plain["text"]
    assert (full["task"], full["language"], full["duration"], full["flags"]) == ("transcribe", "english", 11.0, [])
    names = "id seek start end text tokens temperature avg_logprob compression_ratio no_speech_prob flags".split()
    assert set(names) <= set(full["segments"][0])
    _, srt = served.transcribe(sound, response_format="srt")
    _, vtt = served.transcribe(sound, response_format="vtt")
    assert srt.startswith("1\n00:00:00,000 --> ") and vtt.startswith("WEBVTT\n\n00:00.000 --> ")


def test_german_is_beside_the_text(served, sound, caplog, monkeypatch):
    _, plain = served.transcribe(sound, translate_to="de")
    german = plain["translation"]
    assert (german["language"], german["translator"]) == ("de", "upper case") and words(german["text"].lower()) == WORDS
    _, full = served.transcribe(sound, translate_to="de", response_format="verbose_json")
    assert full["translation"]["sentences"][0]["source"].startswith("And so")
    monkeypatch.setattr(Upper, "broken", True)
    with caplog.at_level(logging.INFO):
        status, kept = served.transcribe(sound, translate_to="de")
    assert status == 200 and kept["text"] == plain["text"] and kept["translation"]["text"] is None
    assert "it chokes on" in kept["translation"]["error"]
    assert "the translator failed: RuntimeError at test_serve.py" in caplog.text and "fellow" not in caplog.text.lower()


@pytest.mark.parametrize("container, codec, rate", [("webm", "libopus", 48000), ("mp4", "aac", 44100)])
def test_what_browsers_record_is_heard(served, container, codec, rate):
    status, found = served.transcribe(encoded(container, codec, rate), f"recording.{container}")
    assert status == 200 and "fellow americans" in words(found["text"])


@pytest.mark.parametrize(
    "fields, param, said",
    [
        ({"model": "large-v9"}, "model", "'large-v9', expected tiny.en or whisper-1"),
        ({"language": "fr"}, "language", "'fr', expected en"),
        ({"response_format": "xml"}, "response_format", "'xml', expected json or text or srt or vtt or verbose_json"),
        ({"temperature": "1.5"}, "temperature", "'1.5', expected a number from 0 to 1"),
        ({"temperature": "nan"}, "temperature", "'nan', expected a number from 0 to 1"),
        ({"prompt": "Kennedy"}, "prompt", "not supported"),
        ({"stream": "true"}, "stream", "'true', expected false"),
        ({"hotwords": "x"}, "hotwords", "expected only file, model"),
        ({TIMES: "word", "response_format": "verbose_json"}, TIMES, "'word', expected segment"),
        ({TIMES: "segment"}, TIMES, "found json"),
        ({"translate_to": "fr"}, "translate_to", "'fr', expected de"),
        ({"translate_to": "de", "response_format": "srt"}, "translate_to", "found srt"),
        ({"speaker": "../joint"}, "speaker", "'../joint', expected none"),
    ],
)
def test_what_is_not_supported_is_an_error(served, fields, param, said):
    status, body = served.transcribe(b"never read", fields=list(fields.items()))
    error = body["error"]
    assert status == 400 and said in error["message"] and error["param"] == param
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_bad_recordings_and_forms_are_errors_and_the_next_is_heard(served, sound, monkeypatch):
    status, body = served.transcribe(b"no sound at all", "voice.wav")
    assert status == 400 and "voice.wav: found no sound" in body["error"]["message"]
    assert served.transcribe(sound, fields=[("language", "en"), ("language", "en")])[0] == 400
    for fields in (None, [("model", "whisper-1")]):
        content, kind = form(fields or [], None)
        status, body, _ = served.ask("POST", "/v1/audio/transcriptions", content, Content_Type=kind)
        assert status == 400 and body["error"]["param"] == "file"
    multipart = "multipart/form-data"
    for content, kind in ((b"{}", "application/json"), (b"--c--", multipart), (b"x" * 99, f"{multipart}; boundary=b")):
        status, body, _ = served.ask("POST", "/v1/audio/transcriptions", content, Content_Type=kind)
        assert status == 400 and "expected" in body["error"]["message"].lower()
    monkeypatch.setattr(served.service.engine.args, "max_minutes", 0.1)
    status, body = served.transcribe(sound)
    assert status == 400 and "jfk.flac: longer than 6 s" in body["error"]["message"]
    monkeypatch.undo()
    assert served.transcribe(sound)[0] == 200


def test_too_large_is_413_whether_announced_or_not(served):
    status, body = served.transcribe(bytes(UPLOAD + 100_000))
    assert status == 413 and "at most 2 MB" in body["error"]["message"]
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    whole, kind = form([], bytes(UPLOAD + 100_000))
    chunks = (whole[i : i + 65536] for i in range(0, len(whole), 65536))
    connection.request("POST", "/v1/audio/transcriptions", chunks, {"Content-Type": kind}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_recordings_do_not_touch_the_disk(served, sound, monkeypatch):
    rolled = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    big = io.BytesIO()
    samples, rate = soundfile.read(JFK)
    soundfile.write(big, samples, rate, format="WAV", subtype="DOUBLE")  # 1.4 MB: more than starlette keeps in memory
    assert served.transcribe(big.getvalue(), "jfk.wav")[0] == 200 and rolled == []


def test_requests_wait_in_line_and_are_refused_beyond_it(served, sound, monkeypatch):
    with ThreadPoolExecutor(3) as pool:
        assert [s for s, _ in pool.map(lambda _: served.transcribe(sound), range(3))] == [200] * 3
    release, running, seen = threading.Event(), threading.Event(), []

    def slow(task, job):
        seen.append(task.name)
        running.set()
        release.wait(30)
        job.check()
        return engines.Result(segments.Transcript("said", [], "en", 1.0, []), None)

    monkeypatch.setattr(served.service.engine, "run", slow)
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(served.transcribe, b"x", f"{i}.wav") for i in range(4)]
        assert running.wait(10)
        gone = socket.create_connection(("127.0.0.1", served.port))  # waits, and leaves
        body, kind = form([], b"x", "gone.wav")
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: served.service.worker.taken == 5)
        body, kind = form([], b"x")
        status, refused, headers = served.ask("POST", "/v1/audio/transcriptions", body, Content_Type=kind)
        assert status == 503 and int(headers["Retry-After"]) >= 1 and refused["error"]["type"] == "server_error"
        gone.close()
        until(lambda: served.service.worker.taken == 4)
        release.set()
        assert [f.result()[0] for f in asked] == [200] * 4
    assert sorted(seen) == ["0.wav", "1.wav", "2.wav", "3.wav"], "who has left is not computed for"


def until(holds) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_unforeseen_error_says_nothing_of_what_was_said(served, sound, monkeypatch, caplog):
    def broken(task, job):
        raise KeyError("a secret of the patient")

    monkeypatch.setattr(served.service.engine, "run", broken)
    status, body = served.transcribe(sound)
    assert status == 500 and body["error"]["type"] == "server_error" and "secret" not in json.dumps(body)
    until(lambda: "KeyError at test_serve.py" in caplog.text)  # written once the answer is sent
    assert "secret" not in caplog.text


def test_log_lines_hold_times_and_no_words(served, sound, caplog):
    with caplog.at_level(logging.INFO):
        served.transcribe(sound, "mrs-smith.flac")
        served.transcribe(b"broken", "mr-jones.flac")
    assert re.search(r"200: 11\.0 s of sound in \d+\.\d\d s, waited", caplog.text)
    assert re.search(r"400 after \d+\.\d\d s: file", caplog.text)
    assert not re.search("smith|jones|americans", caplog.text.lower())


def test_models_health_and_what_there_is_not(served):
    until(lambda: served.ask("GET", "/health")[0] == 200)
    assert served.ask("GET", "/health")[1]["status"] == "ok"
    models = served.ask("GET", "/v1/models")[1]
    assert [m["id"] for m in models["data"]] == ["tiny.en", "whisper-1"] and models["object"] == "list"
    assert served.ask("GET", "/v1/models/tiny.en")[1]["translate_to"] == ["de"]
    assert served.ask("GET", "/v1/models/gpt")[1]["error"]["code"] == "model_not_found"
    assert served.ask("GET", "/v1/files")[0] == 404
    status, body, _ = served.ask("GET", "/v1/audio/transcriptions")
    assert status == 405 and body["error"]["message"].startswith("Method Not Allowed: found GET")


def test_other_sites_are_kept_out(served):
    get = lambda **headers: served.ask("GET", "/v1/models", **headers)[0]
    assert get(Host="localhost:1") == get(Host="[::1]:8000") == get(Host="127.0.0.1") == 200
    assert get(Host="evil.example") == get(Host="localhost.evil.example") == 421
    here = f"127.0.0.1:{served.port}"
    assert get(Origin=f"http://{here}", Host=here) == 200
    assert get(Origin="https://evil.example") == get(Origin="null") == 403
    _, _, headers = served.ask("GET", "/v1/models")
    assert not any(name.lower().startswith("access-control") for name in headers)


def test_the_page_asks_no_other_server(served):
    status, page, headers = served.ask("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|url\(|@import", page)
    assert re.findall(r"<[a-z]+[^>]* (?:src|href)=[\"']?([^\"'>]*)", page) == ["data:,"]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert "Recordings stay on this machine" in page and "not fit for" in page
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', page).group(1))
    assert facts == {"max_bytes": UPLOAD, "model": "tiny.en", "needs_key": False, "speakers": [], "translate_to": "de"}


def test_the_page_says_where_transcripts_go(patch):
    for served in start(patch, "--translate_to=de", "--mt=deepl", "--acknowledge_privacy"):
        assert "Transcripts go to DeepL" in served.ask("GET", "/")[1]
    for served in start(patch):
        page = served.ask("GET", "/")[1]
        assert "German" not in re.sub(r"<(script|style).*?</\1>", "", page.partition("<template")[0], flags=re.DOTALL)
        status, body = served.transcribe(b"never read", translate_to="de")
        assert status == 400 and "started without --translate_to" in body["error"]["message"]


def test_a_key_is_asked_for(patch, sound):
    for served in start(patch, key=KEY):
        body, kind = form([], sound)
        ask = lambda **headers: served.ask("POST", "/v1/audio/transcriptions", body, Content_Type=kind, **headers)  # noqa: B023
        for wrong in ({}, {"Authorization": "Bearer another key"}, {"Authorization": f"Basic {KEY}"}):
            status, refused, headers = ask(**wrong)
            assert status == 401 and refused["error"]["code"] == "invalid_api_key" and KEY not in str(refused)
            assert headers["WWW-Authenticate"] == "Bearer"
        assert ask(Authorization=f"Bearer {KEY}")[0] == 200
        assert served.ask("GET", "/v1/models")[0] == 401
        assert 'id="key"' in served.ask("GET", "/")[1] and served.ask("GET", "/health")[0] in (200, 503)


def test_a_person_has_a_recogniser_of_their_own(served, patch, tmp_path, sound, monkeypatch):
    (tmp_path / "personalize" / "anna" / "params").mkdir(parents=True)
    loaded = []
    system = served.service.engine.system
    monkeypatch.setattr("jaxmoe.system.load_system", lambda model, run, who, **_: loaded.append(who) or system)
    for personal in start(patch, f"--checkpoint={tmp_path}"):
        assert personal.ask("GET", "/v1/models")[1]["data"][0]["speakers"] == ["anna"]
        answers = [personal.transcribe(sound, speaker=who)[0] for who in ("anna", "", "anna", "bert")]
        assert answers == [200, 200, 200, 400]
    assert loaded == ["", "anna"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_runs_in_a_browser_under_its_policy(patch, tmp_path, monkeypatch):
    (tmp_path / "personalize" / "anna" / "params").mkdir(parents=True)
    monkeypatch.setattr(engines.Engine, "warm_up", lambda self: iter([("out of memory", lambda: 1 / 0)]))
    for served in start(patch, f"--checkpoint={tmp_path}"):
        until(lambda: served.service.state["status"] == "failed")  # noqa: B023
        chromium = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        address = f"http://127.0.0.1:{served.port}/"
        done = subprocess.run([*chromium, "--virtual-time-budget=2000", "--dump-dom", address], capture_output=True,
                              text=True, check=True)  # fmt: skip
    assert '<option value="anna">anna</option>' in done.stdout, "its script names the speakers"
    assert re.search(r'id="status"[^>]* class="bad">The server has a fault', done.stdout), "and asks how the server is"
