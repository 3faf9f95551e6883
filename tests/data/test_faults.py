"""Damaged files and killed runs, in small; benchmarks/corpus_faults.py runs a thousand."""

import os

from benchmarks import corpus_faults
from jaxmoe.data import build, checks, corpora
from jaxmoe.phases import prepare
from tests.phases.test_prepare import config_for, rejected, write_table


def test_every_damaged_file_is_used_or_set_aside_with_a_reason(tmp_path):
    found = corpus_faults.fuzz(tmp_path, audio=60, jsons=60, num_workers=1)
    assert found["audio"]["used"] > 5 and found["audio"]["unreadable"] > 5
    assert found["json"]["used"] > 9 and found["json"]["unreadable metadata"] > 5


def test_a_killed_build_ends_with_the_same_bytes(tmp_path):
    found = corpus_faults.kill(tmp_path, times=1, num_workers=1, per_speaker=8)
    assert found["killed"] == 1 and found["same_bytes"] and found["shards"] >= 8


def explode() -> None:
    """Makes a worker die as of a segmentation fault when it reads one file."""
    read = corpora.read
    checks.corpora.read = lambda name, r: os._exit(139) if r.id == "s2u1.wav" else read(name, r)


def test_a_recording_that_kills_its_reader_is_found_and_set_aside(tmp_path, monkeypatch):
    table = write_table(tmp_path, speakers=6)
    monkeypatch.setattr(build, "_end_with_parent", explode)
    prepare.run(config_for(table, num_workers=2), tmp_path / "run")
    assert rejected(tmp_path / "run") == {"s2u1.wav": "crashes the reader"}
