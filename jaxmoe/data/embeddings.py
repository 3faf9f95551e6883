"""What `embed` writes and later phases read: encoder latents and pooled depths, in shards that a kill cannot tear.

A shard is three files: NNNNN.latents.npy [sum of S', D] float16, NNNNN.depths.npy [U, L + 2, D] float32 and, written
last, NNNNN.json with the ids and lengths. A shard without its JSON does not exist.
"""

from collections.abc import Sequence
import json
import os
from pathlib import Path

import numpy as np

SHARD_ROWS = 64  # utterances a shard; what a kill can cost
VARIANTS = "variants.npz"


def write_shard(
    folder: Path,
    number: int,
    ids: Sequence[str],
    latents: Sequence[np.ndarray],
    depths: np.ndarray,
) -> None:
    """Writes one shard: latents are per utterance [S', D], depths [U, L + 2, D]."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{number:05d}"
    np.save(folder / f"{stem}.latents.npy", np.concatenate(latents).astype(np.float16))
    np.save(folder / f"{stem}.depths.npy", depths.astype(np.float32))
    temporary = folder / f"{stem}.json.tmp"
    lengths = [len(x) for x in latents]
    temporary.write_text(json.dumps({"ids": list(ids), "lengths": lengths}))
    os.replace(temporary, folder / f"{stem}.json")


class Embeddings:
    """Random access to the shards of one folder; latents stay on disk until read."""

    def __init__(self, folder: Path):
        shards = sorted(Path(folder).glob("*.json"))
        if not shards:
            raise FileNotFoundError(f"{folder}: no embeddings; run --phase=embed first.")
        self.ids: list[str] = []
        self._where: list[tuple[np.ndarray, int, int]] = []
        depths = []
        for shard in shards:
            index = json.loads(shard.read_text())
            latents = np.load(shard.with_suffix(".latents.npy"), mmap_mode="r")
            ends = np.cumsum(index["lengths"])
            if len(latents) != ends[-1]:
                raise ValueError(
                    f"{shard}: names {ends[-1]} positions, its latents hold {len(latents)}; "
                    f"delete {shard.stem}.* and run --phase=embed again."
                )
            for end, length in zip(ends, index["lengths"], strict=True):
                self._where.append((latents, int(end - length), int(end)))
            self.ids += index["ids"]
            depths.append(np.load(shard.with_suffix(".depths.npy")))
        self.depths = np.concatenate(depths)  # [U, L + 2, D]
        self.row = {id_: i for i, id_ in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pooled(self) -> np.ndarray:
        """e [U, D]: the masked mean of the encoder's output."""
        return self.depths[:, -1]

    def length(self, i: int) -> int:
        """S' of utterance i."""
        _, start, end = self._where[i]
        return end - start

    def latents(self, i: int) -> np.ndarray:
        """H of utterance i, [S', D] float32."""
        latents, start, end = self._where[i]
        return np.asarray(latents[start:end], np.float32)


def write_variants(folder: Path, **sets: np.ndarray) -> None:
    """Depths [clips, variants, L + 2, D] of recordings in variants that must not decide a cluster, by what varies."""
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
