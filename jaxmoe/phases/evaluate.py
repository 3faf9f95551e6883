"""Runs every system of the table on the evaluation split: recognises, translates, keeps each utterance's line.

Reads   WORKDIR/corpus, WORKDIR/embeddings, WORKDIR/clusters, WORKDIR/{joint,baseline}/params
Writes  WORKDIR/eval/<system>/transcripts.jsonl  what was recognised, before translation
        WORKDIR/eval/<system>/hypotheses.jsonl   one line an utterance
        WORKDIR/eval/<system>/system.json        name, kind, "run" or "not run: reason"

A system that has its hypotheses is not run again; translations come from a cache shared by all runs.
"""

from collections.abc import Callable, Sequence
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from jaxmoe import mt
from jaxmoe.checkpoint import load_params
from jaxmoe.data import prepared
from jaxmoe.data.embeddings import Embeddings
from jaxmoe.eval.systems import SYSTEMS, System
from jaxmoe.model.moe import one_lora
from jaxmoe.system import Adapted, Recogniser
from jaxmoe.train.setup import Backbone, embeddings_folder, load_backbone
from jaxmoe.transcription import TranscribeOptions, decode_latents, transcribe
from jaxmoe.weights import cache_folder

Row = dict[str, Any]
FIELDS = (
    *("id", "speaker", "voice", "channel", "etiology", "severity", "sex", "language", "prompt", "prompt_seen"),
    *("duration_s", "simulated"),
)
# What a row may need that is trained -> the phase that trains it.
TRAINED = {"joint": "joint", "baseline": "baseline", "cascade": "cascade"}
MISSING = {  # what this version cannot train
    "distilled": "the decoder has not been distilled to German",
    "salmonn": "SALMONN's weights are not at hand",
    "salmonn-tuned": "SALMONN's weights are not at hand",
    "custom-mt": "no customised translator in this run",
    "tuned-mt": "no fine-tuned translator in this run",
}


class NotRun(ValueError):  # noqa: N818  a state of the run, not a fault
    """A system cannot be run here; the message is the reason shown in its row."""


def recogniser(config: ConfigDict, workdir: Path, system: System) -> tuple[Backbone, Recogniser]:
    """The recogniser that a row of the table needs.

    Raises:
      NotRun: if a checkpoint it needs has not been trained.
    """
    if "v3" in system.needs and not config.model.second:
        raise NotRun("config.model.second names no second backbone")
    backbone = load_backbone(config, config.model.second if "v3" in system.needs else None)
    trained = [n for n in system.needs if n in TRAINED]
    if not trained:
        return backbone, Recogniser(backbone.name, backbone.model.whisper, backbone.base, backbone.tokenizer)
    phase = TRAINED[trained[0]]
    model = one_lora(backbone.model, config.baseline.rank) if phase == "baseline" else backbone.model
    like = jax.eval_shape(model.init, jax.random.key(0), backbone.base)
    try:
        params = load_params(workdir / phase / "params", like)
    except FileNotFoundError as error:
        raise NotRun(f"--phase={phase} has not been run") from error
    return backbone, Adapted(
        system.key, model, backbone.base, backbone.tokenizer, params, **_only(config.embed, "context", "margin_s")
    )


def _only(group: ConfigDict, *names: str) -> dict[str, Any]:
    return {name: group[name] for name in names}


def recognise(config: ConfigDict, workdir: Path, system: System, items: Sequence[Row]) -> list[Row]:
    """Transcripts of the evaluation split by one system, in the order of `items`: id, hypothesis, gates, figures.

    Adapted systems read the latents they were trained on. A bare Whisper hears the audio as anybody would run it:
    windows of 30 s, timestamps, fallback.
    """
    from tqdm import tqdm

    backbone, model = recogniser(config, workdir, system)
    c = config.evaluate
    options = TranscribeOptions(
        beam_size=c.beam_size, best_of=1, batch_size=c.batch_size, temperatures=tuple(c.temperatures)
    )
    with tqdm(total=len(items), desc=f"recognise {system.key}", unit="utt") as bar:
        out: dict[str, Row] = {}
        if isinstance(model, Adapted):
            embeddings = Embeddings(embeddings_folder(workdir, backbone.name, "evaluation"))
            out = _from_latents(model, embeddings, items, options, bar.update)
        out |= _from_audio(model, workdir, [x for x in items if x["id"] not in out], options, bar.update)
    return [out[x["id"]] for x in items]


def _from_latents(
    model: Adapted,
    embeddings: Embeddings,
    items: Sequence[Row],
    options: TranscribeOptions,
    update: Callable[[int], Any],
) -> dict[str, Row]:
    short = [x["id"] for x in items if x["id"] in embeddings.row]
    short.sort(key=lambda id_: embeddings.length(embeddings.row[id_]))
    out = {}
    for start in range(0, len(short), options.batch_size):
        ids = short[start : start + options.batch_size]
        rows = [embeddings.row[i] for i in ids]
        latents, mask = pad([embeddings.latents(r) for r in rows])
        embedding = embeddings.pooled[rows]
        windows = decode_latents(model, latents, mask, embedding, options)
        gates = model.gates(embedding)
        for i, (id_, window) in enumerate(zip(ids, windows, strict=True)):
            out[id_] = {"id": id_, **window, "gates": None if gates is None else gates[i].tolist()}
        update(len(ids))
    return out


