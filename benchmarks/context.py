"""What trimming the encoder's context costs: the 30 s that Whisper was trained on against the audio and a margin.

  python benchmarks/context.py --csv=CLIPS.csv --model=tiny.en
  python benchmarks/context.py --workdir=checkpoints/quickstart      the evaluation split of a run, adapted or not

For each context: WER of greedy decoding without fallback, and of the embedding that the gate reads, the distance
(1 - cosine) from that under 30 s, beside the distance between two clips as a scale. CLIPS.csv has path and transcript.
"""

import argparse
from collections.abc import Iterable
import csv
import json
from pathlib import Path
import time

import numpy as np

from jaxmoe.compilation import enable_cache
from jaxmoe.data import prepared
from jaxmoe.data.audio import SAMPLE_RATE, load_audio, pad_or_trim, window
from jaxmoe.eval.wer import score
from jaxmoe.system import Recogniser, load_system
from jaxmoe.transcription import TranscribeOptions, decode_latents

CONTEXTS = (("full", 0.0), ("trimmed", 2.0), ("trimmed", 1.0), ("trimmed", 0.25))
BATCH = 8


def clips(args: argparse.Namespace) -> list[tuple[np.ndarray, str]]:
    """(samples, transcript) of up to 28 s."""
    if args.workdir:
        rows: Iterable = prepared.open_split(args.workdir, "evaluation")
        found = [(row["audio"].astype(np.float32) / 32768.0, row["text"]) for row in rows]
    else:
        with open(args.csv, encoding="utf-8") as file:
            found = [(load_audio(args.csv.parent / r["path"]), r["transcript"]) for r in csv.DictReader(file)]
    found = sorted(((x, t) for x, t in found if len(x) < 28 * SAMPLE_RATE), key=lambda c: len(c[0]))
    return found[:: max(len(found) // args.limit, 1)] if args.limit else found


def run(
    system: Recogniser, sounds: list[np.ndarray], context: str, margin_s: float
) -> tuple[list[str], np.ndarray, float]:
    """(hypotheses, embeddings [U, D], seconds of the processor)."""
    options = TranscribeOptions(beam_size=1, best_of=1, temperatures=(0.0,))
    texts, embeddings, begun = [], [], time.process_time()
    for start in range(0, len(sounds), BATCH):
        some = sounds[start : start + BATCH]
        lengths = np.array([len(x) for x in some])
        size = window(int(lengths.max()), context, margin_s)
        mel = system.log_mel(np.stack([pad_or_trim(x, size) for x in some]), lengths)
        latents, embedding = system.encode(mel, lengths)
        mask = None
        if context == "trimmed":
            held = lengths + int(margin_s * SAMPLE_RATE)
            mask = np.arange(latents.shape[1])[None] < -(-held[:, None] // 320)
        texts += [x["hypothesis"] for x in decode_latents(system, latents, mask, embedding, options)]
        embeddings.append(np.asarray(embedding))
    return texts, np.concatenate(embeddings), time.process_time() - begun


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of rows [U, D] -> [U]."""
    return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--workdir", type=Path, help="of a run: its evaluation split")
    parser.add_argument("--checkpoint", type=Path, help="of a run: its adapted system instead of --model")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--limit", type=int, default=0, help="clips, evenly over their lengths; 0 for all")
    args = parser.parse_args()
    enable_cache()
    system, found = load_system(args.model, args.checkpoint), clips(args)
    sounds, references = [x for x, _ in found], [t for _, t in found]
    full: np.ndarray | None = None
    for context, margin_s in CONTEXTS:
        texts, embeddings, seconds = run(system, sounds, context, margin_s)
        full = embeddings if full is None else full
        line = {
            "system": system.name,
            "clips": len(found),
            "context": context,
            "margin_s": margin_s,
            "wer": round(score(references, texts).wer, 2),
            "embedding_distance": {
                "median": float(f"{np.median(distance(embeddings, full)):.2g}"),
                "largest": float(f"{distance(embeddings, full).max():.2g}"),
                "between_clips": float(f"{np.median(distance(full[1:], full[:-1])):.2g}"),
            },
            "cpu_s": round(seconds, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
