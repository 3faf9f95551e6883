"""Reads WORKDIR/eval and checks that its systems were run on the same utterances."""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmoe.eval import semantic, systems

# What describes the utterance and not the system: equal in every system's file.
SHARED: dict[str, type | tuple[type, ...]] = {
    "speaker": str,
    "reference": str,
    "transcript": str,  # as annotated, with its markup; "" where the reference is the annotation
    "translation_reference": str,
    "translation_origin": str,
    "etiology": str,
    "severity": str,
    "sex": str,
    "language": str,
    "channel": str,
    "prompt": str,
    "prompt_seen": bool,
    "category": str,
    "duration_s": (int, float),
    "simulated": bool,
}
OWN: dict[str, type | tuple[type, ...]] = {"hypothesis": str, "translation": str, "flags": list}


@dataclasses.dataclass(frozen=True)
class Utterances:
    """The evaluated utterances, sorted by id; `columns` holds the SHARED fields as lists of length U."""

    ids: list[str]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, field: str) -> list[Any]:
        return self.columns[field]


@dataclasses.dataclass(frozen=True)
class SystemRun:
    """What one system wrote, in the order of the utterances; empty lists when it was not run."""

    key: str
    name: str
    kind: str
    status: str
    mt: str | None
    without_mt: str  # why there is no translation
    hypotheses: list[str]
    translations: list[str]
    flags: list[list[str]]
    gates: np.ndarray | None  # [U, E], nan where an utterance has none
    clusters: list[int | None]
    judged: dict[str, semantic.Judged]  # "comet", "semscore" where they were asked for

    @property
    def was_run(self) -> bool:
        return self.status == "run"


class _Row(NamedTuple):
    """A line of hypotheses.jsonl; `shared` holds the SHARED fields in order."""

    line: int
    shared: tuple[Any, ...]
    hypothesis: str
    translation: str
    flags: list[str]
    gates: list[float] | None
    cluster: int | None


@dataclasses.dataclass
class _File:
    """hypotheses.jsonl as read: utterance id -> row."""

    path: Path
    rows: dict[str, _Row]


def read_json(path: Path) -> Any:
    """The JSON of a file. Raises: ValueError naming the file, the line and what is wrong."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); run the phase that writes it again."
        ) from error


def read_jsonl(path: Path, growing: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSON-lines file; of a `growing` one a cut last line is left out.

    Raises: ValueError naming file and line of one that is cut off or broken.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if growing and not line.endswith("\n"):
                    return
                what = "not valid JSON" if line.endswith("\n") else "the line is cut off"
                raise ValueError(
                    f"{path}, line {number}: {what} ({error.msg} at column {error.colno}); expected one JSON object a"
                    " line. Run the phase again to complete it."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: found {type(row).__name__}, expected a JSON object.")
            yield number, row


def _read_hypotheses(path: Path, pool: dict[tuple[Any, ...], tuple[Any, ...]]) -> _File:
    """`pool` lets the systems' rows share what is equal in all of them: most of the memory."""
    if not path.is_file():
        raise ValueError(f"{path} is missing, but system.json beside it says 'run'; run evaluate again.")
    rows: dict[str, _Row] = {}
    for number, row in read_jsonl(path):
        _check_fields(path, number, row)
        if row["id"] in rows:
            raise ValueError(
                f"{path}, line {number}: utterance {row['id']!r} occurs twice (first in line"
                f" {rows[row['id']].line}); expected every id once. Delete the file and evaluate this system again."
            )
        shared = tuple(row[field] for field in SHARED)
        own = (row["hypothesis"], row["translation"], row["flags"], row.get("gates"), row.get("cluster"))
        rows[row["id"]] = _Row(number, pool.setdefault(shared, shared), *own)
    return _File(path, rows)


def _check_fields(path: Path, number: int, row: dict[str, Any]) -> None:
    for field, kind in ({"id": str} | SHARED | OWN).items():
        if field not in row:
            raise ValueError(f"{path}, line {number}: field {field!r} is missing; run evaluate again.")
        if not isinstance(row[field], kind):
            expected = kind.__name__ if isinstance(kind, type) else "number"
            raise ValueError(f"{path}, line {number}: {field} is {row[field]!r}, expected a {expected}.")


def _check_same(first: _File, other: _File) -> None:
    """Both files cover the same utterances and agree on what is not the system's own."""
    missing, extra = first.rows.keys() - other.rows.keys(), other.rows.keys() - first.rows.keys()
    if missing:
        example = min(missing)
        raise ValueError(
            f"{other.path}, line {len(other.rows)} (the last): {len(missing)} of {len(first.rows)} utterances are"
            f" missing, the first is {example!r} ({first.path}, line {first.rows[example].line}). Systems are"
            " compared on the same utterances: evaluate this one to its end."
        )
    if extra:
        example = min(extra)
        raise ValueError(
            f"{other.path}, line {other.rows[example].line}: utterance {example!r} is not in {first.path}, nor are"
            f" {len(extra) - 1} others. Systems are compared on the same utterances: evaluate both again."
        )
    for key, row in other.rows.items():
        expected = first.rows[key]
        if row.shared == expected.shared:
            continue
        field, found, wanted = next(z for z in zip(SHARED, row.shared, expected.shared, strict=True) if z[1] != z[2])
        raise ValueError(
            f"{other.path}, line {row.line}: {field} of {key!r} is {found!r}, but {first.path}, line"
            f" {expected.line} says {wanted!r}. They were made from different corpora: evaluate both again."
        )


