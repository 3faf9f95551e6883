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


def write(folder: Path, speakers: Iterable[str]) -> None:
    """Notes in `folder` whose utterances what is trained there has seen."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({"speakers": sorted({pseudonym(s) for s in speakers})}))


def trained_on(workdir: Path, speaker: str) -> list[Path]:
    """Folders under `workdir` whose models have seen that speaker."""
    notes = sorted(workdir.rglob(FILE))
    return [note.parent for note in notes if pseudonym(speaker) in json.loads(note.read_text())["speakers"]]


def without_lineage(workdir: Path) -> list[Path]:
    """Folders under `workdir` that hold checkpoints and do not say whom they have seen."""
    trained = sorted({path.parent for path in workdir.rglob("checkpoints") if path.is_dir()})
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
