"""Translations kept in SQLite: nothing is translated, or paid for, twice; a batch is on disk as soon as it is done."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
import fcntl
from pathlib import Path
import sqlite3
import threading
import time

from jaxmoe.mt import Translation

_BUSY_S = 60.0  # how long to wait for another process's commit
_LOOKUP = 500  # keys a query; SQLite allows 32766 variables, 999 before 3.32
_SCHEMA = """
CREATE TABLE IF NOT EXISTS translations (
    signature TEXT NOT NULL, source TEXT NOT NULL, translation TEXT NOT NULL, model TEXT NOT NULL,
    billed_characters INTEGER NOT NULL, created REAL NOT NULL, PRIMARY KEY (signature, source)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS in_doubt (
    id INTEGER PRIMARY KEY, signature TEXT NOT NULL, characters INTEGER NOT NULL, created REAL NOT NULL
);
"""


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
                self._db.executescript(_SCHEMA)
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

    def put(self, signature: str, pairs: Iterable[tuple[str, Translation]], request: int | None = None) -> None:
        """Add translations, the answer to `request`, in one transaction; where another was first, its answer stays."""
        now = time.time()
        rows = [(signature, s, t.text, t.model, t.billed_characters, now) for s, t in pairs]
        with self._lock, self._db:
            self._db.executemany("INSERT OR IGNORE INTO translations VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("DELETE FROM in_doubt WHERE id = ?", (request,))

    def sending(self, signature: str, characters: int) -> int:
        """Note, before it is sent, that a request may be billed for so many characters; returns the request's number.

        It stays in doubt until `put` gets its answer or `refused` says that there is nothing to pay: for good, if the
        process dies first or the answer is lost.
        """
        with self._lock, self._db:
            row = self._db.execute(
                "INSERT INTO in_doubt (signature, characters, created) VALUES (?, ?, ?)",
                (signature, characters, time.time()),
            )
        assert row.lastrowid is not None
        return row.lastrowid

    def refused(self, request: int) -> None:
        """The request was not billed."""
        with self._lock, self._db:
            self._db.execute("DELETE FROM in_doubt WHERE id = ?", (request,))

    def billed_characters(self) -> int:
        """All that was ever billed for what this file holds."""
        return self._total("SELECT SUM(billed_characters) FROM translations")

    def in_doubt(self) -> int:
        """Characters of requests whose answer never came: billed or not, nobody here knows."""
        return self._total("SELECT SUM(characters) FROM in_doubt")

    def _total(self, query: str) -> int:
        with self._lock:
            return self._db.execute(query).fetchone()[0] or 0

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
