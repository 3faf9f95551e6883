"""Lists a corpus, draws the splits, reads every recording, sets aside what cannot be used and stores the rest.

Reads   the corpus config.data.corpus (jaxmoe/data/corpora)
Writes  WORKDIR/corpus/index.sqlite           what was listed, with split and shard (data/index.py)
        WORKDIR/corpus/speech/                TFDS data set, ArrayRecord shards (data/build.py, data/prepared.py)
        WORKDIR/corpus/metadata_<split>.jsonl its rows without audio
        WORKDIR/corpus/rejected.jsonl         what was set aside: id, speaker, etiology, source, reason, detail
        WORKDIR/corpus/summary.json           counts, hours, reasons
        WORKDIR/corpus/card.html              the data card: the same for people, with pictures

A run that was killed goes on at the first shard that is not finished. Other options start it again; of other recordings
`news` tells, and --force takes them in.
"""

from collections.abc import Iterator
import contextlib
from dataclasses import asdict
import json
import os
from pathlib import Path
import shutil

from ml_collections import ConfigDict

from jaxmoe.data import build, prepared
from jaxmoe.data.checks import Limits
from jaxmoe.data.corpora import SPLITS, Recording, Refused, list_corpus
from jaxmoe.data.index import Index, fingerprint, scan
from jaxmoe.data.lineage import forgotten, without
from jaxmoe.data.splits import only_evaluated
from jaxmoe.data.summary import print_summary, summarise
from jaxmoe.report.data_card import write_card


def run(config: ConfigDict, workdir: Path) -> str:
    """Prepares the corpus unless that is done. Returns what stands for its recordings and options.

    Raises:
      ValueError: an unknown corpus, an option out of range, or nothing left to train on.
    """
    c, folder = config.data, Path(workdir) / "corpus"
    limits = Limits(**config.quality)
    if (folder / "index.sqlite").exists():
        if _stored(folder) != _current(config, workdir):
            print(f"{folder} was made from other recordings or options; it is made again.")
            _clear(folder)
        elif (folder / "summary.json").exists():
            print(f"{folder} is up to date; nothing to do.")
            return _stored(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "index.sqlite").exists():
        Index.create(
            folder / "index.sqlite",
            _listed(config, workdir),
            seed=config.seed,
            pretrain_share=c.pretrain_share,
            made_with=_made_with(config),
        ).close()
    build.build(folder, c.corpus, limits, c.num_workers)
    _write_tables(folder)
    summary = {"corpus": c.corpus} | summarise(folder)
    write_card(folder, summary)
    temporary = folder / "summary.tmp"
    temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, folder / "summary.json")
    shutil.rmtree(folder / "shards")
    print_summary(summary, folder)
    return _stored(folder)


def _stored(folder: Path) -> str:
    """What stands for the recordings and options that are indexed in a folder."""
    with contextlib.closing(Index(folder / "index.sqlite")) as index:
        return index.fingerprint


def _current(config: ConfigDict, workdir: Path) -> str:
    """The same of what the corpus lists now."""
    return fingerprint(_listed(config, workdir), _made_with(config))


def news(config: ConfigDict, workdir: Path) -> str:
    """Whether the recordings have changed since they were prepared. What is gone may have been moved away on purpose,
    so nothing is done about it."""
    again = "--phase=prepare --force takes in what is there now, and --phase=all then trains anew."
    folder = Path(workdir) / "corpus"
    if not (folder / "index.sqlite").exists():
        return ""
    try:
        same = _current(config, workdir) == _stored(folder)
    except (ValueError, OSError) as error:
        return f"the recordings cannot be listed any more ({error}); what was prepared is used."
    return "" if same else f"the recordings have changed since; what was prepared is used. {again}"


def _listed(config: ConfigDict, workdir: Path) -> Iterator[tuple[Recording | Refused, str]]:
    """What the corpus lists, with the state of each file, without those who are forgotten."""
    c = config.data
    listing = list_corpus(c.corpus, c.path, config.seed, **_options(config))
    kept = without(forgotten(Path(workdir)), scan(listing))
    return only_evaluated(kept, c.unseen_etiologies) if c.unseen_etiologies else kept


def _options(config: ConfigDict) -> dict[str, object]:
    name = config.data.corpus
    return config[name].to_dict() if name in config else {}  # a corpus without options needs no group


def _made_with(config: ConfigDict) -> str:
    c = config.data
    return repr((c.corpus, _options(config), config.seed, c.pretrain_share, Limits(**config.quality)))


def _clear(folder: Path) -> None:
    """Removes all that `prepare` makes; the record of the phase stays."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "phase.json":
            path.unlink()


def _write_tables(folder: Path) -> None:
    """metadata_<split>.jsonl and rejected.jsonl, from the notes beside the shards."""
    for split in SPLITS:
        found = build.rows(folder, split)
        if (first := next(found, None)) is None:
            continue
        with open(prepared.metadata_file(folder, split), "w", encoding="utf-8") as file:
            build.write_line(file, first)
            for row in found:
                build.write_line(file, row)
    with open(folder / "rejected.jsonl", "w", encoding="utf-8") as file:
        for refused in build.rejected(folder):
            build.write_line(file, asdict(refused))
