"""Grids of variants: what is shared, what is run, and the figures of their table."""

import json

import pytest

from configs.ablations import base, method
from jaxmoe import ablate, stages
from jaxmoe.eval import ablation
from jaxmoe.eval.ablation import Variant


def line(speaker: str, reference: str, hypothesis: str, seed: int = 0, gates=None, seen: bool = False) -> dict:
    about = dict(id=f"{speaker}/{reference}", speaker=speaker, seed=seed, prompt_seen=seen)
    return about | dict(reference=reference, hypothesis=hypothesis, gates=gates)


def test_figures_pool_the_seeds_and_compare_with_the_rival():
    rival = [line("a", "red green blue grey", "red green"), line("b", "old new", "old new", 1)]
    mine = [line("a", "red green blue grey", "red green blue", gates=[0.75, 0.25]), line("b", "old new", "old new", 1)]
    mine[1]["gates"] = [0.0, 1.0]
    row = ablation.row(Variant("mine", against="rival"), mine, rival)
    assert row["wer"] == pytest.approx(100 * 1 / 6) and row["by_seed"] == {0: 25.0, 1: 0.0}
    assert row["difference"] == pytest.approx(-100 / 6) and row["relative"] == pytest.approx(-50.0)
    assert row["effective_experts"] == pytest.approx([1.7548, 1.0], abs=1e-4) and row["busiest"] == [1.0, 1.0]
    text = ablation.table({"mine": row})
    assert "| mine | 16.7 |" in text and "-50 %" in text


def test_the_same_speaker_of_two_seeds_is_two_speakers():
    lines = [line("a", "red green", "red", 0), line("a", "red green", "red green", 1)]
    assert ablation.row(Variant("x"), lines, None)["ci95"] is not None  # one speaker has no interval


@pytest.mark.parametrize("grid", [method, base])
def test_every_variant_of_the_grids_is_a_configuration(grid):
    for name, variant in grid.VARIANTS.items():
        config = ablate.configured(grid.get_config(), variant, 1)
        assert config.seed == 1 and variant.system in ablate.TRAINS, name
        assert variant.against in {"", *grid.VARIANTS}
    with pytest.raises(KeyError):
        ablate.configured(method.get_config(), Variant("typo", {"joint.stepz": 3}), 0)


def test_variants_share_the_phases_they_have_in_common(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(stages.Phase, "run", lambda self, name: lambda config, workdir: ran.append(name))
    start, phases = method.get_config(), ("prepare", "embed", "cluster", "gate", "experts", "joint")
    for title, changes in (("a", {}), ("b", {"joint.balance": 0.5}), ("c", {"cluster.layer": 1})):
        config = ablate.configured(start, Variant(title, changes), 0)
        ablate.run_phases(config, tmp_path, tmp_path / title, phases)
    assert ran == [*phases, "joint", *phases[2:]]
    assert (tmp_path / "a" / "gate").resolve() == (tmp_path / "b" / "gate").resolve()
    assert (tmp_path / "a" / "gate").resolve() != (tmp_path / "c" / "gate").resolve()
    assert json.loads((tmp_path / "b" / "joint" / "phase.json").read_text())["done"]
    ran.clear()
    ablate.run_phases(config, tmp_path, tmp_path / "c", phases)
    assert ran == []
