"""Takes one speaker out of the files of a run: corpus, latents, tables, pages, caches. What is left keeps its bytes."""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass, field
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
import sqlite3
from typing import Any

import numpy as np

from jaxmoe.data import prepared
from jaxmoe.data.corpora import SPLITS, normalised
from jaxmoe.data.index import Index
from jaxmoe.data.summary import summarise

TEXTS = ("text", "transcript", "translation", "prompt", "source", "hypothesis", "reference", "translation_reference")
SPLIT_IDS = re.compile(r"#\d+$")  # of the windows that a long recording is cut into
LONG_ENOUGH = 8  # characters: what is shorter ("90", "M5") is found by chance in binary files and in running text
RECORDS = ("config.json", "phase.json")  # settings of the run, which name nobody


@dataclass
class Traces:
    """What gives a speaker away.

    Attributes:
      speaker: the id.
      ids: of the utterances.
      texts: what they alone have said, or what was heard or translated of them alone.
      files: names of files and folders that are theirs.
    """

    speaker: str
    ids: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def names(self, value: object) -> bool:
        """Whether a value of a table is one of the speaker's."""
        if not isinstance(value, str):
            return False
        return value == self.speaker or SPLIT_IDS.sub("", value) in self.ids or value in self.texts

    def within(self, value: object) -> bool:
        """Whether anything in a JSON value is."""
        if isinstance(value, dict):
            return any(map(self.names_key, value)) or any(map(self.within, value.values()))
        return any(map(self.within, value)) if isinstance(value, list) else self.names(value)

    def names_key(self, key: str) -> bool:
        """Whether a key of a JSON object is; a number is taken for what it mostly is, a count or a cluster."""
        return self.names(key) and not key.isdigit()

    def pattern(self, short: bool) -> re.Pattern[bytes]:
        """Finds them in the bytes of a file; of texts, those of three words and more, which are no chance.

        short: whether short ids are looked for too, between quotation marks.
        """
        words = {self.speaker, *self.ids, *(text for text in self.texts if len(text.split()) > 2)} - {""}
        plain = {w for w in words if len(w) >= LONG_ENOUGH} | {"\0no such word"}
        quoted = {json.dumps(w) for w in words - plain} if short else set()
        escaped = {re.escape(form.encode()) for w in plain for form in (w, json.dumps(w)[1:-1])}
        bare = rb"(?<![\w-])(?:" + b"|".join(sorted(escaped)) + rb")(?![\w-])"
        return re.compile(b"|".join([bare, *(re.escape(w.encode()) for w in sorted(quoted))]))


def find_traces(workdir: Path, speaker: str) -> Traces:
    """What the tables of a run know of a speaker."""
    mine, others = Traces(speaker), set()
    for index_file in sorted(workdir.glob("*/index.sqlite")):
        with contextlib.closing(Index(index_file)) as index:
            recordings, refused = index.of_speaker(speaker)
            mine.ids |= {r.id for r in recordings} | {x.id for x in refused}
            mine.texts |= {getattr(r, name) for r in recordings for name in TEXTS if hasattr(r, name)}
            mine.texts |= {x.source for x in refused}
    for path in sorted(workdir.rglob("*.jsonl")):
        for row in _rows(path):
            texts = {row[name] for name in TEXTS if isinstance(row.get(name), str)}
            if row.get("speaker") == speaker or mine.names(row.get("id")):
                mine.texts |= texts
                mine.ids |= {row["id"]} if isinstance(row.get("id"), str) else set()
            else:
                others |= texts
    mine.texts -= others | {""}
    return mine


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    yield row


def clean(workdir: Path, traces: Traces) -> list[str]:
    """Removes the traces from every file of a run; says what was done."""
    done: list[str] = []
    for folder in sorted(p.parent for p in workdir.glob("*/index.sqlite")):
        done += _clean_corpus(folder, traces)
    for shard in sorted(workdir.rglob("*.depths.npy")):
        done += _clean_embeddings(shard.with_name(shard.name.replace(".depths.npy", ".json")), traces)
    for path in sorted(workdir.glob("embeddings/*/*.npz")) if done else ():  # sums and samples that name nobody
        path.unlink()
        done.append(f"{path}: removed; --phase=embed --force makes it again")
    for path in sorted((p for p in workdir.rglob("*") if _is_theirs(p, traces)), reverse=True):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        done.append(f"{path}: removed")
    cleaners: dict[str, Callable[[Path, Traces], bool]] = {
        ".jsonl": _clean_lines,
        ".json": _clean_json,
        ".sqlite": clean_database,
    }
    for path in sorted(p for p in workdir.rglob("*") if p.is_file() and p.name not in RECORDS):
        cleaner = cleaners.get(path.suffix)
        if cleaner and cleaner(path, traces):
            done.append(f"{path}: rewritten")
    report = workdir / "report"
    if report.exists() and done:  # its figures count the speaker too
        shutil.rmtree(report)
        done.append(f"{report}: removed; --phase=report makes it again")
    for path in leftovers(workdir, traces):
        path.unlink()
        done.append(f"{path}: removed")
    return done


def _is_theirs(path: Path, traces: Traces) -> bool:
    """Whether a file or folder is named after the speaker: a personal adaptation, or a long enough name."""
    return path.name in traces.files and (path.parent.name == "personalize" or len(path.name) >= LONG_ENOUGH)


