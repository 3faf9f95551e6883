"""Recordings to text: windows, flags, the command, bad files, several recordings at once."""

from itertools import pairwise
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from jaxmoe import mt, options, transcribe, transcription, windows, writers
from jaxmoe.data.audio import SAMPLE_RATE, AudioError, load_audio, pauses
from jaxmoe.model import lora
from jaxmoe.model.moe import make_moe
from jaxmoe.mt import local, prompt
from jaxmoe.system import Adapted, Recogniser, load_system
from jaxmoe.windows import TranscribeOptions
from tests.model import tiny_llm
from tests.model.checkpoints import real_weights

JFK = Path(__file__).parent / "data" / "jfk.flac"
SAID = "And so my fellow Americans ask not what your country can do for you ask what you can do for your country"


def test_silence_needs_no_second_guess():
    options = TranscribeOptions()
    window = windows.Window([1], 0.0, avg_logprob=-0.5, compression_ratio=1.0, no_speech_prob=0.1)
    needs = lambda **changes: windows.needs_fallback(window._replace(**changes), options)
    assert not needs()
    assert needs(compression_ratio=2.5)
    assert needs(avg_logprob=-1.1)
    assert not needs(avg_logprob=-1.1, no_speech_prob=0.7)
    loop = window._replace(compression_ratio=3.0, avg_logprob=-0.1)
    vague = window._replace(avg_logprob=-1.2)
    vaguer = window._replace(avg_logprob=-1.5)
    assert windows.best([loop, vaguer, vague, vaguer], options) is vague  # the calm and likely, not the last
    assert windows.best([loop, window], options) is window


def test_temperatures_reach_one():
    assert options.temperatures(0.0, 0.2) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert options.temperatures(0.5, 0.0) == (0.5,)
    assert options.temperatures(1.5, 0.2) == (1.5,)


@pytest.fixture(scope="module")
def system() -> Recogniser:
    return load_system(real_weights("tiny.en"))


def run(system: Recogniser, sounds, **options) -> list:
    """Transcripts, or the errors, in the order of `sounds`."""
    out: list = [None] * len(sounds)

    def read(sound):
        if isinstance(sound, Exception):
            raise sound
        return sound

    sources = [lambda s=s: read(s) for s in sounds]
    for step in transcription.transcribe(system, sources, TranscribeOptions(**{"beam_size": 1} | options)):
        assert 0 <= step.done <= step.total
        out[step.index] = step.transcript or step.error or out[step.index]
    return out


def test_recordings_over_30_s_are_transcribed_whole_and_alike_in_a_batch(system):
    speech = load_audio(JFK)  # 11 s
    pause = np.zeros(SAMPLE_RATE, np.float32)
    long = np.concatenate([speech, pause] * 3)  # 36 s
    bad = AudioError("bad.wav: not a sound")
    once = dict(temperatures=(0.0,))
    both = run(system, [long, bad, speech], batch_size=2, **once)
    assert both[1] is bad
    assert both[2].text == SAID and both[2].flags == [] and both[2].duration_s == pytest.approx(11.0)
    assert both[0].text.lower().count("fellow americans") == 3
    times = [t for s in both[0].segments for t in (s.start, s.end)]
    assert times == sorted(times) and times[-1] <= 36.0
    assert {s.seek for s in both[0].segments} > {0}
    assert both[0].text == run(system, [long], **once)[0].text
    prompted = run(system, [long], condition_on_previous_text=True, **once)[0]
    assert prompted.text.lower().count("ask not") == 3


def test_long_recordings_are_cut_where_they_are_quiet():
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.standard_normal(80 * SAMPLE_RATE).astype(np.float32)
    for start, end in ((20.0, 20.6), (26.0, 26.1), (44.0, 45.0)):  # a tenth of a second is no pause
        sound[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)] *= 0.01
    cuts = [c / SAMPLE_RATE for c in pauses(sound)]
    assert 20.0 < cuts[0] < 20.6 and 44.0 < cuts[1] < 45.0
    edges = [0.0, *cuts, 80.0]
    assert all(b - a <= 30.0 for a, b in pairwise(edges))
    assert pauses(sound[: 30 * SAMPLE_RATE]) == []


