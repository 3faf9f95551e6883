"""An account at DeepL, reached through the official client: its key, its server, what its answers mean.

Source: https://developers.deepl.com/docs (best practices, error handling) and the client deepl 1.32.
"""

from collections.abc import Callable
import ipaddress
import logging
import os
import re
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from jaxmoe.mt import RequestError, TranslatorUnavailable
from jaxmoe.mt.retry import repeat

if TYPE_CHECKING:
    import deepl

KEY_VARIABLE, SERVER_VARIABLE = "DEEPL_AUTH_KEY", "DEEPL_SERVER_URL"
PAUSE_S = 1.0  # before a request is sent again; doubled each time
TIMEOUT_S = 60.0  # the client gives up after 10 s, and the answer to a long request would be paid for in vain
PRIVACY = (
    "PRIVACY: DeepL is a service on the network. Every text given to it leaves this machine, and a transcript of a "
    "patient's speech is personal, often medical, data: send it only with the patient's consent or another legal "
    "basis, and on a plan with a data processing agreement."
)
FREE_PLAN = (
    f" The key in {KEY_VARIABLE} ends in ':fx': it is of the FREE plan, whose terms forbid personal data and let DeepL "
    "keep the texts."
)
# Taken out of messages: the server's own words, which may quote the request, and addresses, which may be signed.
_QUOTED = re.compile(r", content: .*|\burl: \S+", re.DOTALL)
_MAX_DETAIL = 300

T = TypeVar("T")


class UnreadableResponseError(Exception):
    """DeepL answered, but not with what was asked for."""


class Account:
    """The client of one key. A request is sent once by `call`, and until it succeeds by `ask`."""

    def __init__(
        self, *, server_url: str, acknowledge_privacy: bool, pause_s: float = 0.0, timeout_s: float = 0.0
    ) -> None:
        """server_url: another server than DeepL's own, else $DEEPL_SERVER_URL, else the one of the key's plan.

        Raises:
            TranslatorUnavailable: no key, or the privacy notice is not acknowledged.
            ValueError: a malformed key, or a server that would get the key unencrypted.
        """
        import deepl

        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key:
            raise TranslatorUnavailable(
                f"DeepL needs a key and the environment variable {KEY_VARIABLE} is not set; export {KEY_VARIABLE}=..., "
                "or set config.mt.engine='local'."
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"{KEY_VARIABLE} holds characters that no DeepL key has; copy the key again.")
        notice = PRIVACY + (FREE_PLAN if deepl.util.auth_key_is_free_account(self._key) else "")
        if not acknowledge_privacy:
            raise TranslatorUnavailable(
                f"{notice} Nothing has been sent. To go on, set config.mt.acknowledge_privacy=True (transcribe: "
                "--acknowledge_privacy)."
            )
        self.server_url = (server_url or os.environ.get(SERVER_VARIABLE, "")).strip()
        if self.server_url:
            self.server_url = self.server_url.rstrip("/") + "/"  # the client drops the last part of a path without it
            _check_server(self.server_url)
        self.pause_s, self.timeout_s = pause_s or PAUSE_S, timeout_s or TIMEOUT_S
        # Repeating is ours: the client would send again, in silence, what may be billed already.
        deepl.http_client.max_network_retries = 0
        deepl.http_client.min_connection_timeout = self.timeout_s
        # What they have to say beside hold texts, answers and addresses that are secrets.
        for name in ("deepl", "urllib3"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.client = deepl.DeepLClient(self._key, server_url=self.server_url or None, send_platform_info=False)
        host = urlsplit(self.client.server_url).hostname
        self.notice = f"{notice} Texts go to {host}, as config.mt.acknowledge_privacy allows."

    def call(self, request: Callable[[], T]) -> T:
        """What `request` returns, sent once.

        Raises:
            RequestError: it failed; the message holds neither the key nor a text.
        """
        import deepl

        try:
            return request()
        except UnreadableResponseError as error:
            failure = RequestError(f"DeepL's answer cannot be read: {error}.", passing=True, may_be_billed=True)
        except (TypeError, AttributeError, KeyError) as error:
            if not _is_of_client(error):
                raise
            # What the client does with fields that are missing or of another type.
            failure = RequestError(
                "DeepL's answer cannot be read: fields are missing.", passing=True, may_be_billed=True
            )
        except deepl.DeepLException as error:
            failure = self._explain(error)
        # Raised here, not in the handler: the client's exception, which may quote a header, is no part of the chain.
        raise failure

    def ask(self, request: Callable[[], T]) -> T:
        """What `request`, which costs nothing, returns, sent again where it fails in passing. Raises: RequestError."""
        return repeat(lambda: self.call(request), self.pause_s)

    def _explain(self, error: "deepl.DeepLException") -> RequestError:
        """What happened, what to do about it, and whether the request may have been billed."""
        import deepl

        detail = _QUOTED.sub("", str(error))
        for secret in (self._key, self._key.removesuffix(":fx")):
            detail = detail.replace(secret, f"<{KEY_VARIABLE}>")
        detail, status = detail[:_MAX_DETAIL].rstrip("."), error.http_status_code
        if isinstance(error, deepl.AuthorizationException):
            return RequestError(
                f"DeepL refuses the key in {KEY_VARIABLE} (403): {detail}. Check it, and that its plan fits the server "
                "and what is asked of it: keys of the free plan end in ':fx', and style rules need a paid one."
            )
        if isinstance(error, deepl.QuotaExceededException):
            return RequestError(
                f"The account's characters of this billing period are used up (456): {detail}. Wait for the next "
                "period or raise the limit in the account; config.mt.max_chars is not what stopped it."
            )
        if isinstance(error, deepl.TooManyRequestsException):
            return RequestError(f"DeepL has too many requests (429): {detail}. Wait some minutes.", passing=True)
        if isinstance(error, deepl.ConnectionException):
            return RequestError(
                f"DeepL cannot be reached: {detail}. Check the network and the server's address.",
                passing=True,
                may_be_billed=not _never_sent(error),
            )
        if status is not None and status >= 500:
            gateway = status in (502, 504)  # the server behind it may have done the work
            return RequestError(
                f"DeepL's server fails ({status}): {detail}. Wait some minutes.", passing=True, may_be_billed=gateway
            )
        return RequestError(f"DeepL refuses the request ({status or 'no status'}): {detail}.")


def _is_of_client(error: Exception) -> bool:
    """Whether the client, and not our own code, raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] == "deepl"


def _never_sent(error: "deepl.ConnectionException") -> bool:
    """Whether no connection came about."""
    import requests
    from urllib3.exceptions import MaxRetryError, NewConnectionError

    cause = error.__cause__
    if isinstance(cause, (requests.exceptions.ConnectTimeout, requests.exceptions.SSLError)):
        return True
    inner = cause.args[0] if cause is not None and cause.args else None
    return isinstance(inner, MaxRetryError) and isinstance(inner.reason, NewConnectionError)


def _check_server(url: str) -> None:
    """Refuse to send the key where others can read it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError(
            f"server_url={url!r} would send the key and the texts unencrypted; expected https://..., or http:// on "
            "this machine."
        )
