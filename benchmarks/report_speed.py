"""How long the report of a large evaluation takes: 50,000 utterances x 8 systems, 1,000 bootstrap draws.

COMMAND: python -m benchmarks.report_speed [--utterances=50000] [--speakers=500] [--draws=1000]

Hypotheses are the references with words replaced, dropped and added at random, so that every utterance has errors to
align; nothing is recognised. Time and memory are of the whole report: reading, scoring, intervals by group, the page.
"""

import argparse
import json
from pathlib import Path
import resource
import tempfile
import time

import numpy as np

from jaxmoe.report.write import write_report

SYSTEMS = (
    *(("whisper-v2", 0.3), ("whisper-v3", 0.25), ("lora", 0.2), ("moe", 0.15), ("moe-custom-mt", 0.15)),
    *(("moe-risk", 0.14), ("mt", 0.0), ("mt-local-tuned", 0.0)),
)
WORDS = [
    f"{first}{middle}{last}" for first in "bdfgklmnprst" for middle in ("a", "ee", "o") for last in ("ne", "ck", "l")
]


def write(workdir: Path, utterances: int, speakers: int) -> None:
    """The files that `evaluate` leaves behind."""
    rng = np.random.default_rng(0)
    etiologies = ("ALS", "stroke", "Down syndrome", "cerebral palsy", "Parkinson's disease")
    rows = []
    for n in range(utterances):
        speaker = int(rng.integers(speakers))
        length = int(rng.integers(3, 20))
        rows.append(
            {"id": f"u{n:06d}", "speaker": f"s{speaker:04d}", "etiology": etiologies[speaker % 5]}
            | {"severity": ("mild", "severe")[speaker % 2], "sex": "", "language": "en", "channel": f"c{speaker % 8}"}
            | {"prompt": f"p{n % 9000}", "prompt_seen": n % 3 > 0, "category": f"k{n % 5}"}
            | {"duration_s": length * 0.5, "simulated": True}
            | {
                "reference": " ".join(rng.choice(WORDS, length)),
                "transcript": "",
                "translation_reference": " ".join(rng.choice(WORDS, 9)),
            }
            | {"translation_origin": "corpus", "flags": [], "gates": None, "cluster": None}
        )
    for key, share in SYSTEMS:
        folder = workdir / "eval" / key
        folder.mkdir(parents=True)
        kind = "mt" if key.startswith("mt") else "asr+mt"
        with open(folder / "hypotheses.jsonl", "w") as file:
            for row in rows:
                made = {"hypothesis": spoil(rng, row["reference"], share)}
                made["translation"] = spoil(rng, row["translation_reference"], share + 0.4)
                file.write(json.dumps(row | made) + "\n")
        about = {"key": key, "name": key, "kind": kind, "status": "run", "mt": "MT", "utterances": len(rows)}
        (folder / "system.json").write_text(json.dumps(about))


def spoil(rng: np.random.Generator, text: str, share: float) -> str:
    words = text.split()
    draws = rng.random(len(words))
    kept = [
        str(rng.choice(WORDS)) if d < share * 0.6 else w
        for w, d in zip(words, draws, strict=True)
        if d < share * 0.6 or d > share
    ]
    return " ".join(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=50_000)
    parser.add_argument("--speakers", type=int, default=500)
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.utterances, args.speakers)
        wall, cpu = time.perf_counter(), time.process_time()
        metrics = write_report(Path(folder), bootstrap=args.draws)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    ran = sum(s["status"] == "run" for s in metrics["systems"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    what = f"{args.utterances} utterances x {ran} systems, {args.draws} draws"
    print(f"{what}: {wall:.0f} s, {cpu:.0f} s of CPU, {peak:.1f} GiB")


if __name__ == "__main__":
    main()