def test_a_recording_is_cut_into_as_many_parts_as_are_worked_on_at_a_time():
    sound = 0.1 * np.random.default_rng(0).standard_normal(600 * SAMPLE_RATE).astype(np.float32)
    edges = lambda **more: [
        p.end / 100 for p in transcription._begin(0, sound, TranscribeOptions(cut_at_pauses=True, **more)).parts
    ]
    lengths = lambda ends: np.diff([0.0, *ends])
    ends = edges(batch_size=4)
    assert len(ends) == 4 and ends[-1] == 600.0 and np.abs(lengths(ends) - 150.0).max() < 30.0
    assert lengths(edges(batch_size=4, without_timestamps=True)).max() <= 30.0, "each is one window"
    assert 15.0 <= lengths(edges(batch_size=64))[:-1].min() <= lengths(edges(batch_size=64)).max() <= 30.0


def test_parts_side_by_side_say_what_windows_in_turn_say(system):
    long = np.concatenate([load_audio(JFK), np.zeros(SAMPLE_RATE, np.float32)] * 3)  # 36 s
    other = load_audio(JFK)
    both = run(system, [long, other], batch_size=4, cut_at_pauses=True)
    words = lambda text: text.lower().replace(",", "").replace(".", "").split()
    assert words(both[0].text) == words(SAID) * 3 and both[1].text == SAID
    times = [t for s in both[0].segments for t in (s.start, s.end)]
    assert times == sorted(times) and times[-1] <= 36.0


def test_without_timestamps_every_part_is_one_segment_and_heard_once(system):
    long = np.concatenate([load_audio(JFK), np.zeros(SAMPLE_RATE, np.float32)] * 3)  # 36 s
    plain = dict(without_timestamps=True, temperatures=(0.0,))
    said = run(system, [long], cut_at_pauses=True, **plain)[0]
    edges = [0.0, *(c / SAMPLE_RATE for c in pauses(long)), 36.0]
    assert [(s.start, s.end) for s in said.segments] == [tuple(np.round(e, 2)) for e in pairwise(edges)]
    assert all(t < system.tokenizer.timestamp_begin for s in said.segments for t in s.tokens)
    assert said.text.lower().count("fellow americans") == 3
    prompted = run(system, [long], **plain, condition_on_previous_text=True)[0]
    assert [(s.start, s.end) for s in prompted.segments] == [(0.0, 30.0), (30.0, 36.0)]
    assert prompted.text != run(system, [long], **plain)[0].text, "the text before is heard of"


def test_short_recordings_hear_only_themselves_where_30_s_are_not_wanted(system):
    quick = Recogniser(system.name, system.model, system.params, system.tokenizer, exact=False)
    assert run(quick, [load_audio(JFK)])[0].text == SAID
    assert "exactly" not in vars(quick)  # nothing was doubtful
    assert quick.window(11 * SAMPLE_RATE) < system.window(11 * SAMPLE_RATE) == 30 * SAMPLE_RATE


def test_what_comes_out_doubtful_without_padding_is_heard_again_with_it(system):
    quick = Recogniser(system.name, system.model, system.params, system.tokenizer, exact=False)
    sound = load_audio(JFK)
    doubtful = dict(beam_size=1, temperatures=(0.0,), logprob_threshold=0.0)  # whatever it is
    expected, found = run(system, [sound], **doubtful)[0], run(quick, [sound], **doubtful)[0]
    assert "exactly" in vars(quick) and found == expected


def test_doubts_are_flagged_and_nothing_is_dropped(system):
    silence = np.zeros(3 * SAMPLE_RATE, np.float32)
    quiet, stutter = run(
        system, [silence, load_audio(JFK)], temperatures=(0.0,), no_speech_threshold=0.0, logprob_threshold=0.0
    )
    assert quiet.segments and quiet.flags == ["low_confidence", "no_speech"]
    assert stutter.text == SAID and "low_confidence" in stutter.flags
    loop = windows.Window([1], 0.0, -0.1, compression_ratio=3.0, no_speech_prob=0.0)
    assert windows.doubts(loop, "", TranscribeOptions()) == ["repetition"]


@pytest.fixture(scope="module")
def adapted(system) -> Adapted:
    """Adapters that write something whatever they hear."""
    model = make_moe(system.model.dims, num_experts=0, rank=4, shared_rank=4, alpha=8.0, top_k=0, gate_hidden=0,
                     lora_targets=[r"decoder/blocks/.*"], dtype="float32", remat=False)  # fmt: skip
    params = model.init(jax.random.key(0), system.params)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    return Adapted("adapted", model, system.params, system.tokenizer, params, context="trimmed", margin_s=1.0)


