"""The Speech Accessibility Project's corpus, as its users receive it (https://speechaccessibilityproject.beckman.illinois.edu).

    <release>/<split>/<speaker>/<speaker>.json          the speaker's wavs beside it
    <release>/<split>/{metadata/<speaker>.json,audio/*.wav}

`path` may be a split, a release, or a folder of several: of a file that several releases hold the newest counts, and
so does the newest split of a speaker. `dev` is the evaluation split where no `test` is there; validation is then drawn
from the speakers of train.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
import json
import os
from pathlib import Path
import re
from typing import Any

from jaxmoe.data import markup
from jaxmoe.data.corpora import Recording, Refused, words

ETIOLOGIES = {  # lower case, as written in the metadata -> as jaxmoe writes it
    "parkinson's disease": "Parkinson's disease",
    "parkinsons disease": "Parkinson's disease",
    "als": "ALS",
    "amyotrophic lateral sclerosis": "ALS",
    "cerebral palsy": "cerebral palsy",
    "down syndrome": "Down syndrome",
    "down's syndrome": "Down syndrome",
    "stroke": "stroke",
}
TRAIN, DEV, TEST = {"train", "training"}, {"dev", "validation", "valid"}, {"test", "test1", "test2", "evaluation"}
FIRST_LANGUAGE = "Do you consider U.S. English to be your first language"
LANGUAGES = "What language(s) do you speak"
_RELEASE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Unit:
    """A speaker's metadata file, the folder of its sound, and where in the tree they are."""

    metadata: Path
    audio: Path
    split: str  # as the folder is called, lower case
    release: str  # a date, or ""


def recordings(path: str, seed: int = 0, *, disfluencies: bool = False) -> Iterator[Recording | Refused]:
    """Recordings of all speakers under `path`.

    Args:
      path: a split, a release or a folder of releases.
      seed: not used.
      disfluencies: whether `text` keeps "(uh)" and the like; `transcript` keeps all markup in any case.

    Raises:
      ValueError: `path` holds no metadata.
    """
    root = Path(path)
    if not path or not root.is_dir():
        raise ValueError(f"config.data.path={path!r}: no such folder; name a release of SAP, or one of its splits.")
    units: list[Unit] = []
    faults: list[Refused] = []
    _scan(root, _release(root.resolve().as_posix()), _split(root.name), units, faults)
    if not units:
        raise ValueError(
            f"{root}: found no <speaker>/<speaker>.json and no metadata/*.json; expected a release of SAP."
        )
    yield from faults
    official = _official({unit.split for unit in units})
    by_speaker: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        by_speaker[unit.metadata.stem].append(unit)
    unlisted = _Unlisted(units)
    for name in sorted(by_speaker):
        newest_first = sorted(by_speaker[name], key=lambda u: (u.release, u.metadata.as_posix()), reverse=True)
        split = official[newest_first[0].split]
        seen: set[str] = set()
        for unit in newest_first:
            listed: set[str] = set()
            yield from _speaker(unit, split, seen, listed, disfluencies)
            yield from unlisted.strike(unit.audio, listed)


def _official(found: set[str]) -> dict[str, str]:
    """Folder name -> our split."""
    has_test = bool(found & TEST)
    out = dict.fromkeys(TRAIN, "train") | dict.fromkeys(DEV, "validation" if has_test else "evaluation")
    return out | dict.fromkeys(TEST, "evaluation") | {"": ""}


def _split(name: str) -> str:
    return name.lower() if name.lower() in TRAIN | DEV | TEST else ""


def _release(path: str) -> str:
    return max(_RELEASE.findall(path), default="")


