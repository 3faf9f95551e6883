"""Recordings of an index -> TFDS data set of ArrayRecord shards, by several processes, shard by shard.

A shard's bytes depend on the recordings in it alone: not on the processes, nor on what was killed. A shard is finished
when FOLDER/shards/<split>-<number>.json is there; what has no such file is made (again).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
import contextlib
from dataclasses import asdict, dataclass, replace
import functools
import json
import multiprocessing
import os
from pathlib import Path
import threading
from typing import Any

import numpy as np

from jaxmoe.data import prepared
from jaxmoe.data.checks import SAMPLE_RATE_HZ, Limits, Rejection, read_checked
from jaxmoe.data.corpora import SPLITS, Recording, Refused, normalised
from jaxmoe.data.index import Index


@dataclass(frozen=True)
class Shard:
    """One shard to make: recordings `numbers` of a split of the index."""

    folder: Path  # WORKDIR/corpus
    corpus: str
    limits: Limits
    split: str
    number: int
    numbers: range
    crashed: frozenset[str] = frozenset()

    def beside(self, suffix: str) -> Path:
        return self.folder / "shards" / f"{self.split}-{self.number:05d}{suffix}"

    @property
    def done(self) -> bool:
        return self.beside(".json").exists()


@functools.cache  # TFDS registers a builder when its class is made, and only once
def builder_class() -> Any:
    """The TFDS builder of a prepared corpus; `shards` says what to read."""
    import tensorflow_datasets as tfds

    class Speech(tfds.core.ShardBasedBuilder):
        """Speech with transcripts, translations and what is known of its speakers."""

        VERSION = tfds.core.Version(prepared.VERSION)
        shards: Sequence[Shard] = ()

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=prepared.features(),
                metadata=tfds.core.MetadataDict({"sample_rate_hz": SAMPLE_RATE_HZ}),
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Any]]:
            return {
                split: [functools.partial(examples, shard) for shard in self.shards if shard.split == split]
                for split in SPLITS
                if any(shard.split == split for shard in self.shards)
            }

    return Speech


def examples(shard: Shard) -> Iterator[tuple[str, prepared.Row]]:
    """(id, row) of the recordings of a shard that can be used."""
    for recording, outcome in _outcomes(shard):
        if isinstance(outcome, dict):
            yield recording.id, outcome


def _outcomes(shard: Shard) -> Iterator[tuple[Recording, prepared.Row | Rejection]]:
    with contextlib.closing(Index(shard.folder / "index.sqlite")) as index:
        for recording, pretrain in index.rows(shard.split, shard.numbers):
            if recording.id in shard.crashed:
                detail = "the process that read it died, twice: damaged, or too large for the memory"
                yield recording, Rejection("crashes the reader", detail)
                continue
            shard.beside(".reading").write_text(recording.id, encoding="utf-8")
            read = read_checked(shard.corpus, recording, shard.limits)
            if isinstance(read, Rejection):
                yield recording, read
            else:
                prompt = recording.prompt or normalised(recording.text)
                seen = shard.split == "train" or index.has_prompt(prompt)
                yield recording, _row(recording, read, prompt, pretrain=pretrain, prompt_seen=seen)
    shard.beside(".reading").unlink(missing_ok=True)


def _row(r: Recording, audio: np.ndarray, prompt: str, **flags: bool) -> prepared.Row:
    fields = {name: getattr(r, name) for name in prepared.STRINGS}
    flags |= {"simulated": r.simulated}
    return fields | flags | {"prompt": prompt, "duration_s": len(audio) / SAMPLE_RATE_HZ, "audio": audio}


def write_shard(shard: Shard, path: Path) -> None:
    """Reads, checks and stores the recordings of a shard in `path`, and notes beside it what became of each."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(path.name + ".tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")  # as TFDS writes them
    rows = size = 0
    with (
        open(shard.beside(".rows.jsonl"), "w", encoding="utf-8") as metadata,
        open(shard.beside(".rejected.jsonl"), "w", encoding="utf-8") as refused,
    ):
        for recording, outcome in _outcomes(shard):
            if isinstance(outcome, Rejection):
                about = {name: getattr(recording, name) for name in ("id", "source", "speaker", "etiology")}
                write_line(refused, about | asdict(outcome))
                continue
            record = serialise(outcome)
            writer.write(record)
            rows, size = rows + 1, size + len(record)
            write_line(metadata, metadata_row(outcome))
    writer.close()
    os.replace(temporary, path)
    marker = shard.beside(".json.tmp")
    marker.write_text(json.dumps({"rows": rows, "bytes": size}))
    os.replace(marker, shard.beside(".json"))


def serialise(row: prepared.Row) -> bytes:
    """The record of a row, as TFDS writes it."""
    features, serializer = _serializer()
    # TFDS does not ask protobuf for an order of its map, which then differs from process to process.
    return serializer.get_tf_example(features.encode_example(row)).SerializeToString(deterministic=True)


def metadata_row(row: prepared.Row) -> prepared.Row:
    """A row without its audio, but with its length."""
    return {name: value for name, value in row.items() if name != "audio"} | {"samples": len(row["audio"])}


def write_line(file: Any, row: Any) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


@functools.cache
def _serializer() -> tuple[Any, Any]:
    from tensorflow_datasets.core import example_serializer

    features = prepared.features()
    return features, example_serializer.ExampleSerializer(features.get_serialized_info())