def test_what_adapters_invent_on_silence_is_withheld_and_stays_in_the_json(adapted):
    room = (1e-3 * np.random.default_rng(3).standard_normal(5 * SAMPLE_RATE)).astype(np.float32)
    speech = load_audio(JFK)
    quiet, said = run(adapted, [room, speech], temperatures=(0.0,))
    assert quiet.text == "" and "no_speech" in quiet.flags and writers.cues(quiet) == []
    assert said.text and "no_speech" not in said.flags and not any(s.withheld for s in said.segments)
    kept = json.loads(writers.to_json(quiet, audio="a.wav", model="m"))["segments"]
    assert len(kept) == 1 and kept[0]["withheld"] and (kept[0]["start"], kept[0]["end"]) == (0.0, 5.0)
    written = run(adapted, [room], temperatures=(0.0,), withhold_threshold=1.0)[0]
    assert written.flags == quiet.flags and written.text == kept[0]["withheld"] and written.segments[0].withheld == ""


def test_fallback_is_the_same_whatever_is_beside_it(system):
    noise = 0.05 * np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE).astype(np.float32)
    options = {"logprob_threshold": -0.01, "no_speech_threshold": 1.1, "temperatures": (0.0, 1.0), "best_of": 2}
    alone = run(system, [noise], **options)[0]
    beside = run(system, [load_audio(JFK), noise], **options)[1]
    assert [s.text for s in alone.segments] == [s.text for s in beside.segments]


def test_command(system, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxmoe.system.load_system", lambda *args, **kwargs: system)  # loaded once for all tests
    monkeypatch.setattr("jaxmoe.compilation.enable_cache", lambda: None)  # conftest has one of its own
    sound, _ = soundfile.read(JFK, dtype="float32")
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    soundfile.write(folder / "jfk.wav", sound, SAMPLE_RATE)
    soundfile.write(folder / "jfk.ogg", np.stack([sound, sound], 1), SAMPLE_RATE)
    soundfile.write(folder / "sub" / "jfk.flac", sound, SAMPLE_RATE)
    (folder / "text.wav").write_text("no sound")
    (folder / "notes.md").write_text("not looked at")
    arguments = [str(folder), "--output_dir", str(out), "--beam_size=1"]
    assert transcribe.main(arguments) == 1
    told = capsys.readouterr()
    assert "text.wav" in told.err and "1 of 4 recordings failed" in told.err and "notes" not in told.err
    assert "And so my fellow Americans" in told.out
    made = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert made == sorted(f"{s}.{f}" for s in ("jfk.ogg", "jfk.wav", "sub/jfk") for f in ("txt", "srt", "vtt", "json"))
    content = json.loads((out / "jfk.wav.json").read_text("utf-8"))
    assert content["text"] == SAID and content["language"] == "en" and content["flags"] == []
    assert {"id", "seek", "start", "end", "text", "tokens", "avg_logprob", "flags"} <= content["segments"][0].keys()

    (out / "jfk.wav.txt").write_text("corrected by hand")
    (folder / "text.wav").unlink()
    (out / "sub" / "jfk.srt").unlink()
    assert transcribe.main([*arguments, "--skip_existing"]) == 0
    assert (out / "jfk.wav.txt").read_text() == "corrected by hand"
    assert (out / "sub" / "jfk.srt").exists()
    assert "2 of 3 recordings are done already" in capsys.readouterr().err
    assert transcribe.main([str(tmp_path / "none.wav"), "-o", str(out)]) == 1
    assert "no such file" in capsys.readouterr().err

    odd = os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.wav")  # as Windows' archives name files
    (folder / "jfk.wav").rename(odd)
    assert transcribe.main([odd, str(folder / "jfk.ogg"), "-o", str(out), "--output_format=json"]) == 0
    assert "M\ufffdller.wav" in json.loads((out / os.fsdecode(b"M\xfcller.json")).read_text("utf-8"))["audio"]


def test_translation_beside_the_transcript(system, tmp_path, capsys, monkeypatch):
    class Upper:  # stands at the seam of jaxmoe.mt.make; the engines have their own tests
        name = "upper case"

        def translate(self, texts):
            if self.broken:
                raise RuntimeError("the translator is gone")
            return [t.upper() for t in texts]

    monkeypatch.setattr("jaxmoe.system.load_system", lambda *args, **kwargs: system)
    monkeypatch.setattr("jaxmoe.compilation.enable_cache", lambda: None)
    monkeypatch.setattr("jaxmoe.mt.make", lambda *args, **kwargs: Upper())
    arguments = [str(JFK), "-o", str(tmp_path), "--beam_size=1", "--translate_to=de", "--quiet"]
    Upper.broken = True
    assert transcribe.main(arguments) == 1
    assert "jfk.flac: the translator is gone" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"jfk.txt", "jfk.srt", "jfk.vtt", "jfk.json"}
    as_json = [*arguments, "--output_format=json", "--skip_existing"]
    assert transcribe.main(as_json) == 1  # a file without German is not done
    Upper.broken = False
    assert transcribe.main(as_json) == 0 and "translations" in (tmp_path / "jfk.json").read_text()
    assert transcribe.main([*arguments, "--skip_existing"]) == 0
    assert (tmp_path / "jfk.de.txt").read_text() == SAID.upper() + "\n"
    german = json.loads((tmp_path / "jfk.json").read_text())["translations"]["de"]
    assert german["translator"] == "upper case" and german["text"] == SAID.upper()
    assert (tmp_path / "jfk.de.srt").read_text().startswith("1\n00:00:00,000 --> 00:00:10,740\nAND SO")


