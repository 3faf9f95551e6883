"""What trimming the encoder's context costs: the 30 s that Whisper was trained on against the audio and a margin.

  python -m benchmarks.context --workdir=checkpoints/quickstart [--csv=CLIPS.csv]

Hears the evaluation split of a run, and the recordings of a table (columns path, transcript, speaker), with the run's
bare backbone and with its adapted system, greedily and without fallback. For each, against 30 s: WER and the paired
difference over speakers, texts that are not the same, and of the embedding that the gate reads the distance
(1 - cosine), beside that of two neighbouring clips as a scale.
"""

import argparse
from collections.abc import Sequence
import csv
import json
from pathlib import Path
import time

import numpy as np

from jaxmoe.compilation import enable_cache
from jaxmoe.data import prepared
from jaxmoe.data.audio import SAMPLE_RATE, load_audio, pad_or_trim, positions, window
from jaxmoe.eval import bootstrap, wer
from jaxmoe.system import Recogniser, load_system
from jaxmoe.windows import TranscribeOptions, decode_latents

BATCH = 16
LONGEST_S = 28.0
Clip = tuple[np.ndarray, str, str]  # samples, transcript, speaker


def of_run(workdir: Path) -> list[Clip]:
    """The evaluation split."""
    rows = prepared.open_split(workdir, "evaluation")
    return [(row["audio"].astype(np.float32) / 32768.0, row["text"], row["speaker"]) for row in rows]


def of_table(table: Path) -> list[Clip]:
    """The recordings of a CSV."""
    with open(table, encoding="utf-8") as file:
        return [(load_audio(table.parent / r["path"]), r["transcript"], r["speaker"]) for r in csv.DictReader(file)]


def some(clips: list[Clip], limit: int) -> list[Clip]:
    """At most `limit` clips, evenly over their lengths and in order of them."""
    short = sorted((c for c in clips if len(c[0]) < LONGEST_S * SAMPLE_RATE), key=lambda c: len(c[0]))
    return [short[i] for i in np.unique(np.linspace(0, len(short) - 1, min(limit, len(short))).astype(int))]


def hear(
    system: Recogniser, sounds: Sequence[np.ndarray], context: str, margin_s: float
) -> tuple[list[str], np.ndarray, float]:
    """(texts, embeddings [U, D], seconds of the processor, compilation included)."""
    options = TranscribeOptions(beam_size=1, best_of=1, temperatures=(0.0,))
    texts, embeddings, begun = [], [], time.process_time()
    for start in range(0, len(sounds), BATCH):
        batch = sounds[start : start + BATCH]
        batch = [*batch, *batch[-1:] * (BATCH - len(batch))]  # a short last batch keeps the compiled shape
        lengths = np.array([len(x) for x in batch])
        size = window(int(lengths.max()), context, margin_s)
        latents, embedding = system.encode(
            system.log_mel(np.stack([pad_or_trim(x, size) for x in batch]), lengths), lengths
        )
        held = positions(lengths + int(margin_s * SAMPLE_RATE))
        mask = np.arange(latents.shape[1])[None] < held[:, None] if context == "trimmed" else None
        texts += [x["hypothesis"] for x in decode_latents(system, latents, mask, embedding, options)]
        embeddings.append(np.asarray(embedding))
    count = len(sounds)
    return texts[:count], np.concatenate(embeddings)[:count], time.process_time() - begun


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of rows [U, D] -> [U]."""
    return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def compare(name: str, system: Recogniser, clips: Sequence[Clip], margin_s: float) -> dict[str, object]:
    """Figures of one system on one set of clips."""
    sounds, references, speakers = zip(*clips, strict=True)
    full, whole, full_s = hear(system, sounds, "full", 0.0)
    trimmed, short, trimmed_s = hear(system, sounds, "trimmed", margin_s)
    index, count = bootstrap.speaker_index(speakers)

    def sums(texts: Sequence[str]) -> np.ndarray:
        counts = wer.score(references, texts)
        return bootstrap.speaker_sums(np.stack([counts.errors, counts.words], 1), index, count)

    found = bootstrap.paired(sums(trimmed), sums(full), wer.rate)
    far, apart = distance(short, whole), distance(whole[1:], whole[:-1])
    return {
        "clips": name,
        "number": len(clips),
        "system": system.name,
        "wer_full": round(wer.score(references, full).wer, 2),
        "wer_trimmed": round(wer.score(references, trimmed).wer, 2),
        "difference_ci95": [round(x, 2) for x in found.ci95 or ()],
        "other_text": sum(a != b for a, b in zip(full, trimmed, strict=True)),
        "embedding": {
            "median": float(f"{np.median(far):.2g}"),
            "largest": float(f"{far.max():.2g}"),
            "two_clips": float(f"{np.median(apart):.2g}"),
        },
        "cpu_s": {"full": round(full_s, 1), "trimmed": round(trimmed_s, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="of a run with an adapted system")
    parser.add_argument("--csv", type=Path, help="also these recordings")
    parser.add_argument("--limit", type=int, default=90, help="clips of each set, evenly over their lengths")
    args = parser.parse_args()
    enable_cache()
    config = json.loads((args.workdir / "config.json").read_text("utf-8"))["config"]
    sets = {"evaluation": of_run(args.workdir)} | ({args.csv.name: of_table(args.csv)} if args.csv else {})
    for system in (load_system(config["model"]["backbone"]), load_system("", args.workdir)):
        for name, clips in sets.items():
            found = compare(name, system, some(clips, args.limit), config["embed"]["margin_s"])
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
