"""Runs systems on one set of clips; each keeps what it made for as long as nothing that it depends on has changed.

Files of a system, in FOLDER/<key>:
  transcripts.jsonl  what was recognised, a line as soon as it is; a killed run goes on after the last whole line
  transcripts.json   the fingerprint of what recognised
  hypotheses.jsonl   one line an utterance, with its translation
  system.json        name, kind, "run" or "not run: reason", fingerprint, SHA-256 of hypotheses.jsonl; written last
What was made with other settings is moved to FOLDER.previous/<key>.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from jaxmoe import mt
from jaxmoe.data import prepared
from jaxmoe.eval import systems
from jaxmoe.eval.systems import Clip, NotRun, Part, System

Row = dict[str, Any]
FIELDS = (
    *("id", "speaker", "voice", "channel", "etiology", "severity", "sex", "language", "prompt", "prompt_seen"),
    *("category", "duration_s", "simulated", "transcript"),
)
WITHOUT_EFFECT = {"max_chars", "acknowledge_privacy"}  # on what comes out


@dataclasses.dataclass(frozen=True)
class Job:
    """Systems to run on clips.

    Attributes:
      folder: WORKDIR/eval, or the folder of another set of clips.
      items: the clips' rows of metadata, in the same order.
      source: stands for the clips' sound: another one, and everything is recognised again.
    """

    config: ConfigDict
    workdir: Path
    folder: Path
    items: Sequence[Row]
    clips: Sequence[Clip]
    source: str
    translate: bool = True


@dataclasses.dataclass
class _State:
    """A system under way: its row of the table, what it recognised, what translates."""

    system: System
    about: dict[str, Any]
    found: list[Row]
    translator: mt.Translator | None = None


def split_clips(workdir: Path, split: str) -> list[Clip]:
    """The clips of a split of the prepared corpus, read when they are wanted, in the order of its metadata."""
    source = prepared.open_split(workdir, split)

    def read(index: int) -> np.ndarray:
        return source[index]["audio"].astype(np.float32) / 32768.0

    rows = prepared.open_metadata(workdir, split)
    return [Clip(x["id"], x["text"], x["duration_s"], functools.partial(read, i)) for i, x in enumerate(rows)]


def corpus_source(workdir: Path) -> str:
    """Stands for the sound of the prepared corpus: its counts, and the fingerprint that `prepare` returns."""
    record = workdir / "corpus" / "phase.json"
    files = json.loads(record.read_text()).get("result") if record.exists() else None
    counts = (workdir / "corpus" / "summary.json").read_bytes()
    return hashlib.sha256(counts + (files or "").encode()).hexdigest()[:16]


def digest(value: object) -> str:
    """16 hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def depends_on(config: ConfigDict, workdir: Path, part: Part | None) -> dict[str, object]:
    """All that the output of a part depends on: its function, configuration fields, fingerprints of phases.

    Raises: NotRun naming the phase that has not been done.
    """
    if part is None:
        return {}
    out: dict[str, object] = {"make": part.make}
    for folder in part.reads:
        record = workdir / folder / "phase.json"
        phase = json.loads(record.read_text()) if record.exists() else {}
        if not phase.get("done"):
            raise NotRun(f"--phase={phase.get('phase', folder)} has not been run")
        out[folder] = phase.get("result") or phase["fingerprint"]
    for name in part.groups:
        value = config
        for step in name.split("."):
            value = value[step]
        fields = value.to_dict() if isinstance(value, ConfigDict) else value
        out[name] = {k: v for k, v in fields.items() if k not in WITHOUT_EFFECT} if isinstance(fields, dict) else fields
    return out


