"""The matched-pairs test against scipy's paired t-test, and its limits."""

import numpy as np
import pytest
from scipy import stats

from jaxmoe.eval.matched_pairs import matched_pairs


def test_p_is_that_of_the_paired_t_test_for_many_utterances():
    rng = np.random.default_rng(0)
    first = rng.poisson(2.0, 4000).astype(float)
    second = np.maximum(first + rng.integers(-1, 2, 4000) + (rng.random(4000) < 0.02), 0)
    assert matched_pairs(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=0.05)
    assert matched_pairs(first, second) == matched_pairs(second, first)


def test_equal_recognisers_differ_by_chance_as_often_as_p_says():
    rng = np.random.default_rng(1)
    found = [matched_pairs(rng.poisson(1.0, 200), rng.poisson(1.0, 200)) for _ in range(500)]
    assert np.mean([p < 0.05 for p in found]) == pytest.approx(0.05, abs=0.03)


def test_few_differences_give_no_p():
    same = np.ones(100)
    assert matched_pairs(same, same) is None
    assert matched_pairs(same, np.where(np.arange(100) < 29, 2.0, 1.0)) is None
    assert matched_pairs(same, same + 1) == 0.0
