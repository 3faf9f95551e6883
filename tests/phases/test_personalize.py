"""One person's adaptation: it takes the steps that recordings left out of it are better for, and none otherwise."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import quickstart
from jaxmoe import stages
from jaxmoe.data.audio import SAMPLE_RATE
from jaxmoe.phases import personalize
from jaxmoe.phases.personalize import Adapter, chosen
from jaxmoe.system import load_system
from tests import tiny
from tests.phases import spoken

SHOTS = 6


SAMPLES = 3 * SAMPLE_RATE  # of each recording


@pytest.fixture(scope="module")
def backbone():
    with pytest.MonkeyPatch.context() as patch:  # the shortest window is of 4 s
        patch.setattr(tiny, "DIMS", dataclasses.replace(tiny.DIMS, n_audio_ctx=200))
        yield tiny.make_model(), tiny.make_base()


def adapt(backbone, utterances, rows, **changes):
    """Personal parameters and the steps they took."""
    config = quickstart.get_config().unlock()
    config.personalize.update({"shots": SHOTS, "steps": 12, "lr": 1e-2} | changes)
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.standard_normal(SAMPLES).astype(np.float32) for _ in rows]
    return Adapter(config, *backbone, tiny.make_params(*backbone), utterances)(rows, sounds)


def one_person(utterances, texts):
    """Utterances whose texts are these in turn."""
    tokens = [[257, 258, *texts[i % len(texts)], 256] for i in range(len(utterances))]
    return dataclasses.replace(utterances, tokens=tokens)


def test_what_recordings_have_in_common_is_learnt(backbone, tmp_path):
    same = one_person(tiny.make_utterances(tmp_path, count=SHOTS), [[7, 9, 11, 7]])
    mine, steps = adapt(backbone, same, range(SHOTS))
    assert steps > 3
    assert all(np.any(x) for path, x in mine["encoder"].items() if "conv" in path or "mlp" in path)
    assert np.any(mine["gate_bias"])


def test_rematerialised_the_same_is_learnt(backbone, tmp_path):
    same = one_person(tiny.make_utterances(tmp_path, count=SHOTS), [[7, 9, 11, 7]])
    mine, steps = adapt(backbone, same, range(SHOTS))
    again = adapt((tiny.make_model(remat=True), backbone[1]), same, range(SHOTS))
    assert again[1] == steps
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), again[0], mine)


def test_nothing_is_learnt_that_other_recordings_are_worse_for(backbone, tmp_path):
    """Recordings 1 and 4 are left out; the others say one word again and again, and never theirs."""
    texts = [[7] * 20, list(range(200, 220)), [7] * 20]
    apart = one_person(tiny.make_utterances(tmp_path, count=SHOTS), texts)
    mine, steps = adapt(backbone, apart, range(SHOTS))
    assert steps == 0
    assert not any(np.any(x) for x in jax.tree.leaves(mine))


@pytest.mark.parametrize(("count", "learns"), [(4, True), (1, False)])
def test_fewer_recordings_than_asked_for_will_do_but_one_is_too_few(backbone, tmp_path, count, learns):
    same = one_person(tiny.make_utterances(tmp_path, count=SHOTS), [[7, 9, 11, 7]])
    assert (adapt(backbone, same, range(count))[1] > 0) == learns


def test_which_recordings_are_given_depends_on_their_names_alone():
    ids = [f"u{i}" for i in range(9)]
    given, rest = chosen(ids, 4, seed=0)
    again, _ = chosen(ids[::-1], 4, seed=0)
    assert {ids[i] for i in given} == {ids[::-1][i] for i in again} and sorted(given + rest) == list(range(9))


def test_who_is_adapted_to_is_heard_so_by_transcribe(tmp_path):
    """Real weights, real speech: the phase's own texts are those of the run's system for that speaker."""
    config, workdir = spoken.make_run(tmp_path)
    config.personalize.update(shots=2, steps=3)
    personalize.run(config, workdir)
    record = {"settings": stages.settings(config, "personalize"), "done": True}
    (workdir / "personalize/phase.json").write_text(json.dumps(record))
    (row,) = map(json.loads, (workdir / "personalize/evaluation/hypotheses.jsonl").read_text().splitlines())
    found = json.loads((workdir / "personalize/figures.json").read_text())
    assert row["steps"] > 0 and found["speakers"] == 1 and found["by_etiology"].keys() == {row["etiology"]}
    mine, anybody = (load_system("", workdir, speaker) for speaker in ("evaluation", ""))
    moved = spoken.apart(mine, anybody)["blocks"]["mlp1"]
    assert moved["bias"] > 0 == moved["kernel"]
    assert (spoken.text(mine, tmp_path / row["id"]), spoken.text(anybody, tmp_path / row["id"])) == (
        row["after"], row["before"],
    )  # fmt: skip
    with pytest.raises(ValueError, match="adapted to evaluation"):
        load_system("", workdir, "somebody else")
    joint = workdir / "joint/phase.json"
    joint.write_text(joint.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"another model than .*joint holds; run --phase=personalize again"):
        load_system("", workdir, "evaluation")
