"""Your own recordings: a table that lists them (CSV, TSV or JSON lines), or a folder of sound files with transcripts.

    path,text,speaker,etiology,severity,translation
    clips/anna_01.wav,Turn off the light.,anna,ALS,mild,Mach das Licht aus.

Only `path` (relative to the table) and `text` are required; the other columns are the fields of Recording, and columns
that are none of them are left alone. Other names are given as columns="text=transcript,etiology=condition".
In a folder, clip.wav goes with clip.txt beside it, and a subfolder's name is the speaker's.
"""

from collections.abc import Iterable, Iterator, Mapping
import csv
import json
from pathlib import Path
from typing import Any, TextIO

from jaxmoe.data.corpora import AUDIO, SPLITS, Recording, words

REQUIRED = ("path", "text")
OPTIONAL = (
    *("id", "speaker", "translation", "translation_origin", "etiology", "severity", "prompt"),
    *("transcript", "category", "voice", "channel", "sex", "language", "split", "source"),
)


def recordings(path: str, seed: int = 0, *, columns: str = "") -> Iterator[Recording]:
    """Recordings of the table or folder at `path`.

    Args:
      path: a .csv, .tsv or .jsonl file, or a folder.
      seed: not used; a table has nothing random.
      columns: names of the table's columns where they are not ours, "ours=theirs,ours=theirs".

    Raises:
      ValueError: no such table, a column missing, a line that cannot be read.
    """
    place = Path(path)
    if not path or not place.exists():
        raise ValueError(f"config.data.path={path!r}: no such file or folder; name a .csv, .tsv, .jsonl or a folder.")
    if place.is_dir():
        yield from _folder(place)
        return
    theirs = mapping(columns, "manifest")
    for number, row in _rows(place, theirs):
        fields = {ours: words(row.get(theirs[ours])) for ours in theirs}
        fields["path"] = str(row.get(theirs["path"]) or "").strip()  # names may hold double spaces
        yield _recording(place, number, fields)


def mapping(columns: str, group: str) -> dict[str, str]:
    """The name in the table of each of our columns, from config.<group>.columns."""
    names = {name: name for name in (*REQUIRED, *OPTIONAL)}
    for pair in filter(None, (part.strip() for part in columns.split(","))):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals or not theirs or ours not in names:
            raise ValueError(
                f"config.{group}.columns: found {pair!r}, expected OURS=THEIRS with OURS one of {', '.join(names)}."
            )
        names[ours] = theirs
    return names


def _rows(table: Path, names: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number, row) of the table."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
            read = _json_rows(table, file) if table.suffix in (".jsonl", ".ndjson") else _csv_rows(table, file, names)
            yield from read
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: not UTF-8 ({error}); save it as UTF-8, in Excel as 'CSV UTF-8'.") from error
    except csv.Error as error:
        raise ValueError(f"{table}: {error}; is a quotation mark not closed?") from error


def _csv_rows(table: Path, file: TextIO, names: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    header = file.readline()
    file.seek(0)
    tabs = table.suffix == ".tsv"
    # Where the comma is the decimal point, Excel separates columns by semicolons.
    delimiter = "\t" if tabs else ";" if ";" in header and "," not in header else ","
    # In tables of tabs a quotation mark is mostly only that.
    reader = csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    found = [_unquoted(name) for name in reader.fieldnames or []]
    reader.fieldnames = found
    missing = [names[name] for name in REQUIRED if names[name] not in found]
    missing += [theirs for ours, theirs in names.items() if ours != theirs and theirs not in found]
    if missing:
        raise ValueError(
            f"{table}: no column {', '.join(dict.fromkeys(missing))}, found {', '.join(found) or 'none'}; "
            'rename it, or say --config.manifest.columns="text=transcript".'
        )
    for row in reader:
        values = [x for x in row.values() if isinstance(x, str)]
        if any(line.count(delimiter) >= len(found) - 1 for x in values for line in x.splitlines()[1:]):
            raise ValueError(
                f"{table}, line {reader.line_num}: a field goes over several lines that look like rows; close the "
                "quotation mark before them, or take the line breaks out of the text."
            )
        yield reader.line_num, {k: _unquoted(x) if tabs and isinstance(x, str) else x for k, x in row.items()}


def _unquoted(field: str) -> str:
    """A field of a table of tabs without the quotation marks that Excel puts around it."""
    inside = field[1:-1]
    whole = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if whole else field


def _json_rows(table: Path, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{table}, line {number}: not JSON ({error}); one object a line is expected.") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{table}, line {number}: found {type(row).__name__}, expected an object with path and text."
            )
        yield number, row


def _recording(table: Path, number: int, row: dict[str, str]) -> Recording:
    if row["split"] not in ("", *SPLITS):
        raise ValueError(
            f"{table}, line {number}: split {row['split']!r}, expected one of {', '.join(SPLITS)} or nothing."
        )
    file = table.parent / row["path"]  # an absolute path stays as it is
    given: dict[str, Any] = {name: row[name] for name in OPTIONAL if row[name] and name not in ("id", "source")}
    if row["translation"]:
        given.setdefault("translation_origin", "corpus")
    return Recording(
        **{"speaker": "", **given},
        id=row["id"] or row["path"] or f"line {number}",
        text=row["text"],
        path=str(file),
        source=row["source"] or str(file),
    )


def _folder(folder: Path) -> Iterator[Recording]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO and p.is_file())
    if not files:
        raise ValueError(f"{folder}: found no sound file; expected clip.wav (or .flac, .mp3, ...) beside clip.txt.")
    for file in files:
        transcript = file.with_suffix(".txt")
        text = transcript.read_text(encoding="utf-8-sig", errors="replace") if transcript.exists() else ""
        yield Recording(
            id=file.relative_to(folder).as_posix(),
            speaker="" if file.parent == folder else file.parent.relative_to(folder).as_posix(),
            text=words(text),
            path=str(file),
            source=str(file),
        )
