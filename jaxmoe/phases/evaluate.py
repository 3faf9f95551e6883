"""Runs every system of the table on the evaluation split: recognises, translates, keeps each utterance's line.

Reads   WORKDIR/corpus, and of each system what jaxmoe/eval/systems.py names: WORKDIR/{embeddings,joint,baseline,...}
Writes  WORKDIR/eval/<system>/  (jaxmoe/eval/run.py)
        WORKDIR/eval/<system>/semantic.json  COMET and SemScore, where they are asked for (jaxmoe/eval/semantic.py)
        WORKDIR/eval/sound.jsonl  level and signal-to-noise ratio of each utterance, estimated

A system is run again only if something that it depends on has changed; translations come from a cache that all runs
share.
"""

from pathlib import Path

from ml_collections import ConfigDict

from jaxmoe.data import prepared
from jaxmoe.data.noise import level_dbfs, snr_db
from jaxmoe.eval import semantic
from jaxmoe.eval.run import Job, corpus_source, digest, evaluate, split_clips, write_lines


def run(config: ConfigDict, workdir: Path) -> str:
    """Returns a digest of what all systems wrote, by which the report notices a change."""
    workdir = Path(workdir)
    items, clips = prepared.open_metadata(workdir, "evaluation"), split_clips(workdir, "evaluation")
    evaluate(Job(config, workdir, workdir / "eval", items, clips, corpus_source(workdir)), config.evaluate.systems)
    semantic.judge(config, workdir / "eval")
    sound = ((clip.id, clip.read()) for clip in clips)
    rows = ({"id": id_, "level_dbfs": level_dbfs(x), "snr_db": snr_db(x)} for id_, x in sound)
    write_lines(workdir / "eval" / "sound.jsonl", rows)
    written = (p for name in ("system.json", semantic.FILE) for p in sorted((workdir / "eval").glob(f"*/{name}")))
    return digest([p.read_text(encoding="utf-8") for p in written])
