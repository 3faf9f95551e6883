"""Splits: no speaker in two of them, shares within each etiology, and nothing but seed and names decides."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from jaxmoe.data.corpora import SPLITS, Recording, Refused
from jaxmoe.data.index import Index, fingerprint, scan, shard_ranges
from jaxmoe.data.splits import Speaker, assign, only_evaluated

ETIOLOGIES = ["Parkinson's disease"] * 6 + ["ALS"] * 2 + ["stroke"] * 2


def speakers(count: int) -> list[Speaker]:
    return [Speaker(f"s{n}", ETIOLOGIES[n % 10]) for n in range(count)]


def recordings(path: str, count: int, per_speaker: int = 10) -> list[Recording]:
    return [
        Recording(f"s{n // per_speaker}-{n}", f"s{n // per_speaker}", f"Text {n}.", path,
                  etiology=ETIOLOGIES[n // per_speaker % 10])
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"sound")
    return str(tmp_path / "a.wav")


def make(tmp_path, listed, seed=0, share=0.2):
    return Index.create(tmp_path / "i.sqlite", scan(listed), seed=seed, pretrain_share=share, made_with="")


def contents(tmp_path, listed, **options):
    """Everything that an index says."""
    with contextlib.closing(make(tmp_path, listed, **options)) as index:
        rows = {s: list(index.rows(s, range(index.count(s)))) for s in SPLITS}
        return rows, list(index.refused()), index.fingerprint


def test_shares_are_met_within_each_etiology():
    split = assign(speakers(100), seed=0)
    for etiology, n in (("Parkinson's disease", 60), ("ALS", 20), ("stroke", 20)):
        for part, share in (("train", 0.8), ("validation", 0.1), ("evaluation", 0.1)):
            found = sum(s.etiology == etiology and split[s.name] == part for s in speakers(100))
            assert abs(found - share * n) <= 1, (etiology, part, found)
    assert assign(speakers(100)[::-1], seed=0) == split != assign(speakers(100), seed=1)


@pytest.mark.parametrize("count,splits", [(1, 1), (2, 1), (3, 3), (5, 3), (12, 3)])
def test_few_speakers(count, splits):
    assert len(set(assign(speakers(count), seed=0).values())) == splits


def test_unseen_etiologies_are_only_evaluated(file):
    listed = [
        *recordings(file, 100),
        Recording("t", "t", "Trained on.", file, etiology="stroke", split="train"),
        Recording("e", "e", "Evaluated.", file, etiology="stroke", split="evaluation"),
        Refused("gone", "missing file", "No such file", etiology="stroke"),
    ]
    kept = {x.id: (x, state) for x, state in only_evaluated(scan(listed), " stroke,ALS")}
    assert kept.keys() == {x.id for x in listed}
    for item in listed:
        if item.etiology == "Parkinson's disease" or isinstance(item, Refused):
            assert kept[item.id][0] == item
        elif item.split != "train":
            assert kept[item.id][0] == replace(item, split="evaluation") and kept[item.id][1]
    refused = kept["t"][0]
    assert isinstance(refused, Refused) and refused.reason == "etiology held out" and "'stroke'" in refused.detail


def test_an_etiology_that_nobody_is_evaluated_with_is_named(file):
    with pytest.raises(ValueError, match=r"with dysphonia\. The corpus has ALS, Parkinson's disease, stroke;"):
        list(only_evaluated(scan(recordings(file, 100)), "ALS,dysphonia"))
    trained = [replace(r, split="train") for r in recordings(file, 100)]
    with pytest.raises(ValueError, match=r"evaluate with ALS\..* own split trains with"):
        list(only_evaluated(scan(trained), "ALS"))


def test_official_split_wins():
    mine = [replace(s, split="evaluation") if s.name == "s3" else s for s in speakers(20)]
    split = assign(mine, seed=0)
    assert split["s3"] == "evaluation" and list(split.values()).count("evaluation") == 3


def test_a_corpus_that_is_all_train_is_split():
    assert set(assign([replace(s, split="train") for s in speakers(20)], seed=0).values()) == set(SPLITS)


def test_validation_comes_from_train_where_the_corpus_has_none():
    official = [replace(s, split="evaluation" if n % 5 == 0 else "train") for n, s in enumerate(speakers(50))]
    split = assign(official, seed=0)
    assert {s.name for s in official if s.split == "evaluation"} == {n for n, s in split.items() if s == "evaluation"}
    assert list(split.values()).count("validation") == 4  # a tenth of 40


@pytest.mark.parametrize("seed", range(20))
def test_no_speaker_leaks_whatever_is_listed(tmp_path, file, seed):
    """Random corpora: sizes, official splits, ids taken twice, orders."""
    rng = np.random.default_rng(seed)
    listed = recordings(file, int(rng.integers(1, 400)), int(rng.integers(1, 30)))
    official = {f"s{n}": str(rng.choice(SPLITS)) for n in rng.integers(0, 40, rng.integers(0, 20))}
    listed = [replace(r, split=official.get(r.speaker, "")) for r in listed]
    listed += [replace(listed[i], text="") for i in rng.integers(0, len(listed), 5)]
    listed += [replace(r, id=f"{r.id}-alone", speaker="") for r in listed[:3]]
    rows, refused, made_from = contents(tmp_path, listed, seed=seed)
    where: dict[str, set[str]] = {}
    for split, members in rows.items():
        for r, pretrain in members:
            where.setdefault(r.speaker, set()).add(split)
            assert r.split == split and r.text and (split == "train" or not pretrain)
    assert all(len(s) == 1 for s in where.values())
    assert all(where[s] == {official[s]} for s in where if s in official)
    assert len(refused) == 5 and sum(map(len, rows.values())) == len(listed) - 5
    shuffled = [listed[i] for i in rng.permutation(len(listed))]
    assert contents(tmp_path, shuffled, seed=seed) == (rows, refused, made_from)
    assert fingerprint(scan(shuffled), "") == made_from


def test_a_speaker_in_two_official_splits_is_an_error(tmp_path, file):
    listed = [replace(r, split="train" if n else "evaluation") for n, r in enumerate(recordings(file, 5))]
    with pytest.raises(ValueError, match="speaker 's0' is in the corpus's splits 'evaluation' and 'train'"):
        make(tmp_path, listed)


def test_pretrain_sample_is_exact_and_spread(tmp_path, file):
    listed = [replace(r, split="train") for r in recordings(file, 500)]
    held_out = [Recording(s, s, "Text.", file, split=s) for s in ("validation", "evaluation")]
    drawn = lambda **o: {r.id for r, pretrain in contents(tmp_path, [*listed, *held_out], **o)[0]["train"] if pretrain}
    sample = drawn()
    assert len(sample) == 100 and sample != drawn(seed=1)
    for speaker in {r.speaker for r in listed}:
        assert sum(r.id in sample for r in listed if r.speaker == speaker) == 2
    with pytest.raises(ValueError, match="pretrain_share=0"):
        make(tmp_path, listed, share=0)


def test_fingerprint_notices_a_changed_file_and_a_changed_field(tmp_path, file):
    listed = recordings(file, 3)
    before = fingerprint(scan(listed), "")
    assert fingerprint(scan([*listed[:2], replace(listed[2], text="Other.")]), "") != before
    assert fingerprint(scan(listed), "other options") != before
    (tmp_path / "a.wav").write_bytes(b"longer sound")
    assert fingerprint(scan(listed), "") != before


def test_a_missing_file_and_a_name_that_is_no_text_are_told(file):
    found = [x for x, _ in scan([Recording("a", "s", "T.", "/nowhere/a.wav"), Recording("b\udc80", "s", "T.", file)])]
    assert isinstance(found[0], Refused) and found[0].reason == "missing file"
    assert found[1].id == "b?"


@pytest.mark.parametrize("count,shards", [(0, 0), (1, 1), (16, 1), (128, 8), (4096, 8), (4097, 9), (320_000, 625)])
def test_shards_cover_all(count, shards):
    ranges = shard_ranges(count)
    assert len(ranges) == shards and [n for r in ranges for n in r] == list(range(count))
