"""Reads a corpus, sets aside what cannot be used, draws the splits and stores the rest.

Reads   the corpus config.data.corpus (jaxmoe/data/corpora)
Writes  WORKDIR/corpus/speech/                TFDS data set, ArrayRecord shards (data/prepared.py reads it)
        WORKDIR/corpus/metadata_<split>.jsonl its rows without audio
        WORKDIR/corpus/rejected.jsonl         every refused recording: id, source, reason, detail
        WORKDIR/corpus/summary.json           counts, hours, reasons, and the fingerprint of what it was made from

The folder appears whole or not at all: it is made as WORKDIR/corpus.part and renamed.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import contextlib
from dataclasses import asdict, replace
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
from pathlib import Path
import shutil
import threading
from typing import Any
import zlib

from ml_collections import ConfigDict
import numpy as np

from jaxmoe.data.checks import SAMPLE_RATE_HZ, Limits, Rejection, read_checked
from jaxmoe.data.corpora import CORPORA, SPLITS, Recording

HELD_OUT_SHARE = 0.1  # of the speakers, for validation and again for evaluation
Outcome = tuple[Recording, np.ndarray | Rejection]


def run(config: ConfigDict, workdir: Path) -> None:
    """Prepares the corpus unless that is done.

    Raises:
      ValueError: an unknown corpus, an option out of range, or nothing left to train on.
    """
    c, workdir = config.data, Path(workdir)
    recordings, repeated = first_of_each_id(list_recordings(config))
    recordings = assign_splits(recordings, config.seed)
    pretrain = draw_pretrain([r for r in recordings if r.split == "train"], c.pretrain_share, config.seed)
    limits = Limits(c.min_seconds, c.max_seconds, c.max_clipped)
    made_from = fingerprint([*recordings, *repeated], pretrain, limits)

    folder, part = workdir / "corpus", workdir / "corpus.part"
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if summary["fingerprint"] == made_from:
            print(f"{folder} is up to date; nothing to do.")
            return
        print(f"{folder} was made from other recordings or options; it is made again.")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    summary = _store(part, recordings, repeated, pretrain, limits, c.num_workers)
    summary = {"corpus": c.corpus, "fingerprint": made_from, **summary}
    (part / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    _print_summary(summary, folder)


def list_recordings(config: ConfigDict) -> list[Recording]:
    """Recordings of config.data.corpus, unread; one without a speaker is a speaker of its own."""
    name = config.data.corpus
    if name not in CORPORA:
        raise ValueError(f"config.data.corpus={name!r}, expected one of {', '.join(CORPORA)}.")
    options = config[name] if name in config else {}  # a corpus without options needs no group
    found = list(CORPORA[name](path=config.data.path, seed=config.seed, **options))
    return [r if r.speaker else replace(r, speaker=r.id) for r in found]


def first_of_each_id(recordings: Iterable[Recording]) -> tuple[list[Recording], list[Recording]]:
    """(recordings with distinct ids, sorted by id; the others, whose id was taken)."""
    first: dict[str, Recording] = {}
    repeated = []
    for recording in recordings:
        if first.setdefault(recording.id, recording) is not recording:
            repeated.append(recording)
    return [first[name] for name in sorted(first)], repeated


def assign_splits(recordings: Sequence[Recording], seed: int) -> list[Recording]:
    """Gives a split to every recording: the corpus's own where it names one, else 80/10/10 by speaker.

    Speakers are put in order of etiology, within it by a hash of seed and name, and every tenth is held out: shares are
    met within each etiology, and the order of the files does not matter. From three speakers on, no split is empty.

    Raises:
      ValueError: the corpus names different splits for one speaker.
    """
    official: dict[str, str] = {}
    for r in recordings:
        if r.split and official.setdefault(r.speaker, r.split) != r.split:
            raise ValueError(
                f"speaker {r.speaker!r} is in the corpus's splits {official[r.speaker]!r} and {r.split!r} "
                f"(id {r.id!r}); give each speaker one split."
            )
    etiology = {r.speaker: r.etiology for r in recordings if r.speaker not in official}
    left = sorted(etiology, key=lambda s: (_hash(seed, etiology[s]), etiology[s], _hash(seed, s), s))
    held_out = max(1, round(HELD_OUT_SHARE * len(left))) if len(left) >= 3 else 0
    drawn = dict.fromkeys(left, "train")
    for split in ("evaluation", "validation"):
        chosen = [left[int((n + 0.5) * len(left) / held_out)] for n in range(held_out)]
        drawn |= dict.fromkeys(chosen, split)
        left = [s for s in left if s not in set(chosen)]
    split_of = official | drawn
    return [replace(r, split=split_of[r.speaker]) for r in recordings]


def draw_pretrain(train: Sequence[Recording], share: float, seed: int) -> set[str]:
    """Ids of `share` of train, evenly over etiologies, severities and speakers, independent of the order of files.

    Raises:
      ValueError: a share out of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"config.data.pretrain_share={share}, expected more than 0 and at most 1.")
    order = sorted(train, key=lambda r: (r.etiology, r.severity, r.speaker, _hash(seed, r.id), r.id))
    # Systematic sampling: walk the sorted list and take one whenever another 1 / share recordings have passed.
    start = (_hash(seed, "pretrain") % 1000) / 1000
    return {r.id for n, r in enumerate(order) if int((n + 1) * share + start) > int(n * share + start)}


