"""The index of a corpus: every listed recording, its split and its shard, in an SQLite file.

Nothing here grows in memory with the number of recordings, only with that of speakers. What is in the file depends on
what was listed and on the seed, not on the order of the listing.
"""

from collections.abc import Iterable, Iterator
import contextlib
from dataclasses import asdict, replace
import hashlib
import itertools
import json
import os
from pathlib import Path
import sqlite3
from typing import Any

from jaxmoe.data.corpora import SPLITS, Recording, Refused
from jaxmoe.data.splits import Speaker, assign, hash63

MAX_SHARD, MIN_SHARDS = 512, 8  # recordings a shard; shards a split has where that leaves 16 recordings in each
_FLUSH = 5000  # rows held before they are written

_SCHEMA = """
CREATE TABLE recordings (id TEXT PRIMARY KEY, key INTEGER, speaker TEXT, etiology TEXT, severity TEXT, official TEXT,
  no_text INTEGER, digest TEXT, data TEXT) WITHOUT ROWID;
CREATE TABLE refused (id TEXT, speaker TEXT, digest TEXT, data TEXT);
CREATE TABLE speakers (speaker TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;
CREATE TABLE prompts (prompt TEXT PRIMARY KEY) WITHOUT ROWID;
"""
# Of several recordings with one id, the one that has a text counts, then the first in order of all its fields.
_INSERT = """
INSERT INTO recordings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET key = excluded.key, speaker = excluded.speaker, etiology = excluded.etiology,
  severity = excluded.severity, official = excluded.official, no_text = excluded.no_text, digest = excluded.digest,
  data = excluded.data
WHERE (excluded.no_text, excluded.data) < (recordings.no_text, recordings.data)
"""
# Systematic sampling: walk train in order of kind and speaker, and take one whenever 1 / share recordings have passed.
# CAST rounds towards zero: + 1 keeps what is rounded positive.
_PLACE = """
CREATE TABLE rows AS
WITH placed AS (
  SELECT id, key, etiology, severity, r.speaker, s.split FROM recordings r JOIN speakers s ON r.speaker = s.speaker),
numbered AS (
  SELECT id, key, split,
    row_number() OVER (PARTITION BY split ORDER BY key, id) - 1 AS n,
    row_number() OVER (PARTITION BY split ORDER BY etiology, severity, speaker, key, id) AS m
  FROM placed)
SELECT id, key, split, n, split = 'train' AND CAST(m * :share + :start + 1 AS INTEGER)
    > CAST((m - 1) * :share + :start + 1 AS INTEGER) AS pretrain
FROM numbered
"""


def scan(listed: Iterable[Recording | Refused]) -> Iterator[tuple[Recording | Refused, str]]:
    """What a corpus lists with the state of each file (size and date); one that is not there is refused."""
    for item in map(_printable, listed):
        if isinstance(item, Refused):
            yield item, ""
            continue
        if not item.speaker:
            item = replace(item, speaker=item.id)
        try:
            stat = os.stat(item.path)
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            detail = getattr(error, "strerror", "") or str(error)
            yield Refused(item.id, "missing file", detail, item.source, item.speaker, item.etiology), ""
        else:
            yield item, f"{stat.st_size} {stat.st_mtime_ns}"


def _printable(item: Recording | Refused) -> Recording | Refused:
    """With names that are no UTF-8 written with question marks; `path` must stay what the file is called."""
    fields: dict[str, Any] = {k: v for k, v in vars(item).items() if isinstance(v, str) and k != "path"}
    try:
        "".join(fields.values()).encode()
    except UnicodeEncodeError:
        return replace(item, **{k: v.encode("utf-8", "replace").decode() for k, v in fields.items()})
    return item


def fingerprint(scanned: Iterable[tuple[Recording | Refused, str]], made_with: str) -> str:
    """A hash of all that the stored corpus depends on, whatever the order; of sound, the file's size and date."""
    total = 0
    for item, state in scanned:
        total += _digest(item, state)
    return _finish(total, made_with)


def _digest(item: Recording | Refused, state: str) -> int:
    text = repr((tuple(vars(item).values()), state))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())