def _scan(folder: Path, release: str, split: str, units: list[Unit], faults: list[Refused]) -> None:
    """Adds the speakers below `folder`, and the folders whose sound has no metadata."""
    jsons, folders, sound = [], [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.endswith(".json") and not entry.name.startswith("."):
                jsons.append(entry.name)
            else:
                sound += entry.name.lower().endswith(".wav")
    if {"metadata", "audio"} <= set(folders):
        for metadata in sorted((folder / "metadata").glob("*.json")):
            units.append(Unit(metadata, folder / "audio", split, release))
        folders = [f for f in folders if f not in ("metadata", "audio")]
    units += [
        Unit(folder / name, folder, split, release) for name in sorted(jsons) if sound or name[:-5] == folder.name
    ]
    if sound and not jsons:
        detail = f"{sound} sound files, no {folder.name}.json"
        faults.append(Refused(folder.as_posix(), "no metadata", detail, source=str(folder)))
    for name in sorted(folders):
        _scan(folder / name, max(release, _release(name)), _split(name) or split, units, faults)


class _Unlisted:
    """Sound files that no metadata names: each folder's, once all metadata that speak of it have been read."""

    def __init__(self, units: list[Unit]) -> None:
        self._waiting = Counter(unit.audio for unit in units)
        self._left: dict[Path, set[str]] = {}

    def strike(self, folder: Path, listed: set[str]) -> Iterator[Refused]:
        """One of the folder's metadata files names `listed`; yields what is left after the last of them."""
        if folder not in self._left:
            names = os.listdir(folder) if folder.is_dir() else []
            self._left[folder] = {name for name in names if name.lower().endswith(".wav")}
        self._left[folder] -= listed
        self._waiting[folder] -= 1
        if not self._waiting[folder]:
            for name in sorted(self._left.pop(folder)):
                path = str(folder / name)
                yield Refused(f"{_stem(name)} (unlisted)", "not in the metadata", "no JSON lists it", source=path)


def _speaker(
    unit: Unit, split: str, seen: set[str], listed: set[str], disfluencies: bool
) -> Iterator[Recording | Refused]:
    """The recordings of one metadata file, whose names are added to `listed`.

    `seen` are the names that this or a newer release has listed.
    """
    source = str(unit.metadata)
    try:
        about = json.loads(unit.metadata.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        yield Refused(unit.metadata.as_posix(), "unreadable metadata", f"not JSON: {error}"[:300], source=source)
        return
    if not isinstance(about, dict) or not isinstance(about.get("Files"), list):
        detail = f"found {type(about).__name__}, expected an object with the list Files"
        yield Refused(unit.metadata.as_posix(), "unreadable metadata", detail, source=source)
        return
    known = _about_speaker(about, unit)
    who = {"speaker": known["speaker"], "etiology": known["etiology"]}
    for number, file in enumerate(about["Files"]):
        name = words(file.get("Filename")) if isinstance(file, dict) else ""
        listed.add(name)
        if not name or os.path.basename(name) != name or name in (".", ".."):
            detail = f"Files[{number}].Filename: found {name[:100]!r}, expected a file's name"
            yield Refused(f"{source}#{number}", "unreadable metadata", detail, source=source, **who)
        elif name in seen:
            detail = "listed before, in this or a newer release"
            yield Refused(_stem(name), "duplicate file", detail, source=source, **who)
        else:
            seen.add(name)
            yield _recording(file, name, unit, split, known, disfluencies)


def _about_speaker(about: dict[str, Any], unit: Unit) -> dict[str, Any]:
    etiology = words(about.get("Etiology"))
    return {
        "speaker": words(about.get("Contributor ID")) or unit.metadata.stem,
        "etiology": ETIOLOGIES.get(markup.straight(etiology).lower(), etiology) or "unknown",
        "severity": _severity(about["Files"]),
        "language": _language(about),
    }


def _language(about: dict[str, Any]) -> str:
    """Mother tongue from the language questions: "en-US", or what is spoken besides."""
    answers = {key.rstrip("?"): words(value) for key, value in about.items() if isinstance(key, str)}
    first = answers.get(FIRST_LANGUAGE, "").lower()
    if first.startswith("y"):
        return "en-US"
    return f"not en-US: {answers.get(LANGUAGES) or 'unknown'}" if first.startswith("n") else ""


def _severity(files: list[Any]) -> str:
    """The speaker's mean rating of intelligibility, rounded (1 is typical speech); "unknown" without ratings."""
    levels = []
    for rating in (r for f in files if isinstance(f, dict) for r in _ratings(f)):
        dimension = words(rating.get("Dimension Description")).lower()
        try:
            level = float(words(rating.get("Level")))
        except ValueError:
            continue
        if "intelligib" in dimension and 0 <= level <= 10:
            levels.append(level)
    return f"intelligibility {round(sum(levels) / len(levels))}" if levels else "unknown"


def _ratings(file: dict[str, Any]) -> list[dict[str, Any]]:
    ratings = file.get("Ratings")
    return [r for r in ratings if isinstance(r, dict)] if isinstance(ratings, list) else []


def _recording(
    file: dict[str, Any], name: str, unit: Unit, split: str, known: dict[str, Any], disfluencies: bool
) -> Recording:
    prompt = file.get("Prompt")
    prompt = prompt if isinstance(prompt, dict) else {}
    transcript = words(prompt.get("Transcript"))
    spoken, fluent = markup.readings(transcript)
    translation = words(prompt.get("Translation")) or words(file.get("Translation"))
    categories = (words(prompt.get(f"{part} Description")) for part in ("Category", "Sub Category"))
    ratings = _ratings(file)
    path = os.path.join(unit.audio, name)
    return Recording(
        id=_stem(name),
        text=spoken if disfluencies else fluent or spoken,
        path=path,
        source=path,
        transcript=transcript,
        translation=translation,
        translation_origin="corpus" if translation else "",
        prompt=" ".join(words(prompt.get("Prompt Text")).lower().split()),
        category=" / ".join(filter(None, categories)),
        ratings=json.dumps(ratings, ensure_ascii=True, sort_keys=True) if ratings else "",
        split=split,
        **known,
    )


def _stem(name: str) -> str:
    return name[:-4] if name.lower().endswith(".wav") else name