def evaluate(job: Job, keys: Iterable[str]) -> dict[str, str]:
    """Runs what is missing of the systems `keys`; returns key -> status.

    All recognise first, then all texts are translated at once, which batches best.
    """
    wanted = set(keys)
    if unknown := wanted - systems.BY_KEY.keys():
        raise ValueError(f"systems {sorted(unknown)} are unknown; there are {sorted(systems.BY_KEY)}.")
    _drop_others(job.folder, wanted)
    translators: dict[Part, mt.Translator | str] = {}
    states = []
    for system in (s for s in systems.SYSTEMS if s.key in wanted):
        state = _start(job, system, translators)
        if state is not None:
            states.append(state)
    for translator in {id(s.translator): s.translator for s in states}.values():
        if translator is not None:
            translator.translate([x["hypothesis"] for s in states if s.translator is translator for x in s.found])
    for state in states:
        _finish(job, state)
    return {key: _about(job.folder / key).get("status", "") for key in sorted(wanted)}


def _start(job: Job, system: System, translators: dict[Part, mt.Translator | str]) -> _State | None:
    """What a system recognises, ready to be translated; None where it is done, or cannot be run."""
    names = {"v2": job.config.model.backbone, "v3": job.config.model.second or "none", "llm": _llm(job.config)}
    about: dict[str, Any] = {"key": system.key, "name": system.name(**names), "kind": system.kind, "mt": None}
    folder = job.folder / system.key
    try:
        recognised = depends_on(job.config, job.workdir, system.recogniser)
        recognised["clips"] = digest([job.source, [(x["id"], x["text"]) for x in job.items]])
        translator, translated = _translator(job, system, translators)
        table = digest([FIELDS, *job.items])
        settings = {"recognised": recognised, "translated": translated, "table": table}
        if _about(folder).get("fingerprint") == digest(settings) and _is_whole(folder):
            print(f"{system.key}: kept, nothing that it depends on has changed")
            return None
        _move_aside(job.folder, system.key, keep_transcripts=digest(recognised))
        mt_name = translator.name if translator else None
        about |= {"name": system.name(**names, mt=mt_name or "no MT"), "mt": mt_name, "fingerprint": digest(settings)}
        if isinstance(translated, str) and job.config.mt.engine != "none":
            print(f"{system.key}: without German: {translated}")
            about["without_mt"] = translated
        return _State(system, about, _transcripts(job, system, digest(recognised)), translator)
    except NotRun as reason:
        print(f"{system.key}: not run: {reason}")
        _move_aside(job.folder, system.key, keep_transcripts="")
        write_about(folder, about | {"status": f"not run: {reason}", "utterances": 0})
        return None


def _llm(config: ConfigDict) -> str:
    """What SALMONN's rows say of it: its language model, and that it is no release where it is none."""
    c = config.salmonn
    return f" ({Path(c.llm).name}{'' if c.weights else ', connector from scratch'})" if c.llm else ""


def _translator(
    job: Job, system: System, translators: dict[Part, mt.Translator | str]
) -> tuple[mt.Translator | None, object]:
    """A system's translator, made once for all that share it, and what its output depends on.

    A system that recognises does without where there is none. Raises: NotRun where there is nothing else.
    """
    part = system.translator if job.translate else None
    if part is None:
        return None, None
    settings = depends_on(job.config, job.workdir, part)
    if part not in translators:
        try:
            translators[part] = part.function()(job.config, job.workdir, part)
        except mt.TranslatorUnavailable as error:
            translators[part] = str(error)
    found = translators[part]
    if not isinstance(found, str):
        return found, settings | {"signature": found.signature}
    if system.kind == "mt":
        raise NotRun(found)
    return None, found