def _finish(total: int, made_with: str) -> str:
    return hashlib.blake2b(f"{total % (1 << 128)}/{made_with}".encode(), digest_size=16).hexdigest()


class Index:
    """The index in a file, open for reading; `create` makes it."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(f"file:{path}?mode=rw", uri=True)

    @classmethod
    def create(
        cls,
        path: Path,
        scanned: Iterable[tuple[Recording | Refused, str]],
        *,
        seed: int,
        pretrain_share: float,
        made_with: str,
    ) -> "Index":
        """Indexes what a corpus lists; the file appears whole or not at all.

        Raises:
          ValueError: a share out of (0, 1], or a speaker in two of the corpus's own splits.
        """
        if not 0 < pretrain_share <= 1:
            raise ValueError(f"config.data.pretrain_share={pretrain_share}, expected more than 0 and at most 1.")
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(temporary)) as db:
            db.execute("PRAGMA journal_mode = OFF")  # a file that was not finished is thrown away
            db.execute("PRAGMA synchronous = OFF")
            db.executescript(_SCHEMA)
            total = _insert(db, scanned, seed)
            _assign_splits(db, seed)
            start = (hash63(seed, "pretrain") % 1000) / 1000
            db.execute(_PLACE, {"share": pretrain_share, "start": start})
            db.execute("CREATE INDEX by_place ON rows (split, n)")
            db.execute("CREATE TABLE about AS SELECT ? AS total, ? AS made_with", (f"{total:x}", made_with))
            db.commit()
        os.replace(temporary, path)
        return cls(path)

    def close(self) -> None:
        self.db.close()

    @property
    def fingerprint(self) -> str:
        total, made_with = self.db.execute("SELECT total, made_with FROM about").fetchone()
        return _finish(int(total, 16), made_with)

    def count(self, split: str) -> int:
        """Recordings of a split, refused ones included."""
        return int(self.db.execute("SELECT count(*) FROM rows WHERE split = ?", (split,)).fetchone()[0])

    def shards(self, split: str) -> list[range]:
        """The recordings of each shard, by number."""
        return shard_ranges(self.count(split))

    def rows(self, split: str, numbers: range) -> Iterator[tuple[Recording, bool]]:
        """Recordings of a split by number, each with whether it is in the pre-training sample."""
        found = self.db.execute(
            "SELECT data, pretrain FROM rows JOIN recordings USING (id) WHERE rows.split = ? AND n >= ? AND n < ? "
            "ORDER BY n",
            (split, numbers.start, numbers.stop),
        )
        for data, pretrain in found:
            yield replace(Recording(**json.loads(data)), split=split), bool(pretrain)

    def find(self, id_: str) -> Recording:
        """The recording of that id.

        Raises:
          KeyError: there is none.
        """
        row = self.db.execute("SELECT data FROM recordings WHERE id = ?", (id_,)).fetchone()
        if row is None:
            raise KeyError(id_)
        return Recording(**json.loads(row[0]))

    def refused(self) -> Iterator[Refused]:
        """What was set aside before anything was read, in order of id."""
        for (data,) in self.db.execute("SELECT data FROM refused ORDER BY id, data"):
            yield Refused(**json.loads(data))

    def add_prompts(self, prompts: Iterable[str]) -> None:
        """Notes prompts that train holds."""
        self.db.executemany("INSERT OR IGNORE INTO prompts VALUES (?)", ((p,) for p in prompts))
        self.db.commit()

    def has_prompt(self, prompt: str) -> bool:
        return self.db.execute("SELECT 1 FROM prompts WHERE prompt = ?", (prompt,)).fetchone() is not None

    def forget(self, speaker: str, prompts: Iterable[str]) -> None:
        """Removes a speaker, and those `prompts` of train that nobody else has read; no byte stays in the file."""
        db = self.db
        db.execute("PRAGMA secure_delete = ON")
        of_speaker = [
            digest
            for table in ("recordings", "refused")
            for (digest,) in db.execute(f"SELECT digest FROM {table} WHERE speaker = ?", (speaker,))
        ]
        total = int(db.execute("SELECT total FROM about").fetchone()[0], 16) - sum(int(d, 16) for d in of_speaker)
        db.execute("UPDATE about SET total = ?", (f"{total:x}",))
        db.execute("DELETE FROM rows WHERE id IN (SELECT id FROM recordings WHERE speaker = ?)", (speaker,))
        for table in ("recordings", "refused", "speakers"):
            db.execute(f"DELETE FROM {table} WHERE speaker = ?", (speaker,))
        db.executemany("DELETE FROM prompts WHERE prompt = ?", ((p,) for p in prompts))
        db.commit()
        db.execute("VACUUM")

    def of_speaker(self, speaker: str) -> tuple[list[Recording], list[Refused]]:
        """What is listed of a speaker, and what of it was set aside."""
        query = "SELECT data FROM {} WHERE speaker = ?"
        recordings = self.db.execute(query.format("recordings"), (speaker,)).fetchall()
        refused = self.db.execute(query.format("refused"), (speaker,)).fetchall()
        return [Recording(**json.loads(d)) for (d,) in recordings], [Refused(**json.loads(d)) for (d,) in refused]

    def splits(self) -> dict[str, str]:
        """Speaker -> split."""
        return dict(self.db.execute("SELECT speaker, split FROM speakers"))


def shard_ranges(count: int) -> list[range]:
    """`count` recordings in shards of equal size: at most MAX_SHARD each, few where there are few."""
    size = max(min(MAX_SHARD, -(-count // MIN_SHARDS)), 16)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _insert(db: sqlite3.Connection, scanned: Iterable[tuple[Recording | Refused, str]], seed: int) -> int:
    """Writes all that is listed; returns the sum of its digests."""
    total, left = 0, iter(scanned)
    while chunk := list(itertools.islice(left, _FLUSH)):
        for item, state in chunk:
            digest = _digest(item, state)
            total += digest
            if isinstance(item, Refused):
                _refuse(db, item, f"{digest:x}")
                continue
            row = _row(item, f"{digest:x}", seed)
            query = "SELECT digest, data FROM recordings WHERE id = ?"
            old = db.execute(query, (item.id,)).fetchone()
            db.execute(_INSERT, row)
            if old:  # which of the two stays is the database's to say
                lost = row[-2:] if db.execute(query, (item.id,)).fetchone() == old else old
                r = Recording(**json.loads(str(lost[1])))
                twin = Refused(r.id, "duplicate id", "another recording has it", r.source, r.speaker, r.etiology)
                _refuse(db, twin, str(lost[0]))
    return total


def _refuse(db: sqlite3.Connection, item: Refused, digest: str) -> None:
    db.execute("INSERT INTO refused VALUES (?, ?, ?, ?)", (item.id, item.speaker, digest, json.dumps(asdict(item))))


def _row(r: Recording, digest: str, seed: int) -> tuple[Any, ...]:
    data = json.dumps(vars(r))  # ASCII: a path that is no UTF-8 survives
    return (r.id, hash63(seed, r.id), r.speaker, r.etiology, r.severity, r.split, not r.text, digest, data)


def _assign_splits(db: sqlite3.Connection, seed: int) -> None:
    """Fills the table of speakers."""
    found = db.execute(
        "SELECT speaker, min(etiology), min(CASE WHEN official != '' THEN official END), max(official), min(id) "
        "FROM recordings GROUP BY speaker"
    )
    speakers = []
    for speaker, etiology, first, last, example in found:
        if first and first != last:
            raise ValueError(
                f"speaker {speaker!r} is in the corpus's splits {first!r} and {last!r} (id {example!r}, for one); "
                "give each speaker one split."
            )
        if last and last not in SPLITS:
            raise ValueError(f"speaker {speaker!r}: split {last!r}, expected one of {', '.join(SPLITS)}.")
        speakers.append(Speaker(speaker, etiology, last or ""))
    split = assign(speakers, seed)
    db.executemany("INSERT INTO speakers VALUES (?, ?)", sorted(split.items()))
