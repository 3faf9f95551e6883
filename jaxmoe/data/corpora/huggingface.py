"""A Hugging Face data set on disk: what `Dataset.save_to_disk` wrote, parquet files of the hub, or an audiofolder.

    dataset_info.json, state.json, data-*.arrow        (or a folder of these for each split)
    data/train-00000-of-00001.parquet
    train/metadata.csv or metadata.jsonl with file_name, the sound beside it

The columns are those of a manifest (jaxmoe/data/corpora/manifest.py), `audio` or `file_name` instead of path; text may
be called transcription, transcript or sentence. Arrow files are read, never code: a loading script is not run.
"""

from collections.abc import Iterator, Mapping
import csv
from dataclasses import replace
import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmoe.data.corpora import Recording, read_file, words
from jaxmoe.data.corpora.manifest import mapping

SPLITS = {
    "train": "train",
    **dict.fromkeys(("validation", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "evaluation"), "evaluation"),
}
TEXT = ("text", "transcription", "transcript", "sentence")
SOUND = ("audio", "file_name", "path")


def recordings(path: str, seed: int = 0, *, columns: str = "") -> Iterator[Recording]:
    """Recordings of the data set at `path`.

    Args:
      path: the folder.
      seed: not used.
      columns: names of the columns where they are not ours, "ours=theirs,ours=theirs"; "path" names the sound's.

    Raises:
      ValueError: nothing of the kind at `path`, or a column missing.
    """
    root = Path(path)
    if not path or not root.is_dir():
        raise ValueError(f"config.data.path={path!r}: no such folder; name a data set on disk.")
    names = mapping(columns, "huggingface")
    tables = sorted(p for kind in ("*.arrow", "*.parquet") for p in root.rglob(kind) if not p.name.startswith("cache-"))
    lists = sorted(p for name in ("metadata.csv", "metadata.jsonl") for p in root.rglob(name))
    if not tables and not lists:
        raise ValueError(f"{root}: found no .arrow, .parquet or metadata.csv; expected a data set on disk.")
    for table in tables:
        yield from _table(root, table, names)
    for file in lists:
        yield from _audiofolder(root, file, names)


def read(recording: Recording) -> np.ndarray:
    """The samples of a row of a table, or of a file, float32 [n] mono at 16 kHz."""
    if not recording.how:
        return read_file(recording.path)
    where = json.loads(recording.how)
    value = _open(recording.path)[where["column"]][where["row"]].as_py()
    if isinstance(value, Mapping) and value.get("bytes"):
        return read_file(io.BytesIO(value["bytes"]))
    if isinstance(value, Mapping) and "array" in value:  # decoded already
        raise ValueError("the column holds decoded samples; store the audio undecoded (datasets.Audio).")
    file = value.get("path") if isinstance(value, Mapping) else value
    return read_file(Path(recording.path).parent / str(file))


@functools.lru_cache(maxsize=4)  # recordings of a table come one after the other
def _open(path: str) -> Any:
    """The table in a file, mapped into memory rather than read."""
    import pyarrow as pa
    import pyarrow.parquet

    if path.endswith(".parquet"):
        return pa.parquet.read_table(path, memory_map=True)
    with pa.memory_map(path) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


def _table(root: Path, file: Path, names: dict[str, str]) -> Iterator[Recording]:
    import pyarrow as pa

    try:
        table = _open(str(file))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a table of a data set ({error}); download or save it again.") from error
    names = _resolve(names, table.column_names, file)
    known = {ours: theirs for ours, theirs in names.items() if ours != "path" and theirs in table.column_names}
    split = _split(file, root)
    for row, fields in enumerate(_rows(table, known)):
        yield replace(
            _recording(fields, f"{file.relative_to(root).as_posix()}#{row}", str(file), split),
            how=json.dumps({"column": names["path"], "row": row}),
        )


def _rows(table: Any, known: dict[str, str]) -> Iterator[dict[str, str]]:
    for batch in table.select(list(known.values())).to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            yield {ours: words(row[theirs]) for ours, theirs in known.items()}


def _audiofolder(root: Path, file: Path, names: dict[str, str]) -> Iterator[Recording]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines)) if file.suffix == ".csv" else [json.loads(x) for x in lines if x.strip()]
    if not rows:
        return
    names = _resolve(names, list(rows[0]), file)
    for row in rows:
        fields = {ours: words(row.get(theirs)) for ours, theirs in names.items() if ours != "path"}
        sound = file.parent / str(row.get(names["path"]))
        name = sound.relative_to(root).as_posix() if sound.is_relative_to(root) else str(sound)
        yield _recording(fields, name, str(sound), _split(file, root))


def _resolve(names: dict[str, str], found: list[str], file: Path) -> dict[str, str]:
    """The mapping with the usual names of sound and text filled in."""
    usual = {
        ours: next((n for n in (names[ours], *others) if n in found), "")
        for ours, others in (("path", SOUND), ("text", TEXT))
    }
    if missing := [ours for ours, theirs in usual.items() if not theirs]:
        raise ValueError(
            f"{file}: no column for {' and '.join(missing)}, found {', '.join(found)}; "
            'say --config.huggingface.columns="path=audio,text=transcription".'
        )
    return names | usual


def _split(file: Path, root: Path) -> str:
    """From a folder of that name or the beginning of the file's; "" where neither tells."""
    parts = file.relative_to(root).parts
    return next((SPLITS[p] for p in (*parts[:-1], file.name.split("-")[0]) if p in SPLITS), "")


def _recording(fields: dict[str, str], id_: str, path: str, split: str) -> Recording:
    given: dict[str, Any] = {
        name: value for name, value in fields.items() if value and name not in ("id", "split", "path", "text")
    }
    if given.get("translation"):
        given.setdefault("translation_origin", "corpus")
    return Recording(
        **{"speaker": "", "source": path, **given},
        id=fields.get("id") or id_,
        text=fields.get("text", ""),
        path=path,
        split=SPLITS.get(fields.get("split", ""), "") or split,
    )
