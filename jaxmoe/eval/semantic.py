"""COMET and SemScore: translations judged by their meaning, by models of other projects; both are optional.

COMET is run as its own program: unbabel-comet asks for older numpy and transformers than jaxmoe, so it lives in an
environment of its own. SemScore is computed here, by sentence-transformers.
Source: Rei et al. 2020 (COMET), Aynetdinov and Akbik 2024 (SemScore).
"""

from collections.abc import Callable, Sequence
import json
from pathlib import Path
import shlex
import subprocess
import tempfile
from typing import Any, NamedTuple, TypedDict

from ml_collections import ConfigDict
import numpy as np

from jaxmoe.eval.systems import NotRun
from jaxmoe.writers import write_atomically

FILE = "semantic.json"


class Segment(NamedTuple):
    """What a judge is given: what was said, how a system translated it, how it is translated."""

    source: str
    translation: str
    reference: str


class Judged(TypedDict):
    """What a judge found of one system."""

    by: str  # what the configuration named
    scores: dict[str, float]  # by utterance


Judge = Callable[[str, Sequence[Segment]], list[float]]


def comet(command: str, segments: Sequence[Segment]) -> list[float]:
    """COMET of each segment, about 0 to 1.

    command: unbabel-comet's program with its options, "comet-score --gpus 0 --model Unbabel/wmt22-comet-da" say.
    Raises: NotRun with the program's last words where it cannot be started, fails, or leaves no scores.
    """
    with tempfile.TemporaryDirectory(prefix="jaxmoe-comet-") as name:
        folder = Path(name)
        for part in Segment._fields:
            lines = [" ".join(getattr(segment, part).split()) + "\n" for segment in segments]
            (folder / part).write_text("".join(lines), encoding="utf-8")
        out = folder / "scores.json"
        paths = {"-s": folder / "source", "-t": folder / "translation", "-r": folder / "reference", "--to_json": out}
        files = [str(part) for option in paths.items() for part in option]
        try:
            done = subprocess.run([*shlex.split(command), *files], capture_output=True, text=True, errors="replace")
        except (OSError, ValueError) as error:  # no such program; a quotation mark that is not closed
            raise NotRun(f"config.evaluate.comet={command!r} cannot be started: {error}") from error
        if done.returncode or not out.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing was said"]
            raise NotRun(f"config.evaluate.comet={command!r} ended with {done.returncode}: {said[0]}")
        (found,) = json.loads(out.read_text(encoding="utf-8")).values()
    return [float(row["COMET"]) for row in found]


def semscore(model: str, segments: Sequence[Segment]) -> list[float]:
    """Cosine, -1 to 1, of the sentence embeddings of each translation and its reference.

    model: a folder or hub id of sentence-transformers, "paraphrase-multilingual-mpnet-base-v2" say; safetensors only.
    Raises: NotRun where the package or the model is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise NotRun("SemScore needs sentence-transformers: pip install -e '.[semscore]'") from error
    try:
        encoder = SentenceTransformer(model, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        raise NotRun(f"config.evaluate.semscore={model!r}: {str(error).strip().splitlines()[0]}") from error
    translated, expected = (
        encoder.encode([getattr(segment, part) for segment in segments], normalize_embeddings=True)
        for part in ("translation", "reference")
    )
    return [float(cosine) for cosine in np.sum(np.asarray(translated) * np.asarray(expected), axis=1)]


JUDGES: dict[str, Judge] = {"comet": comet, "semscore": semscore}
NAMES = {"comet": "COMET", "semscore": "SemScore"}
DESCRIPTIONS = {
    "comet": "100 x mean of the utterances' COMET, given what was said: {by}",
    "semscore": "100 x mean cosine of translation and reference: sentence-transformers, {by}",
}


def judge(config: ConfigDict, folder: Path) -> None:
    """Writes FOLDER/<system>/semantic.json for the judges that config.evaluate names.

    A judge is asked once, for all that is new of all systems; one that cannot judge says why and leaves its column
    empty. The scores of other translations than those in hypotheses.jsonl are dropped.
    """
    wanted = {name: config.evaluate[name] for name in JUDGES if config.evaluate[name]}
    records = {about.parent: _record(about, wanted) for about in sorted(folder.glob("*/system.json"))}
    segments = {path: _segments(path / "hypotheses.jsonl") for path, record in records.items() if record}
    for name, settings in wanted.items():
        missing = [path for path in segments if name not in records[path]]
        new = list(dict.fromkeys(s for path in missing for s in segments[path].values()))
        if not new:
            continue
        print(f"{name}: {len(new)} translations of {len(missing)} systems are judged by {settings}")
        try:
            scores = dict(zip(new, JUDGES[name](settings, new), strict=True))
        except NotRun as reason:
            print(f"{name}: not run: {reason}")
            continue
        for path in missing:
            of = {id_: scores[segment] for id_, segment in segments[path].items()}
            records[path][name] = {"by": settings, "scores": of}
    for path, record in records.items():
        if record.keys() > {"sha256"}:
            write_atomically(path / FILE, json.dumps(record, ensure_ascii=False))
        else:
            (path / FILE).unlink(missing_ok=True)


def _record(about: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """What semantic.json says already and still holds; {} of a system that was not run."""
    sha256 = json.loads(about.read_text()).get("sha256")
    kept = {name: old for name, old in read(about.parent, sha256).items() if old["by"] == wanted.get(name)}
    return {"sha256": sha256} | kept if sha256 else {}


def read(folder: Path, sha256: str | None) -> dict[str, Judged]:
    """By judge, what is known of a system whose hypotheses.jsonl has this SHA-256; {} where it has another."""
    path = folder / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: found[name] for name in JUDGES if name in found and found["sha256"] == sha256}


def _segments(path: Path) -> dict[str, Segment]:
    """id -> segment of the utterances that have a reference, where the system translates at all."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not any(row["translation"] for row in rows):
        return {}
    return {
        row["id"]: Segment(row["reference"], row["translation"], row["translation_reference"])
        for row in rows
        if row["translation_reference"]
    }
