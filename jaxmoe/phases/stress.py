"""Recognises what the evaluation split does not hold: speech under noise, silence, and other people's recordings.

Reads   WORKDIR/corpus, the table config.stress.recordings, and what the systems need (jaxmoe/eval/systems.py)
Writes  WORKDIR/stress/noise/<system>/       utterances of the evaluation split, clean and under each noise, and silence
        WORKDIR/stress/recordings/<system>/  the recordings of the table (files as in WORKDIR/eval)
        WORKDIR/stress/rejected.jsonl        recordings of the table that cannot be used, and why

Optional: config.stress.systems names the systems, () for none. Nothing is translated.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
import functools
from pathlib import Path
from typing import Any
import zlib

from ml_collections import ConfigDict
import numpy as np

from jaxmoe.data import noise, prepared
from jaxmoe.data.audio import SAMPLE_RATE
from jaxmoe.data.checks import Limits, Rejection, read_checked
from jaxmoe.data.corpora import manifest, read_file
from jaxmoe.eval.run import FIELDS, Job, corpus_source, digest, evaluate, split_clips, write_lines
from jaxmoe.eval.systems import Clip

Row = dict[str, Any]
SILENT_CLIPS, SILENT_SECONDS = 10, 5.0  # noise alone, 60 dB below full scale: a quiet room with nobody in it
UNTRANSLATED = {"translation": "", "translation_origin": ""}


def run(config: ConfigDict, workdir: Path) -> str:
    """Returns a digest of what all systems wrote.

    Raises: ValueError for an unknown noise or a table that cannot be read.
    """
    c, workdir, folder = config.stress, Path(workdir), Path(workdir) / "stress"
    items, clips = noisy_clips(workdir, c.utterances, c.noises, c.snr_db, config.seed) if c.utterances else ([], [])
    source = f"{corpus_source(workdir)} {config.seed}"
    job = Job(config, workdir, folder / "noise", items, clips, source, translate=False)
    evaluate(job, c.systems if c.utterances else ())  # without systems, those of an earlier run are moved aside
    items, clips, rejected = table_clips(c.recordings, c.columns, config.quality) if c.recordings else ([], [], [])
    write_lines(folder / "rejected.jsonl", rejected)
    source = digest([(x["path"], *x["stat"]) for x in items])
    job = Job(config, workdir, folder / "recordings", items, clips, source, translate=False)
    evaluate(job, c.systems if items else ())
    return digest([p.read_text() for p in sorted(folder.glob("*/*/system.json"))])


def noisy_clips(
    workdir: Path, utterances: int, noises: Sequence[str], snr_db: Sequence[float], seed: int
) -> tuple[list[Row], list[Clip]]:
    """`utterances` of the evaluation split, clean and under every noise at every level, and clips without speech.

    The condition stands in `channel`: "clean", "babble 10 dB", "silence". One noise of an utterance is the same at
    every level.
    """
    if unknown := set(noises) - set(noise.NOISES):
        raise ValueError(f"config.stress.noises: {sorted(unknown)} unknown; there are {', '.join(noise.NOISES)}.")
    chosen = spread(prepared.open_metadata(workdir, "evaluation"), utterances)
    clips = {clip.id: clip for clip in split_clips(workdir, "evaluation")}
    if utterances and "babble" in noises and len({x["speaker"] for x in chosen}) < 2:
        print("stress: babble is left out, which takes other speakers' voices; there is one speaker.")
        noises = [name for name in noises if name != "babble"]
    items, out = [], []

    def put(item: Row, condition: str, clip: Clip, read: Any) -> None:
        id_ = f"{item['id']}@{condition}"
        known = {k: item[k] for k in FIELDS} | {"id": id_, "channel": condition}
        items.append(known | {"text": clip.text, **UNTRANSLATED})
        out.append(Clip(id_, clip.text, clip.duration_s, read))

    for item in chosen:
        clip = clips[item["id"]]
        others = [clips[x["id"]].read for x in chosen if x["speaker"] != item["speaker"]]
        put(item, "clean", clip, clip.read)
        for name in noises:
            for level in snr_db:
                read = functools.partial(_mixed, clip, name, level, seed, others)
                put(item, f"{name} {level:g} dB", clip, read)
    nobody = dict.fromkeys(FIELDS, "") | {"prompt_seen": False, "simulated": True, "duration_s": SILENT_SECONDS}
    for number in range(SILENT_CLIPS):
        read = functools.partial(silent_clip, number, seed)
        put(nobody | {"id": str(number), "speaker": "nobody"}, "silence", Clip("", "", SILENT_SECONDS, read), read)
    return items, out


def spread(items: Sequence[Row], number: int) -> list[Row]:
    """`number` of the items, evenly over etiologies, severities and speakers, whatever their order."""
    by_speaker: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for item in sorted(items, key=lambda x: (zlib.crc32(x["id"].encode()), x["id"])):
        by_speaker[item["etiology"], item["severity"], item["speaker"]].append(item)
    rank = {id(x): (n, speaker) for speaker, rows in by_speaker.items() for n, x in enumerate(rows)}
    first = sorted(items, key=lambda x: (rank[id(x)][0], zlib.crc32(x["speaker"].encode()), rank[id(x)][1]))
    return first[:number]


def _mixed(clip: Clip, name: str, level: float, seed: int, others: Sequence[Any]) -> np.ndarray:
    key = zlib.crc32(f"{clip.id}/{name}".encode())
    rng = np.random.default_rng([seed, key])
    talkers = [others[i] for i in rng.permutation(len(others))[: noise.TALKERS]]
    return noise.add(clip.read(), name, level, rng, talkers)


def silent_clip(number: int, seed: int) -> np.ndarray:
    """A quiet room, float32 [n]."""
    rng = np.random.default_rng([seed, number, 0x51])
    return (rng.standard_normal(int(SILENT_SECONDS * SAMPLE_RATE)) * 1e-3).astype(np.float32)


def table_clips(path: str, columns: str, limits: ConfigDict) -> tuple[list[Row], list[Clip], list[Row]]:
    """The recordings of a manifest that can be used, and those that cannot with the reason.

    limits: config.quality, which holds here as well.
    """
    items, clips, rejected = [], [], []
    bounds = Limits(**limits)
    for r in manifest.recordings(path, columns=columns):
        samples = read_checked("manifest", r, bounds)
        if isinstance(samples, Rejection):
            rejected.append({"id": r.id, "source": r.source, **asdict(samples)})
            continue
        seconds = len(samples) / SAMPLE_RATE
        known = {k: v for k, v in vars(r).items() if k in FIELDS} | {"speaker": r.speaker or r.id}
        known |= {"text": r.text, "prompt_seen": False, "duration_s": seconds, **UNTRANSLATED}
        stat = Path(r.path).stat()
        items.append(known | {"path": r.path, "stat": (stat.st_size, stat.st_mtime_ns)})
        clips.append(Clip(r.id, r.text, seconds, functools.partial(read_file, r.path)))
    return items, clips, rejected
