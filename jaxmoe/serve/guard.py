"""Lets requests in: by their Host, their Origin and their key; says nothing of an error that could quote what was said.

On loopback a browser is the danger: any web page can send requests there, and by DNS rebinding read the answers of a
host name that is its own. So Host must be this machine's, and a request of another page, which has its Origin, is
refused. Beyond loopback the key says who may ask.
"""

from collections.abc import Callable, Collection
import hmac
import ipaddress
import logging
from pathlib import Path
import traceback
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxmoe.serve.errors import ApiError, failure

KEY_VARIABLE = "JAXMOE_API_KEY"
SHORTEST_KEY = 16  # characters: shorter ones are guessed
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
log = logging.getLogger("jaxmoe.serve")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def place(error: BaseException) -> str:
    """An error's kind and where it was raised, without its message: that may quote a transcript."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}"


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, key: str) -> None:
        """hosts: names that Host may have, without a port; None for any. key: of /v1; "" for none."""
        self.app, self.hosts, self.key = app, hosts, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)  # the beginning and the end of the server
            return
        started = False

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
            await self.app(scope, receive, send_safely)
        except ApiError as refusal:
            await refusal.response()(scope, receive, send_safely)
        except Exception as error:
            log.error("a request failed: %s", place(error))
            if not started:
                await failure().response()(scope, receive, send_safely)

    def _check(self, path: str, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _parsed(lambda: urlsplit(f"//{host}").hostname)
        if self.hosts is not None and name not in self.hosts:
            expected = ", ".join(sorted(self.hosts))
            raise ApiError(421, f"Host is {host!r}, expected one of {expected}; --public_host=NAME adds one.")
        if origin is not None and _parsed(lambda: urlsplit(origin).netloc) != host.lower():
            raise ApiError(403, f"the request is of a page of {origin!r}, expected none or one of this server.")
        if self.key and path.startswith("/v1"):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
                found = "another" if given else "none"
                message = f"the key is {found}, expected the header 'Authorization: Bearer KEY' with this server's."
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _parsed(read: Callable[[], str | None]) -> str:
    try:
        return (read() or "").lower()
    except ValueError:
        return ""
