"""Requests that cost money, sent by a process of their own.

Whoever kills the run, by kill -9 or for want of memory, does not kill the courier: it stores the answer to the request
under way, which is paid for, and ends. The next run finds it in the cache. A courier that dies too leaves that request
in doubt: DeepL takes no key that would make a repetition free.

    python -m jaxmoe.mt.courier     reads a job, then batches, one JSON a line; answers each batch with a line
"""

from collections.abc import Sequence
import json
import logging
import os
from pathlib import Path
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, NoReturn
import weakref

import jaxmoe
from jaxmoe.mt import BudgetExceeded, Engine, RequestError
from jaxmoe.mt.cache import Cache
from jaxmoe.mt.retry import repeat

if TYPE_CHECKING:
    from jaxmoe.mt.account import Account
    from jaxmoe.mt.deepl import DeepL

log = logging.getLogger(__name__)


class Courier:
    """The run's end of the line; the process starts with the first batch and waits for more."""

    def __init__(self, engine: "DeepL", account: "Account", cache: Cache, max_chars: int) -> None:
        """The process inherits the key with the environment; it is in no argument and no file."""
        self._engine, self._account, self._cache, self._max_chars = engine, account, cache, max_chars
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def announce(self, texts: Sequence[str]) -> None:
        """Say what is going to be sent, where, and what it may cost."""
        if not self._process:  # once a run
            log.warning(self._account.notice)
        doubt = self._cache.in_doubt()
        log.warning(
            "%s: %d texts, %s characters to send; %s billed so far in this cache%s, at most %s in all.",
            self._engine.name,
            len(texts),
            f"{sum(map(len, texts)):,}",
            f"{self._cache.billed_characters():,}",
            f" and {doubt:,} in doubt (answers that never came)" if doubt else "",
            f"{self._max_chars:,}",
        )

    def send(self, batch: Sequence[str]) -> None:
        """Have one batch translated into the cache.

        Raises:
            BudgetExceeded, RequestError: see CachedTranslator.translate.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            assert self._process.stdin and self._process.stdout
            try:
                self._process.stdin.write(json.dumps(list(batch)) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # such as Ctrl-C: its answer is stored, and must not be taken for another batch's
                self._process.stdin.close()
                self._process = None
                raise
        if not line:
            raise RequestError(f"{self._engine.name}: the process that sends the texts died; start again.")
        answer = json.loads(line)
        if answer["error"]:
            raise (BudgetExceeded if answer["error"] == "BudgetExceeded" else RequestError)(answer["message"])

    def _start(self) -> "subprocess.Popen[str]":
        found = os.pathsep.join([str(Path(jaxmoe.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxmoe.mt.courier"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": found},
            start_new_session=True,  # Ctrl-C and the end of a terminal are for the run
            text=True,
        )
        assert process.stdin
        # Popen keeps itself and its pipes for as long as the process runs, and this one runs until its input ends.
        weakref.finalize(self, process.stdin.close)
        job = {
            "engine": self._engine.options,
            "account": {k: getattr(self._account, k) for k in ("server_url", "pause_s", "timeout_s")},
            "cache": str(self._cache.path),
            "max_chars": self._max_chars,
            "parent": os.getpid(),
        }
        process.stdin.write(json.dumps(job) + "\n")
        return process


def deliver(
    engine: Engine, cache: Cache, batch: Sequence[str], *, max_chars: int, pause_s: float, parent: int | None = None
) -> None:
    """Translate what the cache lacks of a batch, one process at a time, within the budget.

    Raises:
        BudgetExceeded: before a request that might go over it, those in doubt counted as billed.
        RequestError: the engine's, when attempts are used up or useless.
    """

    def attempt() -> None:
        if parent is not None and os.getppid() != parent:
            sys.exit()  # nobody waits for it, and nothing is under way
        _check_budget(engine, cache, sum(map(len, missing)), max_chars)
        request = cache.sending(engine.signature, sum(map(len, missing)))
        try:
            answer = engine.run(missing)
        except RequestError as error:
            if not error.may_be_billed:
                cache.refused(request)
            raise
        cache.put(engine.signature, zip(missing, answer, strict=True), request)

    with cache.exclusive():  # else two processes could pay for the same text
        done = cache.get(engine.signature, batch)  # by another process, since the first look
        missing = [text for text in batch if text not in done]
        if missing:
            repeat(attempt, pause_s)


def _check_budget(engine: Engine, cache: Cache, more: int, max_chars: int) -> None:
    billed, doubt = cache.billed_characters(), cache.in_doubt()
    if billed + doubt + more > max_chars:
        raise BudgetExceeded(
            f"{engine.name}: stopped before a request of {more:,} characters: {billed:,} are billed"
            f"{f', {doubt:,} may be (their answers never came)' if doubt else ''} and config.mt.max_chars is "
            f"{max_chars:,}. Everything translated so far is in {cache.path}; raise max_chars and run the same "
            "command again to go on from there."
        )


def main() -> NoReturn:
    """The process: one job, then batches until the run closes the line or is gone."""
    from jaxmoe.mt.account import Account
    from jaxmoe.mt.deepl import DeepL

    job = json.loads(sys.stdin.readline())
    account = Account(**job["account"], acknowledge_privacy=True)  # it was, or no courier would run
    engine, cache = DeepL(**job["engine"], account=account), Cache(Path(job["cache"]))
    for line in sys.stdin:
        error = message = ""
        try:
            deliver(
                engine,
                cache,
                json.loads(line),
                max_chars=job["max_chars"],
                pause_s=account.pause_s,
                parent=job["parent"],
            )
        except Exception as problem:
            error = type(problem).__name__
            known = isinstance(problem, (BudgetExceeded, RequestError))
            message = str(problem) if known else f"{engine.name}: the request failed ({error})."
            if isinstance(problem, RequestError):
                message += " What was translated before is in the cache; the same command goes on from there."
        try:
            print(json.dumps({"error": error, "message": message}), flush=True)
        except BrokenPipeError:  # the run is gone
            os._exit(0)
    sys.exit()


if __name__ == "__main__":
    main()
