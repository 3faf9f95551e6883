"""Splits: by speaker, stratified by etiology, the same for a seed whatever the machine and the order of files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import hashlib

from jaxmoe.data.corpora import Recording, Refused

HELD_OUT_SHARE = 0.1  # of the speakers, for validation and again for evaluation


@dataclass(frozen=True)
class Speaker:
    """A speaker of a corpus; `split` is the corpus's own, or ""."""

    name: str
    etiology: str
    split: str = ""


def assign(speakers: Sequence[Speaker], seed: int) -> Mapping[str, str]:
    """Speaker -> split: the corpus's own where it names one, else 80/10/10.

    Speakers are put in order of etiology, within it by a hash of seed and name, and every tenth is held out: shares are
    met within each etiology. From three speakers on, no split is empty. Where the corpus has train and evaluation of
    its own and no validation, validation is drawn from train; where all of it is called train, that is not a split.
    """
    split = {s.name: s.split for s in speakers if s.split}
    if set(split.values()) == {"train"}:  # that is no split
        split = {}
    left = [s for s in speakers if s.name not in split]
    if left:
        return split | _draw(left, seed, ("evaluation", "validation"))
    if "validation" not in split.values() and "evaluation" in split.values():
        split |= _draw([s for s in speakers if s.split == "train"], seed, ("validation",))
    return split


def only_evaluated(
    scanned: Iterable[tuple[Recording | Refused, str]], etiologies: str
) -> Iterator[tuple[Recording | Refused, str]]:
    """What is listed, with speakers of some etiologies ("ALS, stroke") in evaluation alone.

    Of those whom the corpus's own split trains or validates with, recordings are refused: evaluation may have been put
    together with care.

    Raises:
      ValueError: at the end, an etiology that nobody is left to evaluate with.
    """
    wanted = {name.strip() for name in etiologies.split(",")} - {""}
    found, evaluated = set(), set()
    for item, state in scanned:
        found.add(item.etiology)
        if isinstance(item, Refused) or item.etiology not in wanted:
            yield item, state
        elif item.split in ("", "evaluation"):
            evaluated.add(item.etiology)
            yield replace(item, split="evaluation"), state
        else:
            detail = f"of {item.split}, and config.data.unseen_etiologies has {item.etiology!r}"
            yield Refused(item.id, "etiology held out", detail, item.source, item.speaker, item.etiology), ""
    if missing := ", ".join(sorted(wanted - evaluated)):
        raise ValueError(
            f"config.data.unseen_etiologies={etiologies!r}: nobody is left to evaluate with {missing}. The corpus has "
            f"{', '.join(sorted(found))}; whom its own split trains with is not evaluated: take that split out, or "
            "name others."
        )


def _draw(speakers: Sequence[Speaker], seed: int, parts: Sequence[str]) -> dict[str, str]:
    """A tenth of the speakers, at least one, for each of `parts`; the others train."""
    order = sorted(speakers, key=lambda s: (hash63(seed, s.etiology), s.etiology, hash63(seed, s.name), s.name))
    left = [s.name for s in order]
    held_out = max(1, round(HELD_OUT_SHARE * len(left))) if len(left) >= 3 else 0
    drawn = dict.fromkeys(left, "train")
    for part in parts:
        chosen = {left[int((n + 0.5) * len(left) / held_out)] for n in range(held_out)}
        drawn |= dict.fromkeys(chosen, part)
        left = [name for name in left if name not in chosen]
    return drawn


def hash63(seed: int, text: str) -> int:
    """A number that fits SQLite's integers, and that depends on nothing but its arguments."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=8).digest()) >> 1
