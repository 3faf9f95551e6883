"""The demo corpus: its sentences, and a design in which only the disorder tells the disorder."""

from collections import Counter
import csv

import numpy as np
import pytest

from jaxmoe.data import channels, simulate
from jaxmoe.data.corpora import demo

DEFAULT = {
    "train_speakers_per_voice": 3,
    "held_out_speakers_per_voice": 11,
    "train_utterances": 8,
    "validation_utterances": 2,
    "evaluation_utterances": 4,
}


@pytest.fixture(scope="module")
def sentences() -> list[dict[str, str]]:
    with open(demo.DEMO / "sentences.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def recordings():
    return list(demo.recordings(path="", seed=0, **DEFAULT))


@pytest.fixture(scope="module")
def speakers():
    voices = sorted(p.name for p in (demo.DEMO / "audio").iterdir())
    return demo.make_speakers(voices, 0, 3, 11)


def test_sentences_are_whole_distinct_and_short(sentences):
    assert len(sentences) >= 240
    assert len({s["id"] for s in sentences}) == len({s["english"].lower() for s in sentences}) == len(sentences)
    for s in sentences:
        assert s["group"] in ("shared", "own") and s["category"] and s["german"]
        assert 4 <= len(s["english"].split()) <= 14 and s["english"][-1] in ".?!" and s["german"][-1] in ".?!"


def test_no_two_sentences_share_most_of_their_words(sentences):
    words = [set(s["english"].lower().rstrip(".?!").replace(",", "").split()) for s in sentences]
    for i, a in enumerate(words):
        for b in words[:i]:
            assert len(a & b) < 0.75 * min(len(a), len(b)), (a, b)


def test_every_own_sentence_has_one_voice_and_shared_ones_have_several(sentences):
    readers = Counter(p.stem for p in (demo.DEMO / "audio").glob("*/*.opus"))
    for s in sentences:
        assert (readers[s["id"]] == 1) if s["group"] == "own" else (readers[s["id"]] >= 5), s["id"]


def test_default_sizes(recordings):
    sizes = Counter(r.split for r in recordings)
    assert 480 <= sizes["train"] <= 560 and 60 <= sizes["validation"] <= 70 and 130 <= sizes["evaluation"] <= 150
    assert len({r.speaker for r in recordings}) >= 80
    assert len({r.id for r in recordings}) == len(recordings)


def test_metadata_is_stated(recordings):
    for r in recordings:
        assert r.simulated and r.source.startswith("simulated") and r.translation_origin == "corpus"
        assert r.text and r.translation and r.prompt and r.voice and r.channel and r.sex and r.language
        assert (r.etiology, r.severity) in simulate.CONDITIONS


def test_splits_share_no_voice_and_held_out_ones_hold_every_condition(recordings):
    voices = {s: {r.voice for r in recordings if r.split == s} for s in ("train", "validation", "evaluation")}
    assert [len(v) for v in voices.values()] == [22, 3, 3]
    assert len(set.union(*voices.values())) == 28
    for split in voices:
        members = [r for r in recordings if r.split == split]
        assert {(r.etiology, r.severity) for r in members} == set(simulate.CONDITIONS)
        assert {r.sex for r in members} == {"female", "male"}


def test_conditions_are_even(speakers):
    for split in ("train", "validation", "evaluation"):
        counts = Counter((s.etiology, s.severity) for s in speakers if s.split == split)
        assert len(set(counts.values())) == 1, split


def test_most_prompts_of_held_out_voices_are_unseen(recordings):
    seen = {r.prompt for r in recordings if r.split == "train"}
    held_out = [r for r in recordings if r.split == "evaluation"]
    assert 0.5 < np.mean([r.prompt not in seen for r in held_out]) < 1


def test_channels_are_shared_and_say_nothing_of_condition_or_split(speakers):
    for split in ("train", "validation", "evaluation"):
        members = [s for s in speakers if s.split == split]
        used = Counter(s.channel for s in members)
        assert len(used) == channels.NUM_CHANNELS and max(used.values()) - min(used.values()) <= 1
        for condition in simulate.CONDITIONS:
            own = [s.channel for s in members if (s.etiology, s.severity) == condition]
            assert len(set(own)) == len(own), (split, condition)  # as many channels as speakers


def test_levels_are_independent_of_the_condition(speakers):
    """No etiology's mean level leaves the others' by more than chance (2.5 standard errors of 12 to 24 speakers)."""
    levels = np.array([s.level_dbfs for s in speakers])
    assert levels.std() > 2
    for etiology in simulate.DISORDERS:
        mine = np.array([s.etiology == etiology for s in speakers])
        error = levels.std() / np.sqrt(mine.sum())
        assert abs(levels[mine].mean() - levels[~mine].mean()) < 2.5 * error, etiology


def test_another_seed_draws_other_voices():
    voices = sorted(p.name for p in (demo.DEMO / "audio").iterdir())
    drawn = {tuple(sorted(demo.split_voices(voices, seed)["evaluation"])) for seed in range(5)}
    assert len(drawn) > 1


def test_reading_is_reproducible_and_in_range(recordings):
    r = recordings[5]
    once, again = demo.read(r), demo.read(r)
    np.testing.assert_array_equal(once, again)
    assert once.dtype == np.float32 and 0.001 < np.abs(once).max() <= 1


@pytest.mark.parametrize("field", ["train_speakers_per_voice", "evaluation_utterances"])
def test_a_count_out_of_range_is_named(field):
    with pytest.raises(ValueError, match=f"config.demo.{field}=99"):
        list(demo.recordings(path="", seed=0, **DEFAULT | {field: 99}))
