"""What `embed` writes and later phases read: encoder latents and pooled depths, in shards that a kill cannot tear.

A shard is three files: NNNNN.latents.npy [sum of S', D] float16, NNNNN.depths.npy [U, L + 2, 2, D] float32 (mean
and standard deviation) and, written last, NNNNN.json with the ids and lengths. A shard without its JSON does not exist.
"""

from collections.abc import Iterable, Iterator, Sequence
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

SHARD_ROWS = 64  # utterances a shard; what a kill can cost
VARIANTS = "variants.npz"
WINDOWS = "windows.jsonl"


def write_shard(
    folder: Path,
    number: int,
    ids: Sequence[str],
    latents: Sequence[np.ndarray],
    depths: np.ndarray,
) -> None:
    """Writes one shard: latents are per utterance [S', D], depths [U, L + 2, 2, D]."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{number:05d}"
    none = np.zeros((0, depths.shape[-1]), np.float16)
    np.save(folder / f"{stem}.latents.npy", np.concatenate([none, *latents]).astype(np.float16))
    np.save(folder / f"{stem}.depths.npy", depths.astype(np.float32))
    temporary = folder / f"{stem}.json.tmp"
    lengths = [len(x) for x in latents]
    temporary.write_text(json.dumps({"ids": list(ids), "lengths": lengths}))
    os.replace(temporary, folder / f"{stem}.json")


def _shard_indices(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("[0-9]*.json"))


def embedded_ids(folder: Path) -> set[str]:
    """Ids of what the finished shards of a folder hold."""
    return {id_ for shard in _shard_indices(folder) for id_ in json.loads(shard.read_text())["ids"]}


def next_shard(folder: Path) -> int:
    """The number after the last finished shard's."""
    return max((int(shard.stem) for shard in _shard_indices(folder)), default=-1) + 1


def append_windows(folder: Path, parent: str, windows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Notes the windows of one long recording in FOLDER/windows.jsonl, in one write; returns them with their ids."""
    rows = [{"id": f"{parent}#{n}", "parent": parent, **window} for n, window in enumerate(windows)]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / WINDOWS, "a", encoding="utf-8") as file:
        file.write(json.dumps({"parent": parent, "windows": rows}, ensure_ascii=False) + "\n")
    return rows


def load_windows(folder: Path) -> list[dict[str, Any]]:
    """id, parent, start and end (samples), text and agreement of every window of a folder's long recordings."""
    path = Path(folder) / WINDOWS
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a kill can leave half a line
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [window for line in whole.splitlines() for window in json.loads(line)["windows"]]


def with_windows(rows: Iterable[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of a split; of a recording that was cut into windows, these: its fields, but their id, text and samples.

    `row` is the recording's number in the split, `start` the first sample. Windows have no German: it is of the whole.
    """
    windows: dict[str, list[dict[str, Any]]] = {}
    for window in load_windows(folder):
        windows.setdefault(window["parent"], []).append(window)
    for number, row in enumerate(rows):
        row = row | {"row": number, "start": 0}
        if row["id"] not in windows:
            yield row
        for w in windows.get(row["id"], ()):
            part = {"id": w["id"], "text": w["text"], "start": w["start"], "samples": w["end"] - w["start"]}
            yield row | part | {"translation": "", "translation_origin": ""}


class Embeddings:
    """Random access to the shards of one folder; latents stay on disk until read."""

    def __init__(self, folder: Path):
        shards = _shard_indices(folder)
        if not shards:
            raise FileNotFoundError(f"{folder}: no embeddings; run --phase=embed first.")
        self.ids: list[str] = []
        self._where: list[tuple[np.ndarray, int, int]] = []
        depths = []
        for shard in shards:
            index = json.loads(shard.read_text())
            latents = np.load(shard.with_suffix(".latents.npy"), mmap_mode="r")
            ends = np.cumsum(index["lengths"])
            if len(latents) != sum(index["lengths"]):
                raise ValueError(
                    f"{shard}: names {sum(index['lengths'])} positions, its latents hold {len(latents)}; "
                    f"delete {shard.stem}.* and run --phase=embed again."
                )
            for end, length in zip(ends, index["lengths"], strict=True):
                self._where.append((latents, int(end - length), int(end)))
            self.ids += index["ids"]
            depths.append(np.load(shard.with_suffix(".depths.npy")))
        self.depths = np.concatenate(depths)  # [U, L + 2, 2, D]
        self.row = {id_: i for i, id_ in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pooled(self) -> np.ndarray:
        """e [U, D]: the masked mean of the encoder's output."""
        return self.depths[:, -1, 0]

    def length(self, i: int) -> int:
        """S' of utterance i."""
        _, start, end = self._where[i]
        return end - start

    def latents(self, i: int) -> np.ndarray:
        """H of utterance i, [S', D] float32."""
        latents, start, end = self._where[i]
        return np.asarray(latents[start:end], np.float32)


def write_variants(folder: Path, **sets: np.ndarray) -> None:
    """Depths [clips, variants, L + 2, 2, D] of recordings in variants that must decide no cluster, by what varies."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{VARIANTS}.tmp.npz"
    np.savez(temporary, allow_pickle=False, **{name: x.astype(np.float32) for name, x in sets.items()})
    os.replace(temporary, folder / VARIANTS)


def load_variants(folder: Path) -> list[np.ndarray]:
    """The sets that write_variants wrote, in the order of their names; none where `embed` was told to make none."""
    if not (folder / VARIANTS).exists():
        return []
    with np.load(folder / VARIANTS) as sets:
        return [sets[name] for name in sorted(sets.files)]
