"""Translation by DeepL: a network service that bills by the character.

Source: https://developers.deepl.com/docs (v2/translate, v2/usage).
"""

from collections.abc import Sequence
import json
import logging
from typing import Any

from jaxmoe.mt import Translation
from jaxmoe.mt.account import Account, UnreadableResponseError

FORMALITIES = ("default", "less", "more", "prefer_less", "prefer_more")
MODEL_TYPE = "prefer_quality_optimized"  # the next-generation model where the language pair has it
MAX_TEXTS = 50  # a request; DeepL's limit
MAX_BYTES = 126 * 1024  # of one text in a request's JSON; DeepL's limit is 128 KiB, options included
REQUEST_BYTES = 16 * 1024  # of several: what one lost answer can cost stays small

log = logging.getLogger(__name__)


class DeepL:
    """Engine of DeepL, English into German."""

    billed = True

    def __init__(
        self,
        *,
        formality: str = "default",
        custom: dict[str, Any] | None = None,
        account: Account,
    ) -> None:
        """custom: {"version": of its content, "request": arguments of translate_text}, see custom.py.

        Raises:
            ValueError: an unknown formality.
        """
        if formality not in FORMALITIES:
            raise ValueError(f"config.mt.formality={formality!r}; expected one of {', '.join(FORMALITIES)}.")
        self._account = account
        self._request: dict[str, Any] = {"formality": formality} | (custom["request"] if custom else {})
        self.name = "customised DeepL" if custom else "DeepL"
        self.signature = f"deepl:EN-DE:model_type={MODEL_TYPE}:formality={formality}"
        self.signature += f":custom={custom['version']}" if custom else ""
        self.signature += f":server={account.server_url}" if account.server_url else ""
        self.options = {"formality": formality, "custom": custom}  # makes the same engine in another process

    def plan(self, texts: Sequence[str]) -> list[list[str]]:
        """Requests within DeepL's limits of texts and bytes, in order; logs what the account has left.

        Raises:
            ValueError: a single text over the limit; nothing was sent.
            RequestError: the account cannot be asked.
        """
        batches: list[list[str]] = []
        room = 0
        for number, text in enumerate(texts):
            size = len(json.dumps(text)) + 2  # ", "
            if size > MAX_BYTES:
                raise ValueError(
                    f"Text {number + 1} of {len(texts)}, {len(text):,} characters, is over the {MAX_BYTES:,} bytes of "
                    "one DeepL request. Split it into sentences."
                )
            if size > room or len(batches[-1]) == MAX_TEXTS:
                batches.append([])
                room = REQUEST_BYTES
            batches[-1].append(text)
            room -= size
        usage = self._account.ask(self._account.client.get_usage).character
        if usage.valid:
            log.warning("DeepL: the account has used %s of %s characters.", f"{usage.count:,}", f"{usage.limit:,}")
        return batches

    def run(self, batch: Sequence[str]) -> list[Translation]:
        """Translate one request's texts, sent once.

        Raises:
            RequestError: refused key, used-up quota, rate limit, server or connection, as its message says.
        """
        return self._account.call(lambda: self._translate(batch))

    def _translate(self, batch: Sequence[str]) -> list[Translation]:
        results = self._account.client.translate_text(
            batch, source_lang="EN", target_lang="DE", model_type=MODEL_TYPE, **self._request
        )
        assert isinstance(results, list)  # as for every list of texts
        if len(results) != len(batch):
            raise UnreadableResponseError(f"{len(results)} translations for {len(batch)} texts")
        if not all(isinstance(result.text, str) and result.text.strip() for result in results):
            raise UnreadableResponseError("a translation is empty")
        return [
            Translation(result.text, f"DeepL {result.model_type_used or 'model not named'}", result.billed_characters)
            for result in results
        ]