def _read_gates(file: _File, ids: list[str]) -> np.ndarray | None:
    """Gates [U, E]; rows of nan where an utterance has none."""
    found = [file.rows[i].gates for i in ids]
    widths = Counter(len(gates) for gates in found if gates is not None)
    if not widths:
        return None
    width = widths.most_common(1)[0][0]  # so that the odd line is blamed
    for i, gates in zip(ids, found, strict=True):
        if gates is not None and len(gates) != width:
            raise ValueError(
                f"{file.path}, line {file.rows[i].line}: gates of {i!r} are {gates!r}, expected {width} numbers"
                " as in the other lines."
            )
    return np.array([[np.nan] * width if gates is None else gates for gates in found], dtype=np.float64)


def _describe(folder: Path) -> dict[str, Any]:
    path = folder / "system.json"
    if not path.is_file():  # evaluate writes it last
        status = "not run: its evaluation was interrupted, run it again"
        known = systems.BY_KEY.get(folder.name)
        name = known.name(v2="backbone", v3="second backbone") if known else folder.name
        return {"key": folder.name, "name": name, "kind": known.kind if known else "asr+mt", "status": status}
    found = read_json(path)
    for field in ("key", "name", "kind", "status"):
        if not isinstance(found.get(field), str):
            raise ValueError(f"{path}, line 1: field {field!r} is {found.get(field)!r}, expected a string.")
    if found["key"] != folder.name:
        raise ValueError(
            f"{path}, line 1: key is {found['key']!r}, but the folder is {folder.name!r}. Was a folder renamed or"
            " swapped? Evaluate both systems again."
        )
    if found["status"] != "run" and not found["status"].startswith("not run: "):
        raise ValueError(f"{path}, line 1: status is {found['status']!r}, expected 'run' or 'not run: REASON'.")
    return found


def _check_own(file: _File, about: dict[str, Any]) -> None:
    """The file is the one that its system.json describes."""
    found = len(file.rows)
    if "utterances" in about and about["utterances"] != found:
        raise ValueError(
            f"{file.path}, line {found} (the last): {found} utterances, but system.json beside it says"
            f" {about['utterances']}. Evaluate this system again."
        )
    if "sha256" in about:
        digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
        if digest != about["sha256"]:
            raise ValueError(
                f"{file.path}, line 1: the file's SHA-256 is {digest}, but system.json beside it says"
                f" {about['sha256']}. It was changed or swapped: evaluate this system again."
            )
    if about["kind"] == "mt":  # translators are given the reference: anything else came from a recogniser
        at = list(SHARED).index("reference")
        for row in file.rows.values():
            if row.hypothesis != row.shared[at]:
                raise ValueError(
                    f"{file.path}, line {row.line}: hypothesis {row.hypothesis!r} is not the reference, as it is for"
                    " every system of kind 'mt'. Was the file swapped with another system's? Evaluate both again."
                )


def read_evaluation(folder: Path) -> tuple[Utterances, list[SystemRun]]:
    """Every system of the table, run or not, over the one set of utterances in `folder` (WORKDIR/eval, say).

    Order: the table's, then systems that it does not know, by key.
    Raises: ValueError naming file and line of duplicate ids, cut lines, fields missing, utterances that not all
    systems cover, and references on which systems disagree. FileNotFoundError when nothing was evaluated.
    """
    present = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()} if folder.is_dir() else {}
    described = {key: _describe(path) for key, path in present.items()}
    files: dict[str, _File] = {}
    pool: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for key, about in described.items():
        if about["status"] != "run":
            continue
        files[key] = _read_hypotheses(present[key] / "hypotheses.jsonl", pool)
        _check_own(files[key], about)
    if not files or not any(file.rows for file in files.values()):
        raise FileNotFoundError(
            f"{folder}: no system has been evaluated; run `--phase=evaluate` with this workdir first."
        )
    # The fullest file is the yardstick, so that a truncated one is blamed and not its neighbours.
    first = max(files.values(), key=lambda file: len(file.rows))
    for file in files.values():
        _check_same(first, file)
    ids = sorted(first.rows)
    columns = {field: [first.rows[i].shared[at] for i in ids] for at, field in enumerate(SHARED)}
    order = [s.key for s in systems.SYSTEMS] + [k for k in described if k not in systems.BY_KEY]
    return Utterances(ids, columns), [_system_run(key, described.get(key), files.get(key), ids) for key in order]


def _system_run(key: str, about: dict[str, Any] | None, file: _File | None, ids: list[str]) -> SystemRun:
    if about is None:
        system = systems.get(key)
        name = system.name(v2="backbone", v3="second backbone")
        about = {"name": name, "kind": system.kind, "status": "not run: not part of this run's evaluation"}
    rows = [] if file is None else [file.rows[i] for i in ids]
    return SystemRun(
        key=key,
        name=about["name"],
        kind=about["kind"],
        status=about["status"],
        mt=about.get("mt"),
        without_mt=about.get("without_mt", ""),
        hypotheses=[row.hypothesis for row in rows],
        translations=[row.translation for row in rows],
        flags=[row.flags for row in rows],
        gates=None if file is None else _read_gates(file, ids),
        clusters=[row.cluster for row in rows],
        judged={} if file is None else semantic.read(file.path.parent, about.get("sha256")),
    )
