"""The matched-pairs test of two recognisers on the same utterances.

Each utterance is a segment; the mean difference of word errors a segment is held against its standard error.
It takes utterances for independent, which those of one speaker are not: read it beside the bootstrap over speakers.
Source: Gillick & Cox 1989, "Some statistical issues in the comparison of speech recognition algorithms" (MAPSSWE,
as in NIST's sctk).
"""

import math

import numpy as np

MIN_SEGMENTS = 30  # that differ: below it the normal approximation of the mean is not to be trusted


def matched_pairs(first: np.ndarray, second: np.ndarray) -> float | None:
    """Two-sided p of "both make as many errors"; first, second: word errors of each utterance [U].

    None where fewer than MIN_SEGMENTS utterances differ.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    if np.count_nonzero(difference) < MIN_SEGMENTS:
        return None
    deviation = float(difference.std(ddof=1))
    if deviation == 0:  # every utterance differs by the same number
        return 0.0
    z = float(difference.mean()) / (deviation / math.sqrt(len(difference)))
    return math.erfc(abs(z) / math.sqrt(2))
