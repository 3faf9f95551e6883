"""The encoder adapted to everybody: what is kept, continued and heard by it. Real weights, real speech."""

import json

import jax
import numpy as np
import pytest

from jaxmoe import stages
from jaxmoe.checkpoint import load_params
from jaxmoe.data import lineage
from jaxmoe.eval import systems
from jaxmoe.eval.run import split_clips
from jaxmoe.model import offsets
from jaxmoe.phases import encoder, personalize
from jaxmoe.system import load_system
from jaxmoe.train.setup import load_backbone
from tests.phases import spoken

SETTINGS = {"encoder.steps": 4, "encoder.batch_size": 2, "encoder.log_every": 1, "encoder.save_every": 2}


def saved(config, workdir):
    backbone = load_backbone(config)
    like = jax.eval_shape(lambda base: offsets.init(backbone.model, base, config.encoder.rank), backbone.base)
    return load_params(workdir / "encoder" / "params", like)


def test_encoder_learns_is_continued_and_is_what_transcribe_evaluate_and_personalize_hear_with(tmp_path, monkeypatch):
    config, workdir = spoken.make_run(tmp_path, **SETTINGS, **{"joint.min_effective": 11.0})
    frozen = load_system("", workdir)
    listener = encoder.listener

    def dies(config, sound):
        heard = []

        def listen(batch):
            heard.append(batch)
            if len(heard) > 3:
                raise KeyboardInterrupt
            return listener(config, sound)(batch)

        return listen

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoder, "listener", dies)
        stages.run(config, workdir, "encoder")
    assert not (workdir / "encoder" / "params").exists()
    stages.run(config, workdir, "encoder")
    continued = saved(config, workdir)
    lines = [json.loads(line) for line in (workdir / "encoder" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [0, 1, 2, 3, 4]
    assert lines[-1]["validation_nll"] < lines[0]["validation_nll"] and lines[-1]["loss"] < lines[1]["loss"]
    assert all("routing collapses" in x["warning"] for x in lines[1:])  # more experts are asked for than there are

    (workdir / "encoder").rename(workdir / "encoder.previous")
    stages.run(config, workdir, "encoder")
    jax.tree.map(np.testing.assert_array_equal, saved(config, workdir), continued)

    adapted = load_system("", workdir)
    apart = spoken.apart(adapted, frozen)["blocks"]
    assert all(leaf > 0 for name in ("attn", "mlp1") for leaf in jax.tree.leaves(apart[name]))
    part = systems.get("moe-encoder").recogniser
    clips = split_clips(workdir, "evaluation")
    config.evaluate.temperatures = (0.0,)
    rows = {row["id"]: row for batch in part.function()(config, workdir, part, clips) for row in batch}
    assert all(sum(row["gates"]) == pytest.approx(1) for row in rows.values())
    assert {id_: row["hypothesis"] for id_, row in rows.items()} == {
        clip.id: spoken.text(adapted, tmp_path / clip.id) for clip in clips
    }

    _of_another_mixture(config, workdir, part, clips, frozen)
    config.personalize.update(shots=2, steps=1)
    personalize.run(config, workdir)
    (row,) = map(json.loads, (workdir / "personalize/evaluation/hypotheses.jsonl").read_text().splitlines())
    assert row["before"] == rows[row["id"]]["hypothesis"]
    assert workdir / "personalize/evaluation" in lineage.trained_on(workdir, "train")  # it began with the encoder's


def test_what_is_routed_by_clusters_is_told_to_leave_the_phase_out(tmp_path):
    config, workdir = spoken.make_run(tmp_path, **SETTINGS)
    config.model.routing = "given"
    with pytest.raises(ValueError, match=r"give --config.encoder.steps=0"):
        encoder.run(config, workdir)


def _of_another_mixture(config, workdir, part, clips, frozen):
    """With a mixture trained otherwise since then, transcribe leaves the encoder as it was, and the row says why."""
    record = workdir / "joint" / "phase.json"
    before = record.read_text()
    changed = json.loads(before)
    changed["settings"]["joint"]["lr"] *= 2
    record.write_text(json.dumps(changed))
    jax.tree.map(np.testing.assert_array_equal, load_system("", workdir).params, frozen.params)
    with pytest.raises(systems.NotRun, match="--phase=encoder again"):
        next(iter(part.function()(config, workdir, part, clips)))
    record.write_text(before)
