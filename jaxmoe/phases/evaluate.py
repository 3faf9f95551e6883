"""Runs every system of the table on the evaluation split: recognises, translates, keeps each utterance's line.

Reads   WORKDIR/corpus, and of each system what jaxmoe/eval/systems.py names: WORKDIR/{embeddings,joint,baseline,...}
Writes  WORKDIR/eval/<system>/  (jaxmoe/eval/run.py)

A system is run again only if something that it depends on has changed; translations come from a cache that all runs
share.
"""

from collections.abc import Sequence
import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from jaxmoe.data import prepared
from jaxmoe.eval.run import Job, digest, evaluate
from jaxmoe.eval.systems import Clip


def clips(workdir: Path, items: Sequence[dict[str, Any]]) -> list[Clip]:
    """The clips of these rows of the evaluation split, read when they are wanted."""
    source = prepared.open_split(workdir, "evaluation")
    row = {x["id"]: i for i, x in enumerate(prepared.open_metadata(workdir, "evaluation"))}

    def read(index: int) -> np.ndarray:
        return source[index]["audio"].astype(np.float32) / 32768.0

    return [Clip(x["id"], x["text"], x["duration_s"], functools.partial(read, row[x["id"]])) for x in items]


def run(config: ConfigDict, workdir: Path) -> str:
    """Returns a digest of what all systems wrote, by which the report notices a change."""
    workdir = Path(workdir)
    items = prepared.open_metadata(workdir, "evaluation")
    evaluate(Job(config, workdir, workdir / "eval", items, clips(workdir, items)), config.evaluate.systems)
    return digest([p.read_text() for p in sorted((workdir / "eval").glob("*/system.json"))])
