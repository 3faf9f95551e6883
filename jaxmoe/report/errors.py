"""Which sounds are lost: substituted words compared letter group by letter group.

Sounds are read off the spelling (a table below), not from a pronouncing dictionary: coarse, but the same for every
system, and defined for every word.
"""

from collections import Counter
from collections.abc import Sequence
import itertools
import re
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from jaxmoe.eval.wer import normalize

# Spelling -> class of sound; longer spellings are tried first.
CLASSES = {
    "stops": "ck p b t d k g c q",
    "fricatives": "sh ph gh th f v s z x h",
    "affricates": "tch dge ch j",
    "nasals": "ng m n",
    "liquids": "l r",
    "glides": "wh w y",
    "vowels": "a e i o u",
}
_CLASS = {spelling: name for name, spellings in CLASSES.items() for spelling in spellings.split()}
_SOUND = re.compile("|".join(sorted(_CLASS, key=len, reverse=True)))
MAX_PAIRS = 20_000  # substituted words looked at: enough for shares to a tenth of a per cent


def sounds(word: str) -> list[str]:
    """The letter groups of a word that stand for one sound each: "watching" -> w a tch i ng."""
    return _SOUND.findall(word.casefold())


def lost_sounds(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Any]:
    """{"pairs", "classes": {class: {"sounds", "wrong", "share"}}} over the words that were replaced by another.

    sounds: of that class in the reference's words of those pairs; wrong: those replaced or left out; share: per cent.
    The classes are sorted by share, worst first.
    """
    total: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    pairs = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for said, heard in _substituted(reference, hypothesis):
            pairs += 1
            ours = sounds(said)
            total.update(_CLASS[s] for s in ours)
            operations = Levenshtein.editops(ours, sounds(heard))
            wrong.update(_CLASS[ours[op.src_pos]] for op in operations if op.tag != "insert")
        if pairs >= MAX_PAIRS:
            break
    shares = {name: 100.0 * wrong[name] / total[name] for name in CLASSES if total[name]}
    return {
        "pairs": pairs,
        "classes": {
            name: {"sounds": total[name], "wrong": wrong[name], "share": shares[name]}
            for name in sorted(shares, key=lambda n: -shares[n])
        },
    }


def _substituted(reference: str, hypothesis: str) -> list[tuple[str, str]]:
    """Words said and heard in their place, in one minimal alignment of the normalised texts."""
    said, heard = normalize(reference).split(), normalize(hypothesis).split()
    if said == heard:
        return []
    operations = Levenshtein.editops(said, heard)
    return [(said[op.src_pos], heard[op.dest_pos]) for op in operations if op.tag == "replace"]


def most_confused(references: Sequence[str], hypotheses: Sequence[str], number: int = 10) -> list[dict[str, Any]]:
    """The commonest substitutions: [{"said", "heard", "times"}], those seen once left out."""
    seen: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        seen.update(_substituted(reference, hypothesis))
    common = sorted(((n, pair) for pair, n in seen.items() if n > 1), key=lambda x: (-x[0], x[1]))
    return [{"said": said, "heard": heard, "times": n} for n, (said, heard) in common[:number]]


def bins(values: Sequence[float | None], edges: Sequence[float], unit: str) -> np.ndarray:
    """The bin of each value as text, [U]: "under 10 dB", "10 to 20 dB", "over 20 dB"; "unknown" for None."""
    names = [f"under {edges[0]:g} {unit}"]
    names += [f"{low:g} to {high:g} {unit}" for low, high in itertools.pairwise(edges)]
    names.append(f"over {edges[-1]:g} {unit}")
    places = [None if v is None else int(np.searchsorted(edges, v, side="right")) for v in values]
    return np.array(["unknown" if place is None else names[place] for place in places], dtype=object)
