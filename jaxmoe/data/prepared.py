"""The corpus as `prepare` stores it: a TFDS data set of ArrayRecord shards, without TensorFlow.

WORKDIR/corpus/speech/1.0.0/ holds splits train, validation and evaluation. It is an ordinary TFDS folder:
`tfds.builder_from_directory` reads it anywhere. tfds.features.Audio needs TensorFlow, so audio is int16 bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

NAME = "speech"
VERSION = "1.0.0"
REFERENCES = "references/references.jsonl"  # in WORKDIR
STRINGS = (
    *("id", "speaker", "text", "transcript", "translation", "translation_origin", "source", "etiology", "severity"),
    *("prompt", "category", "ratings", "voice", "channel", "sex", "language"),
)
BOOLEANS = ("simulated", "pretrain", "prompt_seen")

Row = dict[str, Any]


class Split(Sequence[Row]):
    """Rows of one split by number, each a dict: STRINGS as str, BOOLEANS as bool, duration_s, audio int16 [n].

    It can be pickled and read by several processes, and is a source for grain.MapDataset.
    """

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _decode(self._source[int(index)])

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        return [_decode(row) for row in self._source.__getitems__(list(indices))]

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))


def open_split(workdir: Path | str, split: str) -> Split:
    """What `prepare` stored of that split ("train", "validation" or "evaluation"), in random access.

    Raises:
      ValueError: nothing is prepared in `workdir`, or it has no such split.
    """
    import tensorflow_datasets as tfds

    folder = Path(workdir) / "corpus" / NAME / VERSION
    if not (folder / "dataset_info.json").exists():  # written last
        raise ValueError(f"{folder}: no prepared corpus; run --phase=prepare with this --workdir first.")
    builder = tfds.builder_from_directory(str(folder))
    if split not in builder.info.splits:
        found = ", ".join(f"{name} ({info.num_examples})" for name, info in builder.info.splits.items())
        raise ValueError(
            f"{folder}: no split {split!r}, found {found}; it takes three speakers or a split column, or, for one "
            "person alone, no column of speakers: recordings are then held out."
        )
    return Split(builder.as_data_source(split))


def open_metadata(workdir: Path | str, split: str) -> list[Row]:
    """The rows of that split without their audio but with `samples`, its length, in the order of open_split.

    German that the corpus lacks and phase `references` made is filled in.

    Raises:
      ValueError: as open_split.
    """
    path = metadata_file(Path(workdir) / "corpus", split)
    if not path.exists():
        open_split(workdir, split)  # says which of the two is missing
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    made = references(workdir)
    return [row if row["translation"] else row | made.get(row["id"], {}) for row in rows]


def references(workdir: Path | str) -> dict[str, dict[str, str]]:
    """What phase `references` made for utterances without German: id -> translation, translation_origin."""
    path = Path(workdir) / REFERENCES
    if not path.exists():
        return {}
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row["id"]: {name: row[name] for name in ("translation", "translation_origin")} for row in rows}


def splits(workdir: Path | str) -> list[str]:
    """The splits that `prepare` stored, train first."""
    folder = Path(workdir) / "corpus"
    return [split for split in ("train", "validation", "evaluation") if metadata_file(folder, split).exists()]


def lengths(workdir: Path | str, split: str) -> np.ndarray:
    """Samples of each recording of that split, int64 [U], in the order of open_split."""
    return np.array([row["samples"] for row in open_metadata(workdir, split)], np.int64)


def metadata_file(folder: Path, split: str) -> Path:
    return folder / f"metadata_{split}.jsonl"


def features() -> Any:
    """The TFDS features of a row."""
    import tensorflow_datasets as tfds

    f = tfds.features
    return f.FeaturesDict(
        {
            **{name: f.Text() for name in STRINGS},
            **{name: f.Scalar(dtype=np.bool_) for name in BOOLEANS},
            "duration_s": f.Scalar(dtype=np.float32),
            "audio": f.Tensor(shape=(None,), dtype=np.int16, encoding=f.Encoding.BYTES),
        }
    )


def _decode(row: Mapping[str, Any]) -> Row:
    return {
        **{name: row[name].decode() for name in STRINGS},
        **{name: bool(row[name]) for name in BOOLEANS},
        "duration_s": float(row["duration_s"]),
        "audio": np.asarray(row["audio"], np.int16),
    }
