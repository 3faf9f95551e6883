"""BLEU and chrF from summed statistics against sacrebleu's own corpus scores."""

import numpy as np
import pytest
import sacrebleu

from jaxmoe.eval import bleu

WORDS = "die Schwester öffnete ein Fenster, vor dem Regen; und rief: ihren Bruder (am Hafen) 3,5 Mal!".split()


def _corpus(seed: int, size: int, noise: float) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    references = [" ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(size)]
    hypotheses = [
        " ".join(str(rng.choice(WORDS)) if rng.random() < noise else w for w in r.split() if rng.random() > noise / 3)
        for r in references
    ]
    return hypotheses, references


CASES = [
    *(_corpus(seed, size, noise) for seed in range(8) for size in (1, 2, 40) for noise in (0.0, 0.3, 0.9)),
    ([""], ["ein Haus"]),
    (["ein Haus"], [""]),
    (["Haus"], ["Haus"]),
    (["a b c d e"], ["e d c b a"]),  # no bigram matches: three orders are smoothed
    (["völlig anders"], ["ein Haus am See"]),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_agrees_with_sacrebleu(case: int):
    hypotheses, references = CASES[case]
    expected = sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert bleu.bleu(bleu.bleu_statistics(hypotheses, references).sum(axis=0)) == pytest.approx(expected, abs=1e-9)
    expected = sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert bleu.chrf(bleu.chrf_statistics(hypotheses, references).sum(axis=0)) == pytest.approx(expected, abs=1e-9)


def test_many_sums_at_once_equal_one_by_one():
    hypotheses, references = _corpus(3, 60, 0.4)
    for statistics, score in ((bleu.bleu_statistics, bleu.bleu), (bleu.chrf_statistics, bleu.chrf)):
        table = statistics(hypotheses, references)
        sums = np.stack([table[:n].sum(axis=0) for n in (0, 1, 5, 60)])
        np.testing.assert_allclose(score(sums), [score(row) for row in sums], rtol=1e-12)


def test_case_counts_and_the_signature_says_so():
    score = bleu.bleu(bleu.bleu_statistics(["das haus am see"], ["Das Haus am See"]).sum(axis=0))
    assert score < 100
    assert "case:mixed" in bleu.bleu_signature() and "tok:13a" in bleu.bleu_signature()
    assert "nc:6" in bleu.chrf_signature()


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="1 translations but 2 references"):
        bleu.bleu_statistics(["a"], ["a", "b"])
