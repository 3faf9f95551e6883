"""A DeepL for tests, on the loopback: POST /v2/translate and GET /v2/usage, with faults on demand.

It keeps the account that a test needs: every text that was answered in full, and every text that was billed. An answer
that is lost on its way is billed all the same, which is the worst that a real server may do.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import socket
import struct
import threading
import time
from typing import Any

from tests.mt.deepl_assets import Assets

KEY = "0f3a77c2-secret-key:fx"
MAX_TEXTS, MAX_BYTES = 50, 128 * 1024

# A fault gets the number of the translation request (from 0) and names what happens to it.
Fault = Callable[[int], str]
STATUSES = {"400": 400, "403": 403, "413": 413, "429": 429, "456": 456, "500": 500, "503": 503, "504": 504}
LOST = {"hang", "lost", "truncated", "malformed", "short", "unbilled", "empty", "504"}  # done and billed, in vain


def german(text: str) -> str:
    """What this server translates a text to."""
    return f"Übersetzt: {text[::-1]}"


class Account:
    """What happened so far."""

    def __init__(self, fault: Fault, limit: int) -> None:
        self.fault, self.limit = fault, limit
        self.requests: list[dict[str, Any]] = []  # every translation request's body, refused ones too
        self.faults: list[str] = []
        self.accepted: Counter[str] = Counter()  # texts answered in full
        self.billed: Counter[str] = Counter()
        self.characters = 0  # billed
        self.hang_s = 5.0
        self.work_s = 0.0  # between accepting a request and answering it
        self.assets = Assets()
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    account: Account

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, body: Any, claimed_length: int | None = None) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(claimed_length or len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _authorised(self) -> bool:
        if self.headers.get("Authorization") == f"DeepL-Auth-Key {KEY}":
            return True
        self._send(
            403, {"message": f"Invalid header {self.headers.get('Authorization')}"}
        )  # an unkind server echoes it
        return False

    def do_GET(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.startswith("/storage/"):  # as in the cloud: whoever has the address may, and no key must come
            assert "Authorization" not in self.headers
            self._send(*self.account.assets.upload(self.path, raw))
        elif not self._authorised():
            return
        elif (self.command, self.path) == ("GET", "/v2/usage"):
            account = self.account
            self._send(200, {"character_count": account.characters, "character_limit": account.limit})
        elif (self.command, self.path) == ("POST", "/v2/translate"):
            self._translate(raw)
        else:
            host = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
            with self.account.lock:
                answer = self.account.assets.answer(host, self.command, self.path, json.loads(raw or b"{}"))
            self._send(*answer)

    def _translate(self, raw: bytes) -> None:
        account, body = self.account, json.loads(raw)
        with account.lock:
            fault = account.fault(len(account.requests))
            account.requests.append(body)
            account.faults.append(fault)
            if not fault and (len(body["text"]) > MAX_TEXTS or len(raw) > MAX_BYTES):
                fault = "413"
            if not fault and not account.assets.known(body):
                fault = "400"
            if not fault and account.characters + sum(map(len, body["text"])) > account.limit:
                fault = "456"
            if not fault:
                account.accepted.update(body["text"])
            if not fault or fault in LOST:
                account.billed.update(body["text"])
                account.characters += sum(map(len, body["text"]))
        self._answer(fault, body)

    def _answer(self, fault: str, body: dict[str, Any]) -> None:
        time.sleep(0.0 if fault else self.account.work_s)
        translations = [
            {
                "detected_source_language": "EN",
                "text": self.account.assets.translate(text, body) or german(text),
                "billed_characters": len(text),
                "model_type_used": "quality_optimized",
            }
            for text in body["text"]
        ]
        if fault in STATUSES:
            self._send(STATUSES[fault], {"message": f"fault {fault} for DeepL-Auth-Key {KEY}"})
        elif fault == "hang":
            time.sleep(self.account.hang_s)
            self.close_connection = True
        elif fault in ("reset", "lost"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for stream in (self.rfile, self.wfile, self.connection):  # the socket lives as long as one of them
                stream.close()
            self.close_connection = True
        elif fault == "truncated":
            raw = json.dumps({"translations": translations}).encode()
            self._send(200, raw[: len(raw) // 2], claimed_length=len(raw))
            self.close_connection = True
        elif fault == "malformed":
            self._send(200, b'{"translations": [{"text": "Hal')
        elif fault == "html":
            self._send(200, b"<html>please log in to the hotel's network</html>")
        elif fault == "short":
            self._send(200, {"translations": translations[:-1]})
        elif fault == "unbilled":
            self._send(200, {"translations": [{"text": t["text"]} for t in translations]})
        elif fault == "empty":
            self._send(200, {"translations": [{**t, "text": ""} for t in translations]})
        else:
            assert fault == "", f"no such fault: {fault}"
            self._send(200, {"translations": translations})


@contextmanager
def serve(fault: Fault = lambda n: "", limit: int = 500_000) -> Iterator[tuple[str, Account]]:
    """Run the server; yields its address and its account."""
    account = Account(fault, limit)
    handler = type("Handler", (_Handler,), {"account": account})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]  clients are killed on purpose
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", account
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
