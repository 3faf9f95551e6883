"""Translation by DeepL through its official client: a network service that bills by the character.

Source: https://developers.deepl.com/docs (v2/translate, v2/usage) and the client deepl 1.32.
"""

from collections.abc import Callable, Sequence
import ipaddress
import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jaxmoe.mt import Translation, TranslatorUnavailable

if TYPE_CHECKING:
    import deepl

KEY_VARIABLE, SERVER_VARIABLE = "DEEPL_AUTH_KEY", "DEEPL_SERVER_URL"
FORMALITIES = ("default", "less", "more", "prefer_less", "prefer_more")
MODEL_TYPE = "prefer_quality_optimized"  # the next-generation model where the language pair has it
MAX_TEXTS = 50  # a request; DeepL's limit
MAX_BYTES = 126 * 1024  # of texts in a request's JSON; DeepL's limit is 128 KiB, options included
_ATTEMPTS = 3  # at a response that came but cannot be read; the client itself repeats 429, 5xx and lost connections
_PAUSE_S = 1.0
PRIVACY = (
    "DeepL is a service on the network: every text given to it leaves this machine, and a transcript of a patient's "
    "speech is personal, often medical, data. The terms of its free tier (keys that end in ':fx') forbid personal "
    "data; a paid plan needs a data processing agreement and your own legal basis."
)

log = logging.getLogger(__name__)


class DeepLError(RuntimeError):
    """A request failed for good; what was translated before it is in the cache."""


class UnreadableResponseError(Exception):
    """DeepL answered, but not with one translation for each text."""


class DeepL:
    """Engine of DeepL, English into German."""

    billed = True

    def __init__(self, *, formality: str = "default", server_url: str = "", acknowledge_privacy: bool = False) -> None:
        """server_url: another server than DeepL's own, else $DEEPL_SERVER_URL, else the one of the key's plan.

        Raises:
            TranslatorUnavailable: no key, or the privacy notice is not acknowledged.
            ValueError: an unknown formality, a malformed key, or a server that would get the key unencrypted.
        """
        import deepl

        if formality not in FORMALITIES:
            raise ValueError(f"config.mt.formality={formality!r}; expected one of {', '.join(FORMALITIES)}.")
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key:
            raise TranslatorUnavailable(
                f"DeepL needs a key and the environment variable {KEY_VARIABLE} is not set; export {KEY_VARIABLE}=..., "
                "or set config.mt.engine='local'."
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"{KEY_VARIABLE} holds characters that no DeepL key has; copy the key again.")
        if not acknowledge_privacy:
            raise TranslatorUnavailable(f"{PRIVACY} To go on, set config.mt.acknowledge_privacy=True.")
        url = (server_url or os.environ.get(SERVER_VARIABLE, "")).strip()
        if url:
            url = url.rstrip("/") + "/"  # the client drops the last part of a path without it
            _check_server(url)
        self._client = deepl.DeepLClient(self._key, server_url=url or None, send_platform_info=False)
        self._formality = formality
        self.name = "DeepL"
        self.signature = f"deepl:EN-DE:model_type={MODEL_TYPE}:formality={formality}" + (url and f":server={url}")
        log.warning(PRIVACY)
        # The client's debug messages hold every text, and whatever the server answers.
        logging.getLogger("deepl").setLevel(logging.INFO)

    def plan(self, texts: Sequence[str]) -> list[list[str]]:
        """Requests within DeepL's limits of texts and bytes, in order; logs what the account has left.

        Raises:
            ValueError: a single text over the limit; nothing was sent.
            DeepLError: the account cannot be asked.
        """
        batches: list[list[str]] = []
        room = 0
        for text in texts:
            size = len(json.dumps(text)) + 2  # ", "
            if size > MAX_BYTES:
                raise ValueError(
                    f"A text of {len(text):,} characters is over the {MAX_BYTES:,} bytes of one DeepL request: "
                    f"{text[:60]!r}... Split it into sentences."
                )
            if size > room or len(batches[-1]) == MAX_TEXTS:
                batches.append([])
                room = MAX_BYTES
            batches[-1].append(text)
            room -= size
        usage = self._call(self._client.get_usage).character
        if usage.valid:
            log.warning("DeepL: the account has used %s of %s characters.", f"{usage.count:,}", f"{usage.limit:,}")
        return batches

    def run(self, batch: Sequence[str]) -> list[Translation]:
        """Translate one request's texts.

        Raises:
            DeepLError: refused key, used-up quota, rate limit, server or connection, as its message says.
        """
        results = self._call(lambda: self._request(batch))
        return [
            Translation(result.text, f"DeepL {result.model_type_used or 'model not named'}", result.billed_characters)
            for result in results
        ]

    def _request(self, batch: Sequence[str]) -> list["deepl.TextResult"]:
        try:
            results = self._client.translate_text(
                batch, source_lang="EN", target_lang="DE", formality=self._formality, model_type=MODEL_TYPE
            )
        except (TypeError, AttributeError):  # what the client does with fields that are missing or of another type
            raise UnreadableResponseError("fields are missing") from None
        assert isinstance(results, list)  # as for every list of texts
        if len(results) != len(batch):
            raise UnreadableResponseError(f"{len(results)} translations for {len(batch)} texts")
        if not all(isinstance(result.text, str) and result.text.strip() for result in results):
            raise UnreadableResponseError("a translation is empty")
        return results

    def _call(self, request: Callable[[], Any]) -> Any:
        """What `request` returns, asked again where the answer is unreadable.

        Raises:
            DeepLError: it failed; the message is free of the key.
        """
        import deepl

        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return request()
            except UnreadableResponseError as error:
                problem, again = f"DeepL's answer cannot be read: {error}", True
            except deepl.DeepLException as error:
                problem, again = _explain(error), _is_cut_off(error)
            if not again or attempt == _ATTEMPTS:
                break
            time.sleep(_PAUSE_S)
        # Raised here, not in the handler: the client's exception, which may quote a header, is no part of the chain.
        raise DeepLError(
            f"{self._scrub(problem)} Everything translated before this request is in the cache; run the same command "
            "again to go on from there."
        )

    def _scrub(self, text: str) -> str:
        for secret in (self._key, self._key.removesuffix(":fx")):
            text = text.replace(secret, f"<{KEY_VARIABLE}>")
        return text


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


def _is_cut_off(error: "deepl.DeepLException") -> bool:
    """Whether a response broke off half-way, which the client does not repeat."""
    import deepl

    return isinstance(error, deepl.ConnectionException) and not error.should_retry


def _explain(error: "deepl.DeepLException") -> str:
    """What happened and what to do about it."""
    import deepl

    if isinstance(error, deepl.AuthorizationException):
        return (
            f"DeepL refuses the key in {KEY_VARIABLE} (403): {error}. Check it, and that its plan fits the server: "
            "keys of the free plan end in ':fx'."
        )
    if isinstance(error, deepl.QuotaExceededException):
        return (
            f"The account's characters of this billing period are used up (456): {error}. Wait for the next period or "
            "raise the limit in the account."
        )
    if isinstance(error, deepl.TooManyRequestsException):
        return f"DeepL still has too many requests after several attempts (429): {error}. Wait some minutes."
    if isinstance(error, deepl.ConnectionException):
        return f"DeepL cannot be reached: {error}. Check the network and the server's address."
    status = error.http_status_code
    if status is not None and status >= 500:
        return f"DeepL's server fails ({status}): {error}. Wait some minutes."
    return f"DeepL refuses the request ({status or 'no status'}): {error}."
