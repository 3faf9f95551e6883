"""Recordings with their transcripts, for benchmarks."""

import csv
import dataclasses
from pathlib import Path

import numpy as np

from jaxmoe.data.sound import load_audio

DEMO = Path(__file__).parents[1] / "jaxmoe" / "data" / "demo"


@dataclasses.dataclass(frozen=True)
class Clip:
    path: Path
    transcript: str
    samples: np.ndarray


def read_clips(table: Path, only: str = "") -> list[Clip]:
    """The clips of a CSV with the columns path (relative to it) and transcript whose path contains `only`."""
    with open(table, encoding="utf-8", newline="") as f:
        rows = [row for row in csv.DictReader(f) if only in row["path"]]
    return [Clip(table.parent / r["path"], r["transcript"], load_audio(table.parent / r["path"])) for r in rows]


def demo_clips() -> list[Clip]:
    """The recordings that the demo corpus is made of: synthetic voices, no disorder."""
    with open(DEMO / "sentences.tsv", encoding="utf-8", newline="") as f:
        said = {row["id"]: row["english"] for row in csv.DictReader(f, delimiter="\t")}
    return [Clip(p, said[p.stem], load_audio(p)) for p in sorted((DEMO / "audio").glob("*/*.opus"))]


def stored_clips(workdir: Path, only: str = "") -> list[Clip]:
    """The recordings of a run whose split and id contain `only`."""
    from jaxmoe.data import prepared

    out = []
    for split in ("evaluation", "validation", "train"):
        for row in prepared.open_split(workdir, split):
            if only in f"{split}/{row['id']}":
                name = Path(split) / row["id"]
                out.append(Clip(name, row["text"], row["audio"].astype(np.float32) / 32768.0))
    return out


def evenly(clips: list[Clip], count: int) -> list[Clip]:
    """`count` of the clips, evenly over their order."""
    return [clips[i * len(clips) // count] for i in range(min(count, len(clips)))]
