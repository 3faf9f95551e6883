"""Cutting long recordings into windows: are the words given to a window those that are said in it?

  python -m benchmarks.alignment --csv=CLIPS.csv --model=tiny.en

Clips with known transcripts are joined to recordings of one to three minutes, so that the truth is known: a window
should hold the clips that lie in it. CLIPS.csv has the columns path, transcript and speaker.
"""

import argparse
import csv
from itertools import groupby, pairwise
import json
from pathlib import Path

import numpy as np

from jaxmoe.alignment import Aligner
from jaxmoe.compilation import enable_cache
from jaxmoe.data.audio import SAMPLE_RATE, load_audio
from jaxmoe.system import load_system


def join(clips: list[tuple[np.ndarray, str]]) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """(samples, (word, start of its clip, end of it) of every word) of the clips, 0.3 s of silence between."""
    sound, words, at = [], [], 0
    for samples, text in clips:
        words += [(w, at / SAMPLE_RATE, (at + len(samples)) / SAMPLE_RATE) for w in text.split()]
        sound += [samples, np.zeros(int(0.3 * SAMPLE_RATE), np.float32)]
        at += len(samples) + int(0.3 * SAMPLE_RATE)
    return np.concatenate(sound), words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--seconds", type=float, default=90.0, help="length of a joined recording")
    args = parser.parse_args()
    enable_cache()
    with open(args.csv, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    aligner = Aligner(load_system(args.model))
    # Of one source after another: long recordings of the clearest speech and of the least clear.
    wrong = total = windows = 0
    agreements = []
    for source, members in groupby(rows, key=lambda r: r.get("source", "")):
        clips = [(load_audio(args.csv.parent / r["path"]), r["transcript"]) for r in members]
        while clips:
            taken, seconds = [], 0.0
            while clips and seconds < args.seconds:
                taken.append(clips.pop(0))
                seconds += len(taken[-1][0]) / SAMPLE_RATE
            if seconds <= 30:
                continue
            samples, truth = join(taken)
            found = aligner.windows(samples, " ".join(w for w, _, _ in truth))
            said = [w for x in found for w in x.text.split()]
            assert said == [w for w, _, _ in truth] and found[-1].end == len(samples)
            assert all(a.end == b.start and a.end - a.start <= 30 * SAMPLE_RATE for a, b in pairwise(found))
            at, mine = 0, 0
            for x in found:
                for _ in x.text.split():
                    _, start, end = truth[at]
                    at += 1
                    mine += end < x.start / SAMPLE_RATE - 0.1 or start > x.end / SAMPLE_RATE + 0.1
            print(
                json.dumps(
                    {
                        "source": source,
                        "seconds": round(seconds),
                        "words": len(truth),
                        "windows": len(found),
                        "misplaced": mine,
                        "agreement": [round(x.agreement, 2) for x in found],
                    }
                ),
                flush=True,
            )
            wrong, total, windows = wrong + mine, total + len(truth), windows + len(found)
            agreements += [x.agreement for x in found]
    print(
        json.dumps(
            {
                "words": total,
                "misplaced": wrong,
                "windows": windows,
                "mean_agreement": round(float(np.mean(agreements)), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
