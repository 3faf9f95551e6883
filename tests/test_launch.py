"""The command itself: every phase of the smoke configuration on real weights and audio; what it says to mistakes."""

import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from jaxmoe.data.embeddings import Embeddings
from jaxmoe.launch import default_workdir
from tests.model.checkpoints import real_weights

ROOT = Path(__file__).parents[1]


def launch(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jaxmoe.launch", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    real_weights("tiny.en")
    folder = tmp_path_factory.mktemp("run") / "smoke"
    launch("--phase=all", "--config=configs/quickstart.py:smoke", f"--workdir={folder}")
    return folder


def test_every_file_of_the_contract_is_there(workdir):
    for name in ("config.json", "corpus/rejected.jsonl", "clusters/clusters.json", "clusters/clusters.png"):
        assert (workdir / name).exists(), name
    for phase in ("gate", "experts", "joint", "encoder", "baseline"):
        lines = [json.loads(x) for x in (workdir / phase / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 4 and np.isfinite(lines[-1]["loss"]) and 0 <= lines[-1]["input_wait"] < 1
        assert list((workdir / phase / "tensorboard").iterdir())
    metrics = json.loads((workdir / "report" / "metrics.json").read_text())
    rows = {s["key"]: s for s in metrics["systems"]}
    assert [k for k, s in rows.items() if s["status"] == "run"] == ["whisper-v2", "lora", "moe", "moe-encoder"]
    assert rows["mt"]["status"].startswith("not run: ") and rows["salmonn"]["status"].startswith("not run: ")
    assert rows["moe"]["utterances"] == 6 and rows["moe"]["wer"] is not None
    assert metrics["routing"]["experts"] == 10
    assert "<html" in (workdir / "report" / "index.html").read_text()


def test_latents_are_of_the_audio_and_the_margin(workdir):
    metadata = [json.loads(x) for x in (workdir / "corpus" / "metadata_evaluation.jsonl").read_text().splitlines()]
    embeddings = Embeddings(workdir / "embeddings" / "tiny.en" / "evaluation")
    assert sorted(embeddings.ids) == sorted(x["id"] for x in metadata)
    for item in metadata:
        row = embeddings.row[item["id"]]
        assert embeddings.length(row) == -(-item["samples"] // 320) + 50  # a second of margin
        assert np.isfinite(embeddings.latents(row)).all()


def test_a_second_run_does_nothing_and_a_changed_one_only_what_depends_on_it(workdir):
    said = launch("--phase=all", "--config=configs/quickstart.py:smoke", f"--workdir={workdir}").stdout
    assert said.count("skipped, done already") == 9
    assert said.count("kept, nothing that it depends on has changed") == 5  # four in evaluate, one in stress
    said = launch(
        "--phase=report", "--config=configs/quickstart.py:smoke", f"--workdir={workdir}", "--config.report.bootstrap=50"
    ).stdout
    assert "config.report.bootstrap 100 -> 50" in said


def test_the_run_transcribes(workdir, tmp_path):
    command = [sys.executable, "-m", "jaxmoe.transcribe", str(ROOT / "tests" / "data" / "jfk.flac")]
    command += [f"--checkpoint={workdir}", f"--output_dir={tmp_path}", "--output_format=txt", "--beam_size=1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert "country" in (tmp_path / "jfk.txt").read_text().lower()


def test_a_misspelt_field_says_which_was_meant():
    done = launch("--config=configs/quickstart.py", "--config.experts.lrr=1e-4", check=False)
    assert done.returncode != 0
    assert "config.experts.lrr does not exist; did you mean config.experts.lr" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_phase_without_its_needs_says_what_to_run_first(tmp_path):
    done = launch("--phase=joint", "--config=configs/quickstart.py", f"--workdir={tmp_path}", check=False)
    assert done.returncode != 0 and "--phase=joint needs --phase=experts" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_phase():
    said = launch("--help", check=False).stdout
    assert all(name in said for name in ("prepare", "cluster", "baseline", "--config", "--workdir"))


def test_workdir_follows_the_configuration():
    assert default_workdir("configs/quickstart.py") == Path("checkpoints/quickstart")
    assert default_workdir("configs/quickstart.py:smoke") == Path("checkpoints/quickstart-smoke")
