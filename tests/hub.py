"""A small server that speaks the part of the Hugging Face hub's HTTP interface that downloads use."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import threading
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"


@contextlib.contextmanager
def serve(repo: str, files: Mapping[str, bytes], damaged: Mapping[str, bytes] | None = None) -> Iterator[str]:
    """Serves files as `repo`; yields the endpoint. `damaged` replaces what is sent, but not the sums announced."""
    damaged = damaged or {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | dict(headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            kind = {"Content-Type": "application/json"}
            if path.startswith(f"api/models/{repo}/tree/"):
                listing = [
                    {"type": "file", "path": name, "size": len(data), "oid": git_sum(data)}
                    for name, data in files.items()
                ]
                self.answer(json.dumps(listing).encode(), kind)
            elif path == f"api/models/{repo}" or path.startswith(f"api/models/{repo}/revision/"):
                names = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": names}).encode(), kind)
            elif path.startswith(f"{repo}/resolve/") and (name := path.split("/", 4)[-1]) in files:
                large = name.endswith((".bin", ".safetensors", ".gguf"))
                etag = hashlib.sha256(files[name]).hexdigest() if large else git_sum(files[name])
                revision = path.removeprefix(f"{repo}/resolve/").split("/")[0]
                commit = revision if len(revision) == 40 else COMMIT
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
                if large:
                    headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(files[name]))}
                self.answer(damaged.get(name, files[name]), headers)
            else:
                self.answer(b"{}", {"X-Error-Code": "EntryNotFound"} | kind, 404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def git_sum(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
