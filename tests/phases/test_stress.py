"""The conditions of the stress phase: which clips, under what, and what of a table cannot be used."""

import json

import numpy as np
import pytest
import soundfile

from configs import quickstart
from jaxmoe.data import prepared
from jaxmoe.phases import stress
from tests import stored


def item(number, speaker, etiology="ALS"):
    known = dict.fromkeys(prepared.STRINGS, "") | dict.fromkeys(prepared.BOOLEANS, False)
    samples = (np.sin(np.arange(8000 + number) * 0.1 * (number + 1)) * 9000).astype(np.int16)
    named = {"id": f"u{number}", "speaker": speaker, "etiology": etiology, "text": f"text {number}"}
    return known | named | {"duration_s": 0.5, "audio": samples}


@pytest.fixture
def workdir(tmp_path):
    rows = [item(n, f"s{n % 3}", ("ALS", "stroke", "control")[n % 3]) for n in range(9)]
    stored.write(tmp_path / "corpus", {"evaluation": rows})
    return tmp_path


def test_utterances_are_spread_over_speakers_whatever_their_order(workdir):
    items = prepared.open_metadata(workdir, "evaluation")
    chosen = stress.spread(items, 4)
    assert {x["speaker"] for x in chosen[:3]} == {"s0", "s1", "s2"} and len(chosen) == 4
    assert [x["id"] for x in stress.spread(items[::-1], 4)] == [x["id"] for x in chosen]


def test_every_noise_at_every_level_and_silence(workdir):
    items, clips = stress.noisy_clips(workdir, 2, ("white", "babble"), (10.0, 0.0), seed=0)
    channels = [x["channel"] for x in items]
    expected = ["clean", "white 10 dB", "white 0 dB", "babble 10 dB", "babble 0 dB"]
    assert channels == expected * 2 + ["silence"] * stress.SILENT_CLIPS
    assert [x["id"] for x in items] == [c.id for c in clips] and len({c.id for c in clips}) == len(clips)
    clean, white10, white0 = (clips[n].read() for n in range(3))
    ratio = np.std(white0 - clean) / np.std(white10 - clean)
    assert ratio == pytest.approx(10**0.5, rel=0.05)
    np.testing.assert_array_equal(clips[1].read(), white10)  # read twice, the same
    assert clips[-1].text == "" and 0 < np.abs(clips[-1].read()).max() < 0.01
    assert not np.array_equal(clips[-1].read(), clips[-2].read())


def test_babble_is_left_out_where_nobody_else_speaks(tmp_path, capsys):
    stored.write(tmp_path / "corpus", {"evaluation": [item(n, "s0") for n in range(2)]})
    items, clips = stress.noisy_clips(tmp_path, 2, ("babble", "white"), (10.0,), seed=0)
    assert [x["channel"] for x in items if x["speaker"] == "s0"] == ["clean", "white 10 dB"] * 2
    assert "one speaker" in capsys.readouterr().out and all(len(clip.read()) for clip in clips)


def test_a_table_of_recordings_keeps_its_groups_and_sets_aside_what_cannot_be_used(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(16000) * 0.1) * 0.5, 16000)
    (tmp_path / "t.csv").write_text("path,words,who\na.wav,hello there,Welsh\nmissing.wav,hello,Welsh\n")
    limits = quickstart.get_config().quality
    items, clips, rejected = stress.table_clips(str(tmp_path / "t.csv"), "text=words,language=who", limits)
    assert [(x["language"], x["text"], x["speaker"]) for x in items] == [("Welsh", "hello there", "a.wav")]
    assert len(clips[0].read()) == 16000
    assert rejected[0]["id"] == "missing.wav" and rejected[0]["reason"] == "unreadable"
    json.dumps(items)


def test_an_unknown_noise_names_the_field(workdir):
    with pytest.raises(ValueError, match=r"config.stress.noises: \['hiss'\] unknown"):
        stress.noisy_clips(workdir, 1, ("hiss",), (0.0,), 0)


def test_the_phase_holds_a_table_to_the_limits_of_the_configuration(workdir):
    soundfile.write(workdir / "a.wav", np.sin(np.arange(16000) * 0.1) * 0.5, 16000)
    (workdir / "t.csv").write_text("path,text\na.wav,hello there\nmissing.wav,hello\n")
    (workdir / "corpus" / "summary.json").write_text("{}")
    config = quickstart.get_config()
    config.stress.update(systems=(), utterances=0, recordings=str(workdir / "t.csv"))
    config.quality.min_seconds = 1.5
    stress.run(config, workdir)
    rejected = [json.loads(x) for x in (workdir / "stress" / "rejected.jsonl").read_text().splitlines()]
    assert {x["id"]: x["reason"] for x in rejected} == {"a.wav": "too short", "missing.wav": "unreadable"}
