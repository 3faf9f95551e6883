"""Sentence pairs: where they come from, and batches of them in an order that is a function of seed and step alone."""

from collections.abc import Callable, Iterable, Sequence
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import numpy as np

from jaxmoe.data import prepared
from jaxmoe.data.batches import bucket_sizes
from jaxmoe.data.corpora import normalised

Pair = tuple[str, str]  # English, German
HELD_OUT = 10  # every tenth pair, where the corpus has no validation sentences of its own


class PairBatch(flax.struct.PyTreeNode):
    """Pairs of one step, each row a source and what it is to be answered with.

    Attributes:
      source: [B, S] tokens, padded on the left, so that the answer follows at once.
      source_mask: [B, S], True where a token stands.
      targets: [B, T] tokens, the one that ends the answer included.
      weights: [B, T], 1 where a target counts.
    """

    source: Any
    source_mask: Any
    targets: Any
    weights: Any


class Encoded(NamedTuple):
    """One pair as tokens."""

    source: list[int]
    target: list[int]


def corpus_pairs(workdir: Path, split: str) -> list[Pair]:
    """The distinct sentences of a prepared split that have a German reference, in alphabetical order."""
    rows = prepared.open_metadata(workdir, split)
    return sorted({(row["text"], row["translation"]) for row in rows if row["text"] and row["translation"]})


def speakers(workdir: Path, splits: Iterable[str]) -> set[str]:
    """Whose utterances the pairs of these splits are."""
    rows = (row for split in splits for row in prepared.open_metadata(workdir, split))
    return {row["speaker"] for row in rows if row["text"] and row["translation"]}


def read_tsv(path: Path) -> list[Pair]:
    """Pairs of a file with a line `English<TAB>German` each.

    Raises:
      ValueError: a line has another number of columns, or an empty one; the message names it.
    """
    pairs = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            columns = [column.strip() for column in line.rstrip("\n").split("\t")]
            if len(columns) != 2 or not all(columns):
                raise ValueError(f"{path}:{number}: {line.strip()[:60]!r}; expected English, a tab and German.")
            pairs.append((columns[0], columns[1]))
    return pairs


def without(pairs: Iterable[Pair], others: Iterable[Pair]) -> list[Pair]:
    """The pairs whose English is in none of `others`, whatever its punctuation and case."""
    known = {normalised(english) for english, _ in others}
    return [pair for pair in pairs if normalised(pair[0]) not in known]


def divide(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and a tenth to validate on, chosen by a hash of their English."""
    held = lambda pair: hashlib.sha256(normalised(pair[0]).encode()).digest()[0] % HELD_OUT == 0
    return [p for p in pairs if not held(p)], [p for p in pairs if held(p)]


def encode(
    pairs: Sequence[Pair], source: Callable[[str], list[int]], target: Callable[[str], list[int]], limit: int
) -> list[Encoded]:
    """Pairs as tokens; those with more than `limit` on a side are left out and counted on the terminal."""
    encoded = [Encoded(source(english), target(german)) for english, german in pairs]
    kept = [e for e in encoded if max(map(len, e)) <= limit]
    if len(kept) < len(encoded):
        print(f"{len(encoded) - len(kept)} of {len(encoded)} pairs have over {limit} tokens and are left out")
    return kept


class PairSource:
    """Batch number -> PairBatch: random access, so that Grain can prefetch and resume.

    Pairs of about the same length share a batch. An epoch uses each once, but for the last that do not fill a batch.
    """

    def __init__(self, pairs: Sequence[Encoded], *, batch_size: int, steps: int, seed: int) -> None:
        if not pairs:
            raise ValueError("no sentence pairs to train on.")
        self.pairs, self.batch_size, self.steps, self.seed = pairs, batch_size, steps, seed
        lengths = np.array([[len(side) for side in pair] for pair in pairs])  # [U, 2]
        self._bucket = bucket_sizes(lengths.sum(1), 8, most=2)  # [U]; each bucket is compiled once
        self._sizes = {b: -(-lengths[self._bucket == b].max(0) // 8) * 8 for b in set(self._bucket)}

    def __len__(self) -> int:
        return self.steps

    @property
    def batches_per_epoch(self) -> int:
        return max(len(self.pairs) // self.batch_size, 1)

    def __getitem__(self, step: int) -> PairBatch:
        epoch, number = divmod(int(step), self.batches_per_epoch)
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.pairs))
        order = np.resize(order, self.batches_per_epoch * self.batch_size)
        order = order[np.argsort(self._bucket[order], kind="stable")]
        picked = order.reshape(-1, self.batch_size)[rng.permutation(self.batches_per_epoch)[number]]
        sizes = np.max([self._sizes[self._bucket[i]] for i in picked], axis=0)
        return collate([self.pairs[i] for i in picked], *map(int, sizes))


def all_batches(pairs: Sequence[Encoded], batch_size: int) -> list[PairBatch]:
    """Every pair once, all batches of one shape."""
    source, target = (-(-max(len(side) for side in sides) // 8) * 8 for sides in zip(*pairs, strict=True))
    chunks = (pairs[at : at + batch_size] for at in range(0, len(pairs), batch_size))
    return [collate(chunk, source, target, batch_size) for chunk in chunks]


def collate(pairs: Sequence[Encoded], source_size: int, target_size: int, rows: int = 0) -> PairBatch:
    """One batch padded to these sizes; rows beyond the pairs count nothing."""
    rows = max(rows, len(pairs))
    source, mask = np.zeros((rows, source_size), np.int32), np.zeros((rows, source_size), bool)
    targets, weights = np.zeros((rows, target_size), np.int32), np.zeros((rows, target_size), np.float32)
    mask[len(pairs) :, -1] = True  # attention needs something to look at
    for row, pair in enumerate(pairs):
        source[row, source_size - len(pair.source) :], mask[row, source_size - len(pair.source) :] = pair.source, True
        targets[row, : len(pair.target)], weights[row, : len(pair.target)] = pair.target, 1
    return PairBatch(source, mask, targets, weights)
