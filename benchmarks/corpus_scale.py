"""prepare on a generated SAP release of any size: time and memory of the index, of a second run, and of the build.

  python -m benchmarks.corpus_scale --recordings=20000            index, splits, and a second look at it
  python -m benchmarks.corpus_scale --recordings=2000 --build     also reads and stores, against real time

The tree is as SAP's (tests/data/trees.py): a JSON a speaker, recordings hard-linked from a few clips of speech. Each
measurement is a process of its own, so that its peak memory is its own.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
import json
import multiprocessing
from pathlib import Path
import resource
import shutil
import sys
import tempfile
import time

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from jaxmoe.data.build import build
from jaxmoe.data.checks import Limits
from jaxmoe.data.corpora import SPLITS, list_corpus
from jaxmoe.data.index import Index, fingerprint, scan
from jaxmoe.data.sound import load_audio
from tests.data import trees

PER_SPEAKER = 500
JFK = Path(__file__).parents[1] / "tests/data/jfk.flac"
LIMITS = Limits(0.3, 600.0, 0.1, -60.0, 30.0, 8000, 0.0)


def make_tree(root: Path, recordings: int) -> None:
    """A release of `recordings`, linked from clips of 4 to 11 s."""
    speech = (load_audio(JFK) * 32767).astype(np.int16)
    clips = []
    for n in range(max(8, recordings // 30_000)):  # ext4 allows 65,000 links of a file
        clips.append(root / f"clip{n}.wav")
        soundfile.write(clips[-1], speech[: 16000 * (4 + n % 8)], 16000)
    trees.sap_tree(root / "2025-11-02", max(recordings // PER_SPEAKER, 1), PER_SPEAKER, trees.linked(clips))


def listed(root: Path) -> Iterator[object]:
    return scan(list_corpus("sap", str(root / "2025-11-02"), 0))


def index(root: Path) -> dict[str, object]:
    made = Index.create(root / "index.sqlite", listed(root), seed=0, pretrain_share=0.2, made_with="")
    return {"recordings": {s: made.count(s) for s in SPLITS}}


def again(root: Path) -> dict[str, object]:
    same = Index(root / "index.sqlite").fingerprint == fingerprint(listed(root), "")
    return {"unchanged": same}


def store(root: Path) -> dict[str, object]:
    build(root, "sap", LIMITS, num_workers=1)
    samples = sum(json.loads(line)["samples"] for p in (root / "shards").glob("*.rows.jsonl") for line in open(p))
    return {"audio_s": samples / 16000}


def measure(step: str, root: Path) -> dict[str, object]:
    begun, cpu = time.perf_counter(), time.process_time()
    found = globals()[step](root)
    took = {"seconds": round(time.perf_counter() - begun, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    if "audio_s" in found:
        found["times_real_time_per_core"] = round(found["audio_s"] / took["cpu_s"])
    return {"step": step, **took, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=2000)
    parser.add_argument("--build", action="store_true", help="also read and store all of them")
    parser.add_argument("--folder", type=Path, help="where to put the tree; kept, and used again if it is there")
    args = parser.parse_args()
    root = args.folder or Path(tempfile.mkdtemp(prefix="corpus_scale"))
    if not (root / "2025-11-02").exists():
        root.mkdir(parents=True, exist_ok=True)
        make_tree(root, args.recordings)
    for step in ["index", "again"] + ["store"] * args.build:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            print(json.dumps(pool.submit(measure, step, root).result()), flush=True)
    if args.folder is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