def fingerprint(recordings: Iterable[Recording], pretrain: set[str], limits: Limits) -> str:
    """A hash of all that the stored corpus depends on, but for the sound itself (of files: their size and date)."""
    digest = hashlib.sha256(repr((limits, sorted(pretrain))).encode())
    for r in recordings:
        call = r.read.args if isinstance(r.read, functools.partial) else ()
        file = Path(r.path) if r.path else None
        stat = file.stat() if file and file.exists() else None
        digest.update(repr((vars(r) | {"read": call}, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    return digest.hexdigest()


def read_all(recordings: Sequence[Recording], limits: Limits, pool: Executor | None, ahead: int) -> Iterator[Outcome]:
    """Each recording with its samples or why it is refused, in order; at most `ahead` are read in advance."""
    if pool is None:
        for recording in recordings:
            yield recording, read_checked(recording, limits)
        return
    waiting: deque[tuple[Recording, Future[Any]]] = deque()
    rest = iter(recordings)
    try:
        while True:
            for recording in itertools.islice(rest, ahead - len(waiting)):
                waiting.append((recording, pool.submit(read_checked, recording, limits)))
            if not waiting:
                return
            recording, future = waiting.popleft()
            yield recording, future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"a worker died while reading near {recording.id!r} ({recording.source}): out of memory? "
            "Lower config.data.num_workers or config.data.max_seconds."
        ) from error


def _store(
    folder: Path,
    recordings: Sequence[Recording],
    repeated: Sequence[Recording],
    pretrain: set[str],
    limits: Limits,
    num_workers: int,
) -> dict[str, Any]:
    """Reads and stores everything in `folder`; returns what was stored and refused."""
    from tqdm import tqdm

    from jaxmoe.data import prepared

    counts = _Counts()
    with contextlib.ExitStack() as stack:
        refused = stack.enter_context(open(folder / "rejected.jsonl", "w", encoding="utf-8"))
        bar = stack.enter_context(tqdm(total=len(recordings), desc="prepare", unit="utt"))
        pool = None
        if num_workers > 1:
            # Spawned, not forked: the parent may hold JAX's threads.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(num_workers, context, initializer=_end_with_parent))

        def refuse(recording: Recording, rejection: Rejection) -> None:
            row = {"id": recording.id, "source": recording.source, **asdict(rejection)}
            refused.write(json.dumps(row, ensure_ascii=False) + "\n")
            refused.flush()
            counts.rejected[rejection.reason] += 1
            counts.example = counts.example or f"{recording.id}: {rejection.reason}, {rejection.detail}"

        def rows(split: str) -> Iterator[prepared.Row]:
            members = [r for r in recordings if r.split == split]
            for recording, outcome in read_all(members, limits, pool, ahead=4 * num_workers):
                bar.update()
                if isinstance(outcome, Rejection):
                    refuse(recording, outcome)
                else:
                    yield _row(recording, outcome, pretrain, counts)

        for recording in repeated:
            refuse(recording, Rejection("duplicate id", "another recording has this id"))
        splits = {split: _peek(rows(split)) for split in SPLITS}
        filled = {split: r for split, r in splits.items() if r is not None}
        if "train" not in filled:
            raise ValueError(
                f"no recording is left to train on: {len(recordings)} listed, "
                f"{sum(counts.rejected.values())} refused{f' (first: {counts.example})' if counts.example else ''}."
            )
        prepared.write(folder, filled)
    return counts.summary()


def _peek(rows: Iterator[Any]) -> Iterator[Any] | None:
    """The same rows, or None if there are none: TFDS cannot store an empty split."""
    first = next(rows, None)
    return None if first is None else itertools.chain([first], rows)


class _Counts:
    """What has been stored and refused so far."""

    def __init__(self) -> None:
        self.stored: Counter[tuple[str, str, str]] = Counter()  # (split, etiology, severity)
        self.seconds: dict[str, float] = defaultdict(float)
        self.speakers: dict[str, set[str]] = defaultdict(set)
        self.train_prompts: set[str] = set()
        self.rejected: Counter[str] = Counter()
        self.example = ""

    def summary(self) -> dict[str, Any]:
        splits = {}
        for split in [s for s in SPLITS if s in self.speakers]:
            by_etiology: dict[str, dict[str, int]] = {}
            for (_, etiology, severity), n in sorted(i for i in self.stored.items() if i[0][0] == split):
                by_etiology.setdefault(etiology, {})[severity] = n
            splits[split] = {
                "utterances": sum(n for key, n in self.stored.items() if key[0] == split),
                "speakers": len(self.speakers[split]),
                "hours": round(self.seconds[split] / 3600, 4),
                "by_etiology": by_etiology,
            }
        return {
            "utterances": sum(self.stored.values()),
            "hours": round(sum(self.seconds.values()) / 3600, 4),
            "splits": splits,
            "rejected": dict(self.rejected.most_common()),
        }


def _row(r: Recording, audio: np.ndarray, pretrain: set[str], counts: _Counts) -> dict[str, Any]:
    prompt = r.prompt or " ".join(r.text.lower().split())
    if r.split == "train":
        counts.train_prompts.add(prompt)
    counts.stored[r.split, r.etiology, r.severity] += 1
    counts.seconds[r.split] += len(audio) / SAMPLE_RATE_HZ
    counts.speakers[r.split].add(r.speaker)
    fields = {name: value for name, value in vars(r).items() if name not in ("read", "path", "split")}
    return fields | {
        "prompt": prompt,
        "pretrain": r.id in pretrain,
        "prompt_seen": prompt in counts.train_prompts,
        "duration_s": len(audio) / SAMPLE_RATE_HZ,
        "audio": audio,
    }


def _hash(seed: int, text: str) -> int:
    return zlib.crc32(f"{seed}/{text}".encode())


def _end_with_parent() -> None:
    """Ends this worker when the run is killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker only"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    print(f"{summary['utterances']} recordings, {summary['hours']:.2f} h, in {folder}")
    for split in SPLITS:
        if split not in summary["splits"]:
            print(f"  {split:<11} empty: give the corpus at least three speakers, or a split column")
            continue
        s = summary["splits"][split]
        print(f"  {split:<11}{s['utterances']:>7} recordings {s['speakers']:>5} speakers {s['hours']:>8.2f} h")
    if summary["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in summary["rejected"].items())
        print(f"  set aside: {reasons}; see {folder / 'rejected.jsonl'}")
