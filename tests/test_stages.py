"""Phases know what they depend on, and notice when it changes."""

import json

import pytest

from configs import quickstart
from jaxmoe import stages


@pytest.fixture
def traced(monkeypatch):
    """Phases that only note that they ran."""
    ran = []
    run = lambda self, name: lambda config, workdir: ran.append(name)
    monkeypatch.setattr(stages.Phase, "run", run)
    monkeypatch.setattr(stages.Phase, "news", lambda self, name: lambda config, workdir: "")
    return ran


def test_all_runs_once_and_continues_after_the_last_that_ended(traced, tmp_path):
    config = quickstart.get_config()
    stages.run_all(config, tmp_path)
    wanted = [name for name in stages.PHASES if stages.is_wanted(config, name)]
    assert traced == wanted
    stages.run_all(config, tmp_path)
    incremental = [name for name, phase in stages.PHASES.items() if phase.incremental]
    assert incremental == ["evaluate", "stress"] and traced == [*wanted, *incremental]


def test_the_encoder_alone_can_be_adapted(traced, tmp_path):
    config = quickstart.get_config("encoder")
    stages.run_all(config, tmp_path)
    assert "encoder" in traced and "baseline" not in traced
    assert config.experts.lr == config.joint.lr == 0 and set(config.stress.systems) <= set(config.evaluate.systems)


def test_an_incremental_phase_keeps_its_folder_and_what_it_returns_runs_the_next(traced, tmp_path, monkeypatch):
    ran, results = [], {"evaluate": "a"}
    monkeypatch.setattr(stages.Phase, "run", lambda self, name: lambda c, w: ran.append(name) or results.get(name))
    config = quickstart.get_config()
    stages.run_all(config, tmp_path)
    (tmp_path / "eval" / "kept").write_text("x")
    ran.clear()
    config.evaluate.beam_size = 3
    stages.run_all(config, tmp_path)
    assert ran == ["evaluate", "stress", "report"] and (tmp_path / "eval" / "kept").exists()
    ran.clear()
    results["evaluate"] = "b"  # the same configuration, another result: weights were not at hand, and now are
    stages.run_all(config, tmp_path)
    assert ran == ["evaluate", "stress", "report"]
    stages.run(config, tmp_path, "evaluate", force=True)
    assert not (tmp_path / "eval" / "kept").exists()


def test_a_changed_field_runs_what_depends_on_it_and_keeps_the_old(traced, tmp_path, capsys):
    config = quickstart.get_config()
    stages.run_all(config, tmp_path)
    (tmp_path / "joint" / "params").write_text("old")
    traced.clear()
    config.experts.lr, before = 2e-4, config.experts.lr
    stages.run_all(config, tmp_path)
    assert traced == ["experts", "joint", "encoder", "evaluate", "stress", "report"]
    assert (tmp_path / "joint.previous" / "params").read_text() == "old"
    assert f"config.experts.lr {before} -> 0.0002" in capsys.readouterr().out


def test_a_phase_alone_refuses_what_was_made_with_other_settings(traced, tmp_path):
    config = quickstart.get_config()
    stages.run_all(config, tmp_path)
    traced.clear()
    config.cluster.layer = 3
    with pytest.raises(ValueError, match=r"needs --phase=cluster.*config.cluster.layer 2 -> 3"):
        stages.run(config, tmp_path, "gate")
    before = config.model.alpha
    config.cluster.layer, config.model.alpha = 2, 99.0
    with pytest.raises(ValueError, match=rf"--phase=evaluate needs --phase=joint.*config.model.alpha {before} -> 99.0"):
        stages.run(config, tmp_path, "evaluate")
    assert not traced


def test_other_recordings_make_all_after_them_again(traced, tmp_path, monkeypatch, capsys):
    config, results = quickstart.get_config(), {"prepare": "a"}
    run = lambda self, name: lambda c, w: traced.append(name) or results.get(name)
    monkeypatch.setattr(stages.Phase, "run", run)
    stages.run_all(config, tmp_path)
    (tmp_path / "joint" / "params").write_text("old")
    wanted = list(traced)
    stages.run(config, tmp_path, "prepare", force=True)
    traced.clear()
    stages.run_all(config, tmp_path)  # the same recordings
    assert traced == ["evaluate", "stress"]
    results["prepare"] = "b"
    stages.run(config, tmp_path, "prepare", force=True)
    traced.clear()
    with pytest.raises(ValueError, match=r"needs --phase=embed, but what .* is another: made from other recordings"):
        stages.run(config, tmp_path, "cluster")
    stages.run_all(config, tmp_path)
    assert traced == wanted[1:] and (tmp_path / "joint.previous" / "params").read_text() == "old"


@pytest.mark.parametrize(("group", "field"), [("encoder", "encoder.steps"), ("report", "report")])
def test_a_configuration_of_before_a_phase_is_told_what_it_lacks(traced, tmp_path, group, field):
    config = quickstart.get_config().unlock()
    del config[group]
    with pytest.raises(ValueError, match=f"no field {field}; copy it from configs/quickstart.py"):
        stages.run_all(config, tmp_path)
    assert not traced


def test_without_a_mixture_nothing_is_made_of_it(traced, tmp_path, capsys):
    config = quickstart.get_config()
    config.joint.steps = 0
    stages.run_all(config, tmp_path)
    assert not {"joint", "encoder"} & set(traced)
    assert "encoder: skipped, config.joint.steps turns it off" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"config.joint.steps=0 turns --phase=encoder off"):
        stages.run(config, tmp_path, "encoder")


def test_a_phase_whose_needs_are_missing_says_which(traced, tmp_path):
    with pytest.raises(FileNotFoundError, match="--phase=gate needs --phase=cluster"):
        stages.run(quickstart.get_config(), tmp_path, "gate")


def test_a_killed_phase_is_not_done_and_keeps_its_files(traced, tmp_path, monkeypatch):
    config = quickstart.get_config()

    def killed(config, workdir):
        (workdir / "corpus" / "half").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.Phase, "run", lambda self, name: killed)
    with pytest.raises(KeyboardInterrupt):
        stages.run(config, tmp_path, "prepare")
    assert not stages.is_done(config, tmp_path, "prepare")
    assert json.loads((tmp_path / "corpus" / "phase.json").read_text())["done"] is False
    monkeypatch.setattr(stages.Phase, "run", lambda self, name: lambda c, w: None)
    stages.run(config, tmp_path, "prepare")
    assert (tmp_path / "corpus" / "half").exists() and stages.is_done(config, tmp_path, "prepare")


def test_an_optional_phase_runs_when_the_configuration_wants_it(traced, tmp_path, monkeypatch, capsys):
    optional = stages.Phase("extra", ("embed",), ("gate",), wanted=("gate.steps",))
    evaluate = stages.Phase("eval", ("extra",), ("evaluate",))
    monkeypatch.setattr(stages, "PHASES", stages.PHASES | {"extra": optional, "evaluate": evaluate})
    config = quickstart.get_config()
    config.gate.steps = 0
    stages.run(config, tmp_path, "evaluate")  # does without
    without = stages.fingerprint(config, "evaluate")
    stages.run_all(config, tmp_path)
    assert "extra" not in traced and "extra: skipped, config.gate.steps turns it off" in capsys.readouterr().out
    config.gate.steps = 1
    assert stages.fingerprint(config, "evaluate") != without
    with pytest.raises(FileNotFoundError, match="needs --phase=extra"):
        stages.run(config, tmp_path, "evaluate")