def leftovers(workdir: Path, traces: Traces) -> list[Path]:
    """Files that still hold one of the traces, by a search of their bytes."""
    patterns = {short: traces.pattern(short) for short in (False, True)}
    found = []
    for path in sorted(p for p in workdir.rglob("*") if p.is_file() and p.name not in RECORDS):
        if path.suffix == ".npy" or ".array_record" in path.name:
            continue  # numbers, or compressed: rewritten record by record
        data = path.read_bytes()
        short = b"\0" not in data[:4096] and path.suffix not in (".json", ".jsonl")  # whose values have been looked at
        if patterns[short].search(data):
            found.append(path)
    return found


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _clean_corpus(folder: Path, traces: Traces) -> list[str]:
    """Shards, tables, counts and index of a prepared corpus."""
    import tensorflow_datasets as tfds

    place = folder / prepared.NAME / prepared.VERSION
    done = []
    if (place / "dataset_info.json").exists():
        builder = tfds.builder_from_directory(str(place))
        infos = []
        for split, info in builder.info.splits.items():
            rows = [json.loads(x) for x in prepared.metadata_file(folder, split).read_text("utf-8").splitlines()]
            keep = [row["speaker"] != traces.speaker for row in rows]
            lengths, removed_bytes, start = [], 0, 0
            for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
                kept = keep[start : start + length]
                start += length
                lengths.append(sum(kept))
                if not all(kept):
                    removed_bytes += _filter_shard(Path(path), kept)
                    done.append(f"{path}: {length - sum(kept)} recordings removed")
            template, size = info.filename_template, info.num_bytes - removed_bytes
            infos.append(
                tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
        builder.info.set_splits(tfds.core.splits.SplitDict(infos))
        builder.info.write_to_directory(place)
    for table in (*(prepared.metadata_file(folder, s) for s in SPLITS), folder / "rejected.jsonl"):
        if table.exists() and _clean_lines(table, traces):
            done.append(f"{table}: rewritten")
    with contextlib.closing(Index(folder / "index.sqlite")) as index:
        index.forget(traces.speaker, traces.texts | set(map(normalised, traces.texts)))
    if (folder / "summary.json").exists():
        old = json.loads((folder / "summary.json").read_text("utf-8"))
        summary = {"corpus": old["corpus"]} | summarise(folder)
        _replace(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False).encode())
    return done


def _filter_shard(path: Path, keep: list[bool]) -> int:
    """Rewrites an ArrayRecord file with the records to keep; returns the bytes of the others."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    reader = ArrayRecordReader(str(path))
    records = [reader.read([i])[0] for i in range(len(keep))]
    reader.close()
    temporary = path.with_name(path.name + ".tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    for record in (r for r, kept in zip(records, keep, strict=True) if kept):
        writer.write(record)
    writer.close()
    os.replace(temporary, path)
    return sum(len(r) for r, kept in zip(records, keep, strict=True) if not kept)


def _clean_embeddings(index_file: Path, traces: Traces) -> list[str]:
    """One shard of latents (data/embeddings.py)."""
    if not index_file.exists():
        return []
    index = json.loads(index_file.read_text())
    keep = np.array([not traces.names(id_) for id_ in index["ids"]])
    if keep.all():
        return []
    lengths = np.array(index["lengths"])
    for suffix, mask in ((".latents.npy", np.repeat(keep, lengths)), (".depths.npy", keep)):
        path = index_file.with_name(index_file.stem + suffix)
        kept = np.load(path)[mask]
        with open(path.with_suffix(".tmp"), "wb") as file:
            np.save(file, kept)
        os.replace(path.with_suffix(".tmp"), path)
    index |= {"ids": [x for x, k in zip(index["ids"], keep, strict=True) if k], "lengths": lengths[keep].tolist()}
    _replace(index_file, json.dumps(index).encode())
    return [f"{index_file}: {int((~keep).sum())} utterances removed"]


def _clean_lines(path: Path, traces: Traces) -> bool:
    """JSON lines: those of the speaker go, the others keep their bytes."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not _is_of(line, traces)]
    if len(kept) == len(lines):
        return False
    _replace(path, b"".join(kept))
    about = path.parent / "system.json"
    if path.name == "hypotheses.jsonl" and about.exists():  # it knows the file by its hash
        system = json.loads(about.read_text("utf-8"))
        system |= {"utterances": len(kept), "sha256": hashlib.sha256(b"".join(kept)).hexdigest()}
        _replace(about, json.dumps(system, indent=2, ensure_ascii=False).encode())
    return True


def _is_of(line: bytes, traces: Traces) -> bool:
    try:
        return traces.within(json.loads(line))
    except ValueError:
        return bool(traces.pattern(short=True).search(line))


def _clean_json(path: Path, traces: Traces) -> bool:
    """A JSON file: elements of lists and keys that are the speaker's go."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return False
    if not traces.within(value):
        return False
    _replace(path, json.dumps(_prune(value, traces), indent=2, ensure_ascii=False).encode())
    return True


def _prune(value: Any, traces: Traces) -> Any:
    if isinstance(value, list):
        mine = lambda x: traces.names(x) or (isinstance(x, dict) and any(map(traces.names, x.values())))
        return [_prune(x, traces) for x in value if not mine(x)]
    if isinstance(value, dict):
        return {k: _prune(v, traces) for k, v in value.items() if not traces.names_key(k) and not traces.names(v)}
    return value


def clean_database(path: Path, traces: Traces) -> bool:
    """An SQLite file: rows with one of the traces in a column go, and so do the bytes they leave behind."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as db:
        db.execute("PRAGMA secure_delete = ON")
        before = db.total_changes
        db.create_function("is_of", 1, traces.names)
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in [row[1] for row in db.execute(f'PRAGMA table_info("{table}")')]:
                db.execute(f'DELETE FROM "{table}" WHERE is_of("{column}")')
        changed = db.total_changes > before
        db.commit()
        if changed:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return changed
