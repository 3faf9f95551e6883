"""Word and character error rates under named regimes, kept per utterance so that they can be resampled.

`whisper`: transformers' EnglishTextNormalizer on both sides, one reference, micro-average.
`sap`: the Speech Accessibility Project Challenge's rules: transcript markup is read, every utterance has
two references (with and without its disfluencies) and the better one counts, errors are clipped to the
length of the reference, and unknown words match any word.
Source of the `sap` rules: github.com/xiuwenz2/SAPC-template at 2b4b5c05, utils/normalizer and utils/metrics.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re

import numpy as np
from rapidfuzz.distance import Levenshtein

from jaxmoe.data import markup

# A word that no recogniser writes and that the normaliser leaves alone: it stands for {u:} and {w:N}.
UNKNOWN = "xunknownx"

DESCRIPTIONS = {
    "whisper": "whisper: both sides through Whisper's English text normaliser; errors and reference words summed"
    " over utterances (micro-average)",
    "sap": "sap: as the SAP Challenge counts: [..] dropped, the better of two references (with and without"
    " disfluencies), errors clipped to the reference's length, unknown words match any word; micro-average",
}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Edits of each utterance, float64 [U]; halves occur where two equally good references are averaged.

    `errors` is substitutions + deletions + insertions, except where the regime clips it.
    """

    errors: np.ndarray
    words: np.ndarray
    char_errors: np.ndarray
    chars: np.ndarray
    substitutions: np.ndarray
    deletions: np.ndarray
    insertions: np.ndarray

    @property
    def wer(self) -> float:
        """Micro-averaged word error rate in per cent; nan without reference words."""
        return float(rate(np.array([self.errors.sum(), self.words.sum()])))

    @property
    def cer(self) -> float:
        """Micro-averaged character error rate in per cent, spaces counted; nan without characters."""
        return float(rate(np.array([self.char_errors.sum(), self.chars.sum()])))


def rate(sums: np.ndarray) -> np.ndarray:
    """100 * errors / length of summed counts [..., 2] -> [...]; nan where the length is zero."""
    errors, length = sums[..., 0], sums[..., 1]
    out = np.full(np.shape(errors), np.nan)
    np.divide(100.0 * errors, length, out=out, where=length > 0)
    return out


@functools.lru_cache(maxsize=1)
def _normalizer() -> Callable[[str], str]:
    from jaxmoe.data.text import EnglishNormalizer  # transformers is slow to import

    return EnglishNormalizer()


@functools.lru_cache(maxsize=200_000)  # systems often agree, and references repeat for every system
def normalize(text: str) -> str:
    """Whisper's English normalisation, without outer spaces."""
    return _normalizer()(text).strip()


# --- the `sap` regime: transcript markup ---

def sap_references(transcript: str) -> tuple[str, str]:
    """The two normalised references of a SAP transcript: with and without its (disfluencies).

    Words of `(cs: ...)`, said by somebody else, are audible and stay in both, as in the challenge.
    Unknown words appear as `UNKNOWN`.
    """
    spoken, fluent = markup.readings(transcript, UNKNOWN)
    return _sap_normalize(spoken), _sap_normalize(fluent)


def sap_hypothesis(text: str) -> str:
    """A hypothesis as `sap` compares it: brackets opened rather than dropped, for they are output too."""
    return _sap_normalize(markup.join_letters(markup.straight(text)))


def _sap_normalize(text: str) -> str:
    return normalize(re.sub(r"[()\[\]{}<>]", " ", text))


# --- alignment ---


def _edits(reference: list[str], hypothesis: list[str]) -> tuple[int, int, int]:
    """Substitutions, deletions, insertions of one minimal alignment."""
    if reference == hypothesis:
        return 0, 0, 0
    kinds = [op.tag for op in Levenshtein.editops(reference, hypothesis)]
    return kinds.count("replace"), kinds.count("delete"), kinds.count("insert")


