"""One person's adaptation: it takes the steps that recordings left out of it are better for, and none otherwise."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import quickstart
from jaxmoe.phases.personalize import Adapter, chosen
from tests import tiny

SHOTS = 6


@pytest.fixture(scope="module")
def backbone():
    return tiny.make_model(), tiny.make_base()


def adapt(backbone, utterances, rows, **changes):
    config = quickstart.get_config().unlock()
    config.personalize.update({"shots": SHOTS, "rank": 2, "steps": 12, "lr": 1e-2} | changes)
    params = tiny.make_params(*backbone)
    composed, steps = Adapter(config, *backbone, params, utterances)(rows)
    return params, composed, steps


def one_person(utterances, texts):
    """Utterances whose texts are these in turn."""
    tokens = [[257, 258, *texts[i % len(texts)], 256] for i in range(len(utterances))]
    return dataclasses.replace(utterances, tokens=tokens)


def test_what_recordings_have_in_common_is_learnt(backbone, tmp_path):
    same = one_person(tiny.make_utterances(tmp_path, count=SHOTS), [[7, 9, 11, 7]])
    params, composed, steps = adapt(backbone, same, range(SHOTS))
    assert steps > 3
    assert any(np.any(ab["b"][:, :, 3:]) for ab in composed["shared"].values()), "the person's own columns have moved"
    assert np.any(composed["gate"]["dense2"]["bias"] != params["gate"]["dense2"]["bias"])


def test_nothing_is_learnt_that_other_recordings_are_worse_for(backbone, tmp_path):
    """Recordings 1 and 4 are left out; the others say one word again and again, and never theirs."""
    texts = [[7] * 20, list(range(200, 220)), [7] * 20]
    apart = one_person(tiny.make_utterances(tmp_path, count=SHOTS), texts)
    params, composed, steps = adapt(backbone, apart, range(SHOTS))
    assert steps == 0
    jax.tree.map(np.testing.assert_array_equal, composed["experts"], params["experts"])
    jax.tree.map(np.testing.assert_array_equal, composed["gate"], params["gate"])
    assert not any(np.any(ab["b"][:, :, 3:]) for ab in composed["shared"].values())


@pytest.mark.parametrize(("count", "learns"), [(4, True), (1, False)])
def test_fewer_recordings_than_asked_for_will_do_but_one_is_too_few(backbone, tmp_path, count, learns):
    same = one_person(tiny.make_utterances(tmp_path, count=SHOTS), [[7, 9, 11, 7]])
    assert (adapt(backbone, same, range(count))[2] > 0) == learns


def test_which_recordings_are_given_depends_on_their_names_alone():
    ids = [f"u{i}" for i in range(9)]
    given, rest = chosen(ids, 4, seed=0)
    again, _ = chosen(ids[::-1], 4, seed=0)
    assert {ids[i] for i in given} == {ids[::-1][i] for i in again} and sorted(given + rest) == list(range(9))
