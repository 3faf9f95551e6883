"""BLEU and chrF2 from per-utterance sufficient statistics, equal to sacrebleu's corpus scores.

sacrebleu extracts the statistics (its tokeniser, its n-grams); the scores of summed statistics are computed
here over any leading axes, so that a thousand bootstrap draws are one array operation.
Source: Post 2018 (BLEU: sacrebleu 13a, mixed case, exponential smoothing), Popovic 2015 (chrF, beta 2).
"""

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

BLEU_WIDTH = 10  # hypothesis length, reference length, 4 matches, 4 totals
CHRF_WIDTH = 18  # (hypothesis, reference, match) counts of character n-grams 1 to 6
CHUNK = 1000  # utterances whose reference n-grams are held at once: all of 50,000 would take over 1 GB


def bleu_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """int64 [U, 10]: lengths of hypothesis and reference, n-gram matches 1-4, n-gram totals 1-4."""
    return statistics("bleu", [hypotheses], references)[0]


def chrf_statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """int64 [U, 18]: for character n-grams 1-6 the counts in hypothesis, reference and both."""
    return statistics("chrf", [hypotheses], references)[0]


def statistics(metric: str, systems: Sequence[Sequence[str]], references: Sequence[str]) -> list[np.ndarray]:
    """Statistics [U, 10] ("bleu") or [U, 18] ("chrf") of several systems; references are taken apart once.

    Raises: ValueError when a system has another number of translations than there are references.
    """
    for hypotheses in systems:
        if len(hypotheses) != len(references):
            raise ValueError(
                f"{len(hypotheses)} translations but {len(references)} references; expected one of each an utterance."
            )
    width = BLEU_WIDTH if metric == "bleu" else CHRF_WIDTH
    out = [np.zeros((len(references), width), dtype=np.int64) for _ in systems]
    for start in range(0, len(references), CHUNK):
        part = slice(start, start + CHUNK)
        scorer = _bleu([references[part]]) if metric == "bleu" else CHRF(references=[references[part]])
        for table, hypotheses in zip(out, systems, strict=True):
            table[part] = scorer._extract_corpus_statistics(hypotheses[part], None)
    return out


def _bleu(references: Sequence[Sequence[str]] | None = None) -> BLEU:
    return BLEU(tokenize="13a", force=True, references=references)


def bleu(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU in [0, 100] of summed statistics [..., 10] -> [...]; exponential smoothing as in sacrebleu."""
    sums = np.asarray(sums, dtype=np.float64)
    hyp_len, ref_len = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2:6], sums[..., 6:10]
    # Each order without a match counts as 1 / 2^k of an n-gram, k its rank among such orders.
    missing = (correct == 0) & (total > 0)
    smoothed = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), correct)
    defined = np.asarray((total > 0).all(axis=-1) & (correct > 0).any(axis=-1))
    safe = np.where(defined[..., None], smoothed / np.maximum(total, 1), 1.0)
    brevity = np.exp(np.minimum(0.0, 1.0 - ref_len / np.maximum(hyp_len, 1)))
    return np.where(defined, 100.0 * brevity * np.exp(np.log(safe).mean(axis=-1)), 0.0)


def chrf(sums: np.ndarray) -> np.ndarray:
    """Corpus chrF2 in [0, 100] of summed statistics [..., 18] -> [...]; orders absent on a side left out."""
    sums = np.asarray(sums, dtype=np.float64)
    counts = sums.reshape(*sums.shape[:-1], 6, 3)
    hyp, ref, match = counts[..., 0], counts[..., 1], counts[..., 2]
    used = (hyp > 0) & (ref > 0)
    orders = np.maximum(used.sum(axis=-1), 1)
    precision = np.where(used, match / np.maximum(hyp, 1), 0.0).sum(axis=-1) / orders
    recall = np.where(used, match / np.maximum(ref, 1), 0.0).sum(axis=-1) / orders
    weight = 4.0  # beta^2
    top = 100.0 * (1 + weight) * precision * recall
    return top / np.where(precision + recall > 0, weight * precision + recall, 1.0)


def bleu_signature() -> str:
    """sacrebleu's signature of the BLEU computed here."""
    metric = _bleu()
    metric.corpus_score(["a"], [["a"]])  # the signature exists only after a score
    return str(metric.get_signature())


def chrf_signature() -> str:
    """sacrebleu's signature of the chrF computed here."""
    metric = CHRF()
    metric.corpus_score(["a"], [["a"]])
    return str(metric.get_signature())