def test_translation_by_the_translator_that_a_run_has_tuned(system, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("jaxmoe.system.load_system", lambda *args, **kwargs: system)
    monkeypatch.setattr("jaxmoe.compilation.enable_cache", lambda: None)
    monkeypatch.setattr("jaxmoe.weights.cache_folder", lambda: tmp_path)
    monkeypatch.setattr(prompt, "SHOTS", (("Dog.", "Hund."),))
    model, run = tmp_path / "tiny.gguf", tmp_path / "run"
    tiny_llm.write_gguf(tiny_llm.model(), model)
    (run / "mt").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": {"mt": {"model": str(model)}}}))
    arguments = [str(JFK), "-o", str(tmp_path), "--beam_size=1", "--translate_to=de", "-q", "-f", "json"]

    def german(*more):
        assert transcribe.main([*arguments, f"--checkpoint={run}", *more]) == 0
        made = json.loads((tmp_path / "jfk.json").read_text("utf-8"))["translations"]["de"]
        return made["translator"], made["text"]

    plain = german()
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 1, 64, 2), "b": (3, 1, 2, 96)}
    bank = {"blocks/mlp/up": {k: 0.3 * rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}}
    lora.save(run / "mt" / local.ADAPTERS, bank, alpha=2.0, base=local.digest(model))
    tuned = german()
    assert (plain[0], tuned[0]) == ("local MT (tiny)", "fine-tuned local MT (tiny)")
    assert tuned[1] != plain[1]
    adapted = mt.make("local", str(model), adapters=run / "mt" / local.ADAPTERS)
    assert tuned[1] == adapted.translate([SAID])[0]
    (tmp_path / "other.gguf").write_bytes(model.read_bytes())
    assert german(f"--mt_model={tmp_path / 'other.gguf'}") == ("local MT (other)", plain[1])


def test_an_interruption_leaves_what_is_done(system, tmp_path, monkeypatch):
    def stop_after_one(*args):
        for number, step in enumerate(transcription_transcribe(*args)):
            yield step
            if number == 0:
                raise KeyboardInterrupt

    transcription_transcribe = transcription.transcribe
    monkeypatch.setattr("jaxmoe.system.load_system", lambda *args, **kwargs: system)
    monkeypatch.setattr("jaxmoe.compilation.enable_cache", lambda: None)
    monkeypatch.setattr("jaxmoe.transcription.transcribe", stop_after_one)
    sound, _ = soundfile.read(JFK, dtype="float32")
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, sound, SAMPLE_RATE)
    out = tmp_path / "out"
    files = [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    assert transcribe.main([*files, "-o", str(out), "--beam_size=1", "--batch_size=1", "-q", "-f", "txt"]) == 130
    assert [p.name for p in out.iterdir()] == ["a.txt"]