def build(folder: Path, corpus: str, limits: Limits, num_workers: int) -> None:
    """Makes the shards of all splits of FOLDER/index.sqlite that are not there, train first.

    Raises:
      ValueError: nothing is left to train on.
    """
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    builder = builder_class()(data_dir=str(folder), file_format="array_record")
    place = Path(builder.data_path)
    place.mkdir(parents=True, exist_ok=True)
    (folder / "shards").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(contextlib.closing(Index(folder / "index.sqlite")))
        plan = {
            split: [Shard(folder, corpus, limits, split, i, r) for i, r in enumerate(index.shards(split))]
            for split in SPLITS
        }
        total = sum(index.count(split) for split in SPLITS)
        infos = []
        bar = stack.enter_context(tqdm(total=total, desc="prepare", unit="utt", mininterval=2.0))
        readers = stack.enter_context(contextlib.closing(_Readers(num_workers)))
        for split, shards in plan.items():
            template = builder._get_filename_template(split_name=split)
            path_of = functools.partial(_path, template, len(shards))
            _make(shards, path_of, readers, bar)
            info = _split_info(shards, template)
            if split == "train":
                _require_train(folder, info, total)
                index.add_prompts(row["prompt"] for shard in shards for row in _lines(shard.beside(".rows.jsonl")))
            if info.num_examples:
                infos.append(info)
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.write_to_directory(place)


def _path(template: Any, count: int, shard: Shard) -> Path:
    return Path(template.sharded_filepath(shard_index=shard.number, num_shards=count))


def _split_info(shards: Sequence[Shard], template: Any) -> Any:
    import tensorflow_datasets as tfds

    notes = [json.loads(shard.beside(".json").read_text()) for shard in shards]
    return tfds.core.SplitInfo(
        name=template.split,
        shard_lengths=[note["rows"] for note in notes],
        num_bytes=sum(note["bytes"] for note in notes),
        filename_template=template,
    )


def _require_train(folder: Path, info: Any, indexed: int) -> None:
    if info.num_examples:
        return
    refused = list(rejected(folder))
    first = f" (first: {refused[0].id}: {refused[0].reason}, {refused[0].detail})" if refused else ""
    raise ValueError(f"no recording is left to train on: {indexed} found, {len(refused)} set aside{first}.")


class _Readers:
    """The processes that read, started when first needed and again after one has died; none for one worker."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, not forked: the parent may hold JAX's threads.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num_workers, context, initializer=_end_with_parent)
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _make(shards: Sequence[Shard], path_of: Callable[[Shard], Path], readers: _Readers, bar: Any) -> None:
    """Makes the shards that are not done; a recording that takes down the process that reads it is left out.

    Raises:
      ValueError: a process died, and not of a recording.
    """
    bar.update(sum(len(shard.numbers) for shard in shards if shard.done))
    crashed: frozenset[str] = frozenset()
    while waiting := [replace(shard, crashed=crashed) for shard in shards if not shard.done]:
        if readers.num_workers <= 1:
            for shard in waiting:
                write_shard(shard, path_of(shard))
                bar.update(len(shard.numbers))
            continue
        try:
            jobs = {readers.pool().submit(write_shard, shard, path_of(shard)): shard for shard in waiting}
            for job in as_completed(jobs):
                job.result()
                bar.update(len(jobs[job].numbers))
        except BrokenProcessPool as error:
            readers.close()
            if not (found := _culprits(waiting)):
                raise ValueError(
                    "a process that reads recordings died, of no single recording: out of memory? "
                    "Lower config.data.num_workers or config.quality.max_seconds, and run it again."
                ) from error
            crashed |= found


def _culprits(shards: Sequence[Shard]) -> frozenset[str]:
    """Of the recordings that were being read when a process died, those that alone take one down again."""
    found = set()
    for shard in shards:
        if not (note := shard.beside(".reading")).exists():
            continue
        id_ = note.read_text(encoding="utf-8")
        with contextlib.closing(_Readers(1)) as reader:
            try:
                reader.pool().submit(_probe, shard, id_).result()
            except BrokenProcessPool:
                found.add(id_)
        note.unlink()
    return frozenset(found)


def _probe(shard: Shard, id_: str) -> None:
    with contextlib.closing(Index(shard.folder / "index.sqlite")) as index:
        read_checked(shard.corpus, index.find(id_), shard.limits)


def _end_with_parent() -> None:
    """Ends this worker when the run is killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker only"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shard_files(folder: Path, suffix: str) -> list[Path]:
    """The notes beside shards, in order of split and number."""
    return [path for split in SPLITS for path in sorted((folder / "shards").glob(f"{split}-*{suffix}"))]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def rows(folder: Path, split: str) -> Iterator[prepared.Row]:
    """What was stored of a split, without audio, in the order of the shards."""
    for path in _shard_files(folder, ".rows.jsonl"):
        if path.name.startswith(f"{split}-"):
            yield from _lines(path)


def rejected(folder: Path) -> Iterator[Refused]:
    """Everything that was set aside: before reading in order of id, then shard by shard."""
    with contextlib.closing(Index(folder / "index.sqlite")) as index:
        yield from index.refused()
    for path in _shard_files(folder, ".rejected.jsonl"):
        yield from (Refused(**line) for line in _lines(path))
