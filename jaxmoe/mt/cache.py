"""Translations kept in SQLite: nothing is translated, or paid for, twice; a batch is on disk as soon as it is done."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
import fcntl
import logging
from pathlib import Path
import sqlite3
import threading
import time

from tqdm import tqdm

from jaxmoe.mt import BudgetExceeded, Engine, Translation

_BUSY_S = 60.0  # how long to wait for another process's commit
_LOOKUP = 500  # keys a query; SQLite allows 32766 variables, 999 before 3.32
_SCHEMA = """
CREATE TABLE IF NOT EXISTS translations (
    signature TEXT NOT NULL, source TEXT NOT NULL, translation TEXT NOT NULL, model TEXT NOT NULL,
    billed_characters INTEGER NOT NULL, created REAL NOT NULL, PRIMARY KEY (signature, source)
) WITHOUT ROWID
"""

log = logging.getLogger(__name__)


class Cache:
    """(signature, source text) -> Translation, in a file that several processes may use at once."""

    def __init__(self, path: Path | None) -> None:
        """Open or create; None keeps it in memory.

        Raises:
            ValueError: the file is no SQLite database, or cannot be opened.
        """
        self.path = path
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=_BUSY_S, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # paid for: it must outlive a power cut
            with self._db:
                self._db.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"The translation cache {path} cannot be used ({error}); expected a SQLite file on a local "
                "disk. Move it away to start an empty one."
            ) from None

    def get(self, signature: str, sources: Sequence[str]) -> dict[str, str]:
        """The translations at hand of these texts."""
        found: dict[str, str] = {}
        for at in range(0, len(sources), _LOOKUP):
            some = sources[at : at + _LOOKUP]
            marks = ", ".join("?" * len(some))
            query = f"SELECT source, translation FROM translations WHERE signature = ? AND source IN ({marks})"
            with self._lock:
                found.update(self._db.execute(query, (signature, *some)).fetchall())
        return found

    def put(self, signature: str, pairs: Iterable[tuple[str, Translation]]) -> None:
        """Add translations in one transaction; where another process was first, its answer stays."""
        now = time.time()
        rows = [(signature, s, t.text, t.model, t.billed_characters, now) for s, t in pairs]
        with self._lock, self._db:
            self._db.executemany("INSERT OR IGNORE INTO translations VALUES (?, ?, ?, ?, ?, ?)", rows)

    def billed_characters(self) -> int:
        """All that was ever billed for what this file holds."""
        with self._lock:
            row = self._db.execute("SELECT SUM(billed_characters) FROM translations").fetchone()
        return row[0] or 0

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One process at a time; the system lifts the lock of a process that dies."""
        if self.path is None:
            yield
            return
        with open(f"{self.path}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        """Close the database."""
        self._db.close()


class CachedTranslator:
    """A Translator that asks the engine only for what the cache lacks, each distinct text once."""

    def __init__(self, engine: Engine, cache: Cache, max_chars: int = 0) -> None:
        self.name, self.signature = engine.name, engine.signature
        self.engine, self.cache, self.max_chars = engine, cache, max_chars

    def translate(self, texts: Sequence[str]) -> list[str]:
        """German of each English text, in order; an empty text stays empty and costs nothing.

        Raises:
            BudgetExceeded: the next batch of a billed engine would go over max_chars.
        """
        keys = [text.strip() for text in texts]
        distinct = [key for key in dict.fromkeys(keys) if key]
        found = self.cache.get(self.signature, distinct)
        missing = [key for key in distinct if key not in found]
        if missing:
            self._fill(missing)
            found.update(self.cache.get(self.signature, missing))
        return [found[key] if key else "" for key in keys]

    def _fill(self, missing: list[str]) -> None:
        """Translate into the cache."""
        if self.engine.billed:
            log.warning(
                "%s: %d texts, %s characters to send; %s billed so far in this cache, at most %s in all.",
                self.name,
                len(missing),
                f"{sum(map(len, missing)):,}",
                f"{self.cache.billed_characters():,}",
                f"{self.max_chars:,}",
            )
        batches = self.engine.plan(missing)
        with tqdm(total=len(missing), desc=self.name, unit="text", disable=len(batches) < 2) as bar:
            for batch in batches:
                if self.engine.billed:
                    with self.cache.exclusive():  # else two processes could pay for the same text
                        self._run_billed(batch)
                else:
                    self._run(batch)
                bar.update(len(batch))

    def _run(self, batch: Sequence[str]) -> None:
        self.cache.put(self.signature, zip(batch, self.engine.run(batch), strict=True))

    def _run_billed(self, batch: Sequence[str]) -> None:
        done = self.cache.get(self.signature, batch)  # by another process, since the first look
        batch = [text for text in batch if text not in done]
        if not batch:
            return
        billed, more = self.cache.billed_characters(), sum(map(len, batch))
        if billed + more > self.max_chars:
            raise BudgetExceeded(
                f"{self.name}: stopped before a request of {more:,} characters: {billed:,} are billed and "
                f"config.mt.max_chars is {self.max_chars:,}. Everything translated so far is in {self.cache.path}; "
                "raise max_chars and run the same command again to go on from there."
            )
        self._run(batch)