def pad(latents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Latents [S', D] of several utterances -> [B, S, D] and mask [B, S], S a multiple of 100 so that few compile."""
    size = -(-max(map(len, latents)) // 100) * 100
    padded = np.zeros((len(latents), size, latents[0].shape[-1]), np.float32)
    mask = np.zeros((len(latents), size), bool)
    for i, h in enumerate(latents):
        padded[i, : len(h)], mask[i, : len(h)] = h, True
    return padded, mask


def _from_audio(
    model: Recogniser,
    workdir: Path,
    items: Sequence[Row],
    options: TranscribeOptions,
    update: Callable[[int], Any],
) -> dict[str, Row]:
    """Window by window from the audio: bare Whispers, and recordings over 30 s, which have no latents."""
    if not items:
        return {}
    source = prepared.open_split(workdir, "evaluation")
    wanted = {x["id"] for x in items}
    rows = [i for i, x in enumerate(prepared.open_metadata(workdir, "evaluation")) if x["id"] in wanted]
    read = [lambda i=i: source[i]["audio"].astype(np.float32) / 32768.0 for i in rows]
    out = {}
    for progress in transcribe(model, read, options):
        if progress.error is not None:
            raise progress.error
        if progress.transcript is not None:
            id_ = source[rows[progress.index]]["id"]
            text = progress.transcript
            figures = {"avg_logprob": None, "compression_ratio": None, "flags": text.flags}
            out[id_] = {"id": id_, "hypothesis": text.text, **figures, "gates": None}
            update(1)
    return out


def clusters(workdir: Path) -> dict[str, int]:
    """id -> HDBSCAN cluster, -1 for noise."""
    path = workdir / "clusters" / "assignments.jsonl"
    return {x["id"]: x["cluster"] for x in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def transcripts(config: ConfigDict, workdir: Path, system: System, items: Sequence[Row]) -> list[Row]:
    """What a system recognises, kept in transcripts.jsonl; a row of MT alone reads the reference transcripts."""
    if system.kind == "mt":
        return [{"id": x["id"], "hypothesis": x["text"], "gates": None} for x in items]
    path = workdir / "eval" / system.key / "transcripts.jsonl"
    found = _kept(path, items)
    if not found:
        found = recognise(config, workdir, system, items)
        _write_lines(path, found)
    return found


def write_hypotheses(
    workdir: Path, system: System, items: Sequence[Row], found: Sequence[Row], german: Sequence[str]
) -> None:
    """WORKDIR/eval/<system>/hypotheses.jsonl."""
    cluster = clusters(workdir)
    lines = [
        {
            **{k: item[k] for k in FIELDS},
            "reference": item["text"],
            "translation_reference": item["translation"],
            "translation_origin": item["translation_origin"],
            **{"avg_logprob": None, "compression_ratio": None, "flags": []},
            **x,
            "translation": translation,
            "cluster": cluster.get(item["id"]),
        }
        for item, x, translation in zip(items, found, german, strict=True)
    ]
    _write_lines(workdir / "eval" / system.key / "hypotheses.jsonl", lines)


def _kept(path: Path, items: Sequence[Row]) -> list[Row]:
    """Transcripts of an earlier, interrupted run, if they are of these utterances."""
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return found if [x["id"] for x in found] == [x["id"] for x in items] else []


def _write_lines(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in rows))
    os.replace(temporary, path)


def make_translator(config: ConfigDict, engine: str) -> mt.Translator | str:
    """The translator of an engine, behind the shared cache, or why there is none."""
    try:
        return mt.make(**dict(config.mt) | {"engine": engine}, cache_path=cache_folder() / "translations.sqlite")
    except mt.TranslatorUnavailable as error:
        return str(error)


def run(config: ConfigDict, workdir: Path) -> None:
    """Recognises with every system first, then translates all texts at once, which batches best."""
    items = prepared.open_metadata(workdir, "evaluation")
    keys = {s.key for s in SYSTEMS}
    if unknown := set(config.evaluate.systems) - keys:
        raise ValueError(f"config.evaluate.systems: {sorted(unknown)} unknown; there are {sorted(keys)}.")
    translators: dict[str, mt.Translator | str] = {}
    ready: list[tuple[System, dict[str, Any], list[Row], mt.Translator | None]] = []
    for system in (s for s in SYSTEMS if s.key in config.evaluate.systems):
        names = {"v2": config.model.backbone, "v3": config.model.second or "none"}
        about: dict[str, Any] = {"key": system.key, "name": system.name(**names), "kind": system.kind, "mt": None}
        try:
            for need in system.needs:
                if need in MISSING:
                    raise NotRun(MISSING[need])
            engine = "local" if "local-mt" in system.needs else config.mt.engine
            translator = translators.setdefault(engine, make_translator(config, engine))
            if isinstance(translator, str) and system.kind == "mt":
                raise NotRun(translator)
            found = transcripts(config, workdir, system, items)
            chosen = None if isinstance(translator, str) else translator
            mt_name = chosen.name if chosen else "no MT"
            about |= {"name": system.name(**names, mt=mt_name, local_mt=mt_name), "mt": chosen and mt_name}
            ready.append((system, about, found, chosen))
        except NotRun as reason:
            print(f"{system.key}: not run: {reason}")
            _write_about(workdir, about | {"status": f"not run: {reason}", "utterances": 0})
    for translator in translators.values():
        if not isinstance(translator, str):
            mine = [found for _, _, found, chosen in ready if chosen is translator]
            translator.translate([x["hypothesis"] for found in mine for x in found])
    for system, about, found, chosen in ready:
        texts = [x["hypothesis"] for x in found]
        german = chosen.translate(texts) if chosen else [""] * len(texts)
        write_hypotheses(workdir, system, items, found, german)
        file = workdir / "eval" / system.key / "hypotheses.jsonl"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()  # so that files of two systems cannot be mixed up
        _write_about(workdir, about | {"status": "run", "utterances": len(found), "sha256": digest})


def _write_about(workdir: Path, about: dict[str, Any]) -> None:
    folder = workdir / "eval" / about["key"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "system.json").write_text(json.dumps(about, indent=2, ensure_ascii=False))