def fill_unknown(reference: list[str], hypothesis: list[str]) -> list[str]:
    """The reference with each `UNKNOWN` replaced by the hypothesis word it stands against.

    Minimal alignment in which UNKNOWN equals any word. One that stands against nothing remains, to be
    counted as a deletion.
    """
    n, m = len(reference), len(hypothesis)
    cost = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n + 1):
        for j in range(m + 1):
            if i == 0 or j == 0:
                cost[i][j] = i + j
                continue
            same = reference[i - 1] in (UNKNOWN, hypothesis[j - 1])
            cost[i][j] = min(cost[i - 1][j - 1] + (not same), cost[i - 1][j] + 1, cost[i][j - 1] + 1)
    filled = list(reference)
    i, j = n, m
    while i and j:
        same = reference[i - 1] in (UNKNOWN, hypothesis[j - 1])
        if cost[i][j] == cost[i - 1][j - 1] + (not same):
            if reference[i - 1] == UNKNOWN:
                filled[i - 1] = hypothesis[j - 1]
            i, j = i - 1, j - 1
        elif cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    return filled


def _char_edits(reference: str, hypothesis: str) -> tuple[float, float]:
    return float(Levenshtein.distance(reference, hypothesis)), float(len(reference))


_Row = tuple[float, float, float, float, float, float, float]  # the fields of Counts, in order


def _whisper_row(reference: str, hypothesis: str) -> _Row:
    ref, hyp = normalize(reference), normalize(hypothesis)
    words = ref.split()
    s, d, i = _edits(words, hyp.split())
    return (float(s + d + i), float(len(words)), *_char_edits(ref, hyp), float(s), float(d), float(i))


def _sap_row(reference: str, hypothesis: str) -> _Row:
    """Words and characters choose their better reference on their own; ties are averaged."""
    spoken, fluent = sap_references(reference)
    hyp = sap_hypothesis(hypothesis)
    hyp_words = hyp.split()
    options: list[_Row] = []
    for ref in (spoken,) if spoken == fluent else (spoken, fluent):
        words = ref.split()
        if UNKNOWN in words:
            words = fill_unknown(words, hyp_words)
        s, d, i = _edits(words, hyp_words)
        chars, length = _char_edits(" ".join(words).replace(UNKNOWN, "unk"), hyp)
        # Without reference words nothing is clipped: words invented on silence are not forgiven.
        errors = min(s + d + i, len(words)) if words else s + d + i
        chars = min(chars, length) if length else chars
        options.append((float(errors), float(len(words)), chars, length, float(s), float(d), float(i)))
    word = _better([(o[0], o[1], o[4], o[5], o[6]) for o in options])
    char = _better([(o[2], o[3]) for o in options])
    return word[0], word[1], char[0], char[1], word[2], word[3], word[4]


def _better(options: list[tuple[float, ...]]) -> tuple[float, ...]:
    """The option with the lower errors / length (the first two numbers), their mean when both are equal."""
    if len(options) == 1:
        return options[0]
    rates = [o[0] / o[1] if o[1] else float("inf") for o in options]
    if rates[0] == rates[1]:
        return tuple((a + b) / 2 for a, b in zip(*options, strict=True))
    return options[int(rates[1] < rates[0])]


REGIMES: dict[str, Callable[[str, str], _Row]] = {"whisper": _whisper_row, "sap": _sap_row}


def score(references: Sequence[str], hypotheses: Sequence[str], regime: str = "whisper") -> Counts:
    """Edits of every utterance under a regime.

    Raises:
        ValueError: unknown regime, or unequal numbers of references and hypotheses.
    """
    if regime not in REGIMES:
        raise ValueError(f"WER regime {regime!r} is unknown; expected one of {sorted(REGIMES)}.")
    if len(references) != len(hypotheses):
        raise ValueError(
            f"{len(references)} references but {len(hypotheses)} hypotheses; expected one of each an utterance."
        )
    row = REGIMES[regime]
    rows = [row(r, h) for r, h in zip(references, hypotheses, strict=True)]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(dataclasses.fields(Counts)))
    return Counts(*table.T)
