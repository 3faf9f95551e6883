"""Who a model was trained on, and who is to be forgotten: by a hash, so that neither list names anybody."""

from collections.abc import Iterable, Iterator
import hashlib
import json
import os
from pathlib import Path

from jaxmoe.data.corpora import Recording, Refused

FILE = "lineage.json"  # in the folder of each trained phase
FORGOTTEN = "forgotten.json"  # in the workdir


def pseudonym(speaker: str) -> str:
    """What stands for a speaker in lineages: 16 hexadecimal digits."""
    return hashlib.blake2b(speaker.encode("utf-8", "replace"), digest_size=8).hexdigest()


def write(folder: Path, speakers: Iterable[str], start: Path | None = None) -> None:
    """Notes in `folder` whose utterances what is trained there sees, or the model in `start`, its origin, has seen."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = {pseudonym(s) for s in speakers} | (_seen(start / FILE) if start else set())
    (folder / FILE).write_text(json.dumps({"speakers": sorted(seen)}))


def _seen(note: Path) -> set[str]:
    return set(json.loads(note.read_text())["speakers"]) if note.exists() else set()


def trained_on(workdir: Path, speaker: str) -> list[Path]:
    """Folders under `workdir` whose models have seen that speaker."""
    return [note.parent for note in sorted(workdir.rglob(FILE)) if pseudonym(speaker) in _seen(note)]


def without_lineage(workdir: Path) -> list[Path]:
    """Folders under `workdir` that hold a model and do not say whom it has seen."""
    models = (path for name in ("checkpoints", "params") for path in workdir.rglob(name) if path.is_dir())
    trained = sorted({path.parent for path in models if "checkpoints" not in path.relative_to(workdir).parts[:-1]})
    return [folder for folder in trained if not (folder / FILE).exists()]


def forgotten(workdir: Path) -> frozenset[str]:
    """Pseudonyms of the speakers that `workdir` must not take in again."""
    path = workdir / FORGOTTEN
    return frozenset(json.loads(path.read_text())["speakers"]) if path.exists() else frozenset()


def forget(workdir: Path, speaker: str) -> None:
    """Adds a speaker to those of `forgotten`."""
    names = sorted(forgotten(workdir) | {pseudonym(speaker)})
    temporary = workdir / f"{FORGOTTEN}.tmp"
    temporary.write_text(json.dumps({"speakers": names}))
    os.replace(temporary, workdir / FORGOTTEN)


def without(
    gone: frozenset[str], scanned: Iterable[tuple[Recording | Refused, str]]
) -> Iterator[tuple[Recording | Refused, str]]:
    """What is listed but for those who are forgotten."""
    return (x for x in scanned if pseudonym(x[0].speaker) not in gone) if gone else iter(scanned)
