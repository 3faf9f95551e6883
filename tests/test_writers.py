"""File names, formats, sentences, and files that are whole or not there."""

from pathlib import Path

import pytest

from jaxmoe import writers
from jaxmoe.segments import Segment, Transcript
from jaxmoe.writers import Cue, output_stems


def stems(*paths: str, suffixes=(".txt", ".json"), below=""):
    return [p.as_posix() for p in output_stems([(Path("/" + p), Path(below)) for p in paths], suffixes)]


def test_no_two_inputs_share_an_output():
    assert stems("a/clip.wav", "a/other.wav") == ["clip", "other"]
    assert stems("a/clip.wav", below="sub") == ["sub/clip"]
    assert stems("a/clip.wav", "a/clip.mp3", "a/x.wav") == ["clip.wav", "clip.mp3", "x"]
    assert stems("a/clip.wav", "b/clip.wav") == ["a/clip", "b/clip"]
    assert stems("x/a/clip.wav", "y/a/clip.wav") == ["x/a/clip", "y/a/clip"]
    assert stems("a/Clip.wav", "a/clip.mp3") == ["Clip.wav", "clip.mp3"]
    german = [".txt", ".de.txt"]
    assert stems("a/clip.wav", "a/clip.de.wav", suffixes=german) == ["clip.wav", "clip.de.wav"]
    many = [f"{d}/{s}.{e}" for d in ("a", "b", "a/b") for s in ("clip", "clip.de", "clip.wav") for e in ("wav", "mp3")]
    outputs = [f"{stem}{suffix}".lower() for stem in stems(*many, suffixes=german) for suffix in german]
    assert len(set(outputs)) == len(outputs) == 36


def segment(start: float, end: float, text: str, flags=()) -> Segment:
    return Segment(start, end, text, [1], 0, 0.0, -0.2, 1.0, 0.01, list(flags))


def test_formats_are_those_of_openai():
    cues = [Cue(0.0, 2.5, "Hello."), Cue(3661.25, 3662.0, "a --> b")]
    assert writers.to_txt(cues) == "Hello.\na --> b\n"
    assert writers.to_srt(cues) == (
        "1\n00:00:00,000 --> 00:00:02,500\nHello.\n\n2\n01:01:01,250 --> 01:01:02,000\na -> b\n\n"
    )
    assert writers.to_vtt(cues) == (
        "WEBVTT\n\n00:00.000 --> 00:02.500\nHello.\n\n01:01:01.250 --> 01:01:02.000\na -> b\n\n"
    )


def test_translation_gets_whole_sentences():
    parts = [segment(0, 2, " We went to"), segment(2, 3, " the shop."), segment(4, 5, " Then home.")]
    cues = writers.sentences(Transcript("", parts, "en", 5.0, []))
    assert cues == [Cue(0, 3, "We went to the shop."), Cue(4, 5, "Then home.")]
    long = [segment(20 * i, 20 * i + 20, f" part {i}") for i in range(3)]
    assert len(writers.sentences(Transcript("", long, "en", 60.0, []))) == 3  # a cue is not minutes long


def test_writes_are_whole_or_nothing(tmp_path):
    path = tmp_path / "new" / "clip.txt"
    writers.write_atomically(path, "äöü\n")
    with pytest.raises(UnicodeEncodeError):
        writers.write_atomically(path, "broken \ud800")
    assert path.read_text("utf-8") == "äöü\n"
    assert [p.name for p in path.parent.iterdir()] == ["clip.txt"]