def _transcripts(job: Job, system: System, fingerprint: str) -> list[Row]:
    """What a system recognises, in the order of the items; from another system with the same recogniser if it can."""
    if system.recogniser is None:
        return [{"id": x["id"], "hypothesis": x["text"], "gates": None} for x in job.items]
    from tqdm import tqdm

    folder = job.folder / system.key
    path = folder / "transcripts.jsonl"
    _borrow(job.folder, folder, fingerprint)
    rows = {x["id"]: x for x in _whole_lines(path)}
    write_lines(path, rows.values())  # without a line that was cut off
    _write_json(folder / "transcripts.json", {"fingerprint": fingerprint})
    left = [clip for clip in job.clips if clip.id not in rows]
    bar = tqdm(total=len(job.clips), initial=len(rows), desc=f"recognise {system.key}", unit="utt")
    with open(path, "a", encoding="utf-8") as file, bar:
        batches = system.recogniser.function()(job.config, job.workdir, system.recogniser, left) if left else ()
        for batch in batches:
            file.write("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in batch))
            file.flush()
            rows |= {x["id"]: x for x in batch}
            bar.update(len(batch))
    if missing := [x["id"] for x in job.items if x["id"] not in rows]:
        raise ValueError(f"{system.key}: its recogniser gave nothing for {len(missing)} clips, e.g. {missing[0]!r}.")
    return [rows[x["id"]] for x in job.items]


def _borrow(root: Path, folder: Path, fingerprint: str) -> None:
    """Copies whole transcripts of another system that were made by the same recogniser."""
    if (folder / "transcripts.json").exists():
        return
    for other in sorted(root.glob("*/transcripts.json")):
        if json.loads(other.read_text())["fingerprint"] == fingerprint:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(other.with_suffix(".jsonl"), folder / "transcripts.jsonl")
            return


def _finish(job: Job, state: _State) -> None:
    """Writes hypotheses.jsonl and, last, system.json."""
    folder = job.folder / state.system.key
    texts = [x["hypothesis"] for x in state.found]
    german = state.translator.translate(texts) if state.translator else [x.get("translation", "") for x in state.found]
    cluster = _clusters(job.workdir)
    lines = [
        {
            **{k: item[k] for k in FIELDS},
            "reference": item["text"],
            "translation_reference": item["translation"],
            "translation_origin": item["translation_origin"],
            **{"avg_logprob": None, "compression_ratio": None, "flags": [], "gates": None},
            **x,
            "translation": translation,
            "cluster": cluster.get(item["id"]),
        }
        for item, x, translation in zip(job.items, state.found, german, strict=True)
    ]
    file = folder / "hypotheses.jsonl"
    write_lines(file, lines)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()  # so that files of two systems cannot be mixed up
    write_about(folder, state.about | {"status": "run", "utterances": len(lines), "sha256": sha256})


def _clusters(workdir: Path) -> dict[str, int]:
    """id -> HDBSCAN cluster, -1 for noise."""
    path = workdir / "clusters" / "assignments.jsonl"
    return {x["id"]: x["cluster"] for x in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "system.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _is_whole(folder: Path) -> bool:
    """Whether hypotheses.jsonl is the one that system.json names."""
    file = folder / "hypotheses.jsonl"
    return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == _about(folder).get("sha256")


def _move_aside(root: Path, key: str, keep_transcripts: str) -> None:
    """Moves a system's files to ROOT.previous/<key>, but for transcripts with the fingerprint given."""
    folder, aside = root / key, root.with_name(root.name + ".previous") / key
    record = folder / "transcripts.json"
    if record.exists() and json.loads(record.read_text())["fingerprint"] == keep_transcripts:
        for name in ("system.json", "hypotheses.jsonl"):
            (folder / name).unlink(missing_ok=True)
    elif _about(folder).get("status") == "run" or record.exists():
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)


def _drop_others(root: Path, wanted: set[str]) -> None:
    """Systems that the configuration no longer names leave the table."""
    for path in root.glob("*/system.json"):
        if path.parent.name not in wanted:
            aside = root.with_name(root.name + ".previous") / path.parent.name
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.parent.rename(aside)


def _whole_lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows), encoding="utf-8")
    os.replace(temporary, path)


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """FOLDER/system.json."""
    _write_json(folder / "system.json", about)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)
