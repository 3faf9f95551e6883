"""Machine translation from English into German: one protocol, two engines (deepl, local), one cache before both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ENGINES = ("deepl", "local", "none")


class TranslatorUnavailable(ValueError):  # noqa: N818  it is a state of the machine: no key, no weights
    """No translator can be made here; the message is the reason of a row "not run: ..." and says what to do."""


class BudgetExceeded(RuntimeError):  # noqa: N818
    """The next request would bill more characters than allowed; what is done is in the cache."""


class RequestError(RuntimeError):
    """A request of an engine that bills failed.

    passing: the same request may succeed in a moment. may_be_billed: it reached the service and no readable answer
    came back, so that nobody here knows whether it was billed.
    """

    def __init__(self, message: str, *, passing: bool = False, may_be_billed: bool = False) -> None:
        super().__init__(message)
        self.passing, self.may_be_billed = passing, may_be_billed


class Translator(Protocol):
    """What the phases see."""

    name: str  # for people: names the row of a table
    signature: str  # everything that changes the output; part of the cache's key

    def translate(self, texts: Sequence[str]) -> list[str]:
        """German of each English text, in order."""
        ...


@dataclass(frozen=True)
class Translation:
    """One translated text, the model that made it, and the characters that were billed for it."""

    text: str
    model: str
    billed_characters: int = 0


class Engine(Protocol):
    """What cached.CachedTranslator drives: it plans requests, then runs them one by one."""

    name: str
    signature: str
    billed: bool  # characters cost money: courier.py sends them, counts them and obeys the budget

    def plan(self, texts: Sequence[str]) -> list[list[str]]:
        """Distinct, non-empty texts -> batches, each one `run`."""
        ...

    def run(self, batch: Sequence[str]) -> list[Translation]:
        """Translate one batch; of an engine that bills, one request. Raises: RequestError."""
        ...


def make(
    engine: str,
    model: str,
    *,
    batch_size: int = 32,
    max_chars: int = 400_000,
    acknowledge_privacy: bool = False,
    formality: str = "default",
    server_url: str = "",
    cache_path: Path | None = None,
    custom: dict[str, Any] | None = None,
    adapters: Path | None = None,
) -> Translator:
    """The translator that `config.mt` describes, behind the cache in `cache_path` (None: in memory, for this process).

    engine: "local" runs `model`, a name of jaxmoe.weights or a path, on this machine, with the `adapters` that phase
    `mt` trained, if any. "deepl" sends texts to DeepL with the key in DEEPL_AUTH_KEY, at most `max_chars` billed
    characters in the whole cache, with the customisation `custom` of mt.custom; model and batch_size do not concern it.
    Raises:
        TranslatorUnavailable: "none", no key, privacy notice not acknowledged, or no weights.
        ValueError: an unknown engine or option.
    """
    from jaxmoe.mt.cache import Cache
    from jaxmoe.mt.cached import CachedTranslator

    if engine == "local":
        from jaxmoe.mt.local import LocalTranslator

        return CachedTranslator(LocalTranslator(model, batch_size, adapters), Cache(cache_path))
    if engine == "deepl":
        from jaxmoe.mt.account import Account
        from jaxmoe.mt.courier import Courier
        from jaxmoe.mt.deepl import DeepL

        if cache_path is None:
            raise ValueError("mt.engine='deepl' needs a cache_path: without a cache every run would pay again.")
        account = Account(server_url=server_url, acknowledge_privacy=acknowledge_privacy)
        made, cache = DeepL(formality=formality, custom=custom, account=account), Cache(cache_path)
        return CachedTranslator(made, cache, Courier(made, account, cache, max_chars))
    if engine == "none":
        raise TranslatorUnavailable("config.mt.engine is 'none'; set it to 'local' or 'deepl'.")
    raise ValueError(f"config.mt.engine={engine!r}; expected one of {', '.join(ENGINES)}.")
