"""The loaders, on generated trees of the corpora's layouts and on what other programs write."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from jaxmoe.data import corpora, markup
from jaxmoe.data.corpora import Recording, Refused, list_corpus
from tests.data import trees


def listed(name: str, path: Path, **options: object) -> tuple[dict[str, Recording], dict[str, str]]:
    """(recordings by id, reasons by id)."""
    found = list(list_corpus(name, str(path), 0, **options))
    recordings = [x for x in found if isinstance(x, Recording)]
    assert len({r.id for r in recordings}) == len(recordings)
    return {r.id: r for r in recordings}, {x.id: x.reason for x in found if isinstance(x, Refused)}


@pytest.mark.parametrize(
    "transcript,spoken,fluent",
    [
        ("[Say:] I want tea.", "I want tea.", "I want tea."),
        ("I (uh) want (w-) tea.", "I uh want w- tea.", "I want tea."),
        ("It is {g:four} now", "It is four now", "It is four now"),
        ("a {w:3} b {u:} c {} d", "a b c d", "a b c d"),
        ("#dis She (she) left, (um) alone.", "She she left, um alone.", "She left, alone."),
        ("(cs: go on) yes {cs:okay}", "go on yes okay", "go on yes okay"),
        ("on ~T ~V tonight", "on TV tonight", "on TV tonight"),
        ("{ss:sings} la la", "sings la la", "sings la la"),
        ("[whole prompt]", "", ""),
        ("unclosed] said (this", "said (this", "said (this"),
        ("{w:99999999999999999999} x", "x", "x"),
    ],
)
def test_markup(transcript, spoken, fluent):
    assert markup.readings(transcript) == (spoken, fluent)


def test_unknown_words_are_counted_where_asked_for():
    assert markup.readings("a {w:2} b {u:}", "xx")[0] == "a xx xx b xx"


def test_sap_in_both_layouts(tmp_path):
    trees.sap_tree(tmp_path / "2025-11-02", 10, 4, lambda path, n: trees.sound(path, seed=n))
    found, refused = listed("sap", tmp_path)
    assert len(found) == 40 and not refused
    assert {r.split for r in found.values()} == {"train", "evaluation"}
    assert sum(r.split == "evaluation" for r in found.values()) == 8  # two of ten speakers
    r = found["00000002-0000-4000-8000-000000000000_0_2"]
    assert (r.text, r.transcript, r.prompt) == ("I want tea.", "I (uh) want tea.", "i (uh) want tea.")
    assert (r.etiology, r.category, r.language) == ("cerebral palsy", "Digital Assistant Commands / Home", "en-US")
    assert found["00000006-0000-4000-8000-000000000000_0_0"].language == "not en-US: English, Spanish"
    assert listed("sap", tmp_path, disfluencies=True)[0][r.id].text == "I uh want tea."
    assert len(corpora.read("sap", r)) == 8000
    one = listed("sap", tmp_path / "2025-11-02/Train")[0]
    assert len(one) == 32 and {r.split for r in one.values()} == {"train"}


def sap_folder(root: Path, number: int, files: list[dict[str, object]], **changes: object) -> Path:
    speaker = trees.sap_speaker(number, files, **changes)
    folder = root / str(speaker["Contributor ID"])
    folder.mkdir(parents=True)
    (folder / f"{folder.name}.json").write_text(json.dumps(speaker))
    return folder


def test_sap_oddities_are_told(tmp_path):
    train = tmp_path / "2025-11-02/Train"
    german = trees.sap_file("a_0_0.wav", 0)
    german["Prompt"] |= {"Translation": "Mach das Licht aus."}
    rating = {"Dimension Description": "Intelligibility", "Level": "3", "RatingDate": "2024-02-02"}
    rated = trees.sap_file("a_0_1.wav", 1, Ratings=[rating, rating | {"Level": 4}, "none"])
    odd = [german, rated, german, trees.sap_file("../../etc/passwd", 2), trees.sap_file("a_0_3.wav", 3, Prompt=None), 7]
    folder = sap_folder(train, 1, odd)
    for name in ("a_0_0.wav", "a_0_1.wav", "a_0_3.wav", "stray.wav"):
        trees.sound(folder / name)
    trees.sound(train / "nobody" / "x_0_0.wav")  # no JSON
    (train / "broken").mkdir()
    (train / "broken/broken.json").write_text('{"Files": [')
    sap_folder(train, 3, [], Files={"not": "a list"})
    found, refused = listed("sap", tmp_path)
    assert set(found) == {"a_0_0", "a_0_1", "a_0_3"}
    assert found["a_0_0"].translation == "Mach das Licht aus." and found["a_0_0"].translation_origin == "corpus"
    assert found["a_0_1"].severity == "intelligibility 4" and len(json.loads(found["a_0_1"].ratings)) == 2
    assert found["a_0_3"].text == ""  # for the quality gate to refuse
    reasons = sorted(refused.values())
    assert reasons == sorted(["duplicate file", "no metadata", "not in the metadata", *["unreadable metadata"] * 4])
    assert refused["stray (unlisted)"] == "not in the metadata"
    with pytest.raises(ValueError, match=r"no <speaker>/<speaker>\.json"):
        listed("sap", train / "nobody")


def test_of_several_sap_releases_the_newest_counts(tmp_path):
    for release, split, transcript in (("2024-04-30", "Dev", "old"), ("2025-11-02", "Train", "new")):
        file = trees.sap_file("a_0_0.wav", 0)
        file["Prompt"] |= {"Transcript": transcript}
        only = trees.sap_file(f"{transcript}_0_0.wav", 0)
        folder = sap_folder(tmp_path / release / split, 1, [file, only])
        for name in ("a_0_0.wav", only["Filename"]):
            trees.sound(folder / name)
    (tmp_path / "2025-11-02/Test").mkdir()
    sap_folder(tmp_path / "2025-11-02/Test", 2, [])
    found, refused = listed("sap", tmp_path)
    assert {id_: r.text for id_, r in found.items()} == {
        "a_0_0": "new",
        "new_0_0": "Turn off the light.",
        "old_0_0": "Turn off the light.",
    }
    assert refused == {"a_0_0": "duplicate file"}
    assert {r.split for r in found.values()} == {"train"}, "one speaker, one split: the newest release's"


def test_torgo(tmp_path):
    prompts = ("stick", "Except in the winter.", "[say Ah-P-Eee]", "input/images/a.jpg", "xxx", "a/b")
    for speaker in ("F01", "MC04"):
        session = tmp_path / speaker / "Session1"
        for n, prompt in enumerate(prompts):
            (session / "prompts").mkdir(parents=True, exist_ok=True)
            (session / "prompts" / f"{n:04d}.txt").write_text(prompt + "\n")
            for mic in ("wav_headMic", "wav_arrayMic"):
                trees.sound(session / mic / f"{n:04d}.wav")
        trees.sound(session / "wav_headMic/0099.wav")
    found, refused = listed("torgo", tmp_path)
    assert {id_: r.text for id_, r in found.items() if r.speaker == "F01"} == {
        "F01/Session1/headMic/0000": "stick",
        "F01/Session1/headMic/0001": "Except in the winter.",
    }
    r = found["MC04/Session1/headMic/0001"]
    assert (r.etiology, r.severity, r.sex) == ("control", "none", "male")
    assert found["F01/Session1/headMic/0000"].severity == "severe"
    assert sorted(refused.values()) == sorted(["no transcript"] * 8 + ["no prompt"] * 2)
    assert len(listed("torgo", tmp_path, microphone="both")[0]) == 8
    with pytest.raises(ValueError, match=r"config\.torgo\.microphone='boom', expected one of head, array, both"):
        listed("torgo", tmp_path, microphone="boom")


def test_uaspeech(tmp_path):
    xlwt = pytest.importorskip("xlwt", reason="writes .xls")
    book = xlwt.Workbook()
    book.add_sheet("Speakers").write(0, 0, "nothing")
    sheet = book.add_sheet("Word_filename")
    rows = [("WORD", "FILE NAME"), ("One", "D1"), ("Alpha", "LA"), ("command", "C1"), ("the", "CW1")]
    for i, row in enumerate([*rows, ("naturalization", "B1_UW1"), ("moustache", "B2_UW1")]):
        for j, value in enumerate(row):
            sheet.write(i, j, value)
    (tmp_path / "doc").mkdir()
    book.save(str(tmp_path / "doc/speaker_wordlist.xls"))
    for speaker, folder in (("M04", "M04"), ("CF02", "control/CF02")):
        for key in ("B1_D1", "B1_CW1", "B1_UW1", "B2_UW1", "B1_CW99"):
            for mic in ("M3", "M5"):
                trees.sound(tmp_path / "audio" / folder / f"{speaker}_{key}_{mic}.wav")
    trees.sound(tmp_path / "audio/M04/notes.wav")
    found, refused = listed("uaspeech", tmp_path)
    assert {id_: r.text for id_, r in found.items() if r.speaker == "M04"} == {
        "M04_B1_D1_M5": "One",
        "M04_B1_CW1_M5": "the",
        "M04_B1_UW1_M5": "naturalization",
        "M04_B2_UW1_M5": "moustache",
    }
    control = found["CF02_B1_D1_M5"]
    assert (control.etiology, control.sex, control.category) == ("control", "female", "digit")
    assert found["M04_B1_UW1_M5"].severity == "intelligibility very low"
    assert refused == {"M04_B1_CW99_M5": "no transcript", "CF02_B1_CW99_M5": "no transcript", "notes": "unknown name"}
    assert len(listed("uaspeech", tmp_path, microphones="all")[0]) == 16
    (tmp_path / "doc/speaker_wordlist.xls").write_text("no workbook")
    with pytest.raises(ValueError, match=r"speaker_wordlist\.xls"):
        listed("uaspeech", tmp_path)


def wav_bytes(tmp_path: Path, seed: int) -> bytes:
    trees.sound(tmp_path / "one.wav", seed=seed)
    return (tmp_path / "one.wav").read_bytes()


@pytest.fixture
def arrow_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    audio = [{"bytes": wav_bytes(tmp_path, n), "path": f"{n}.wav"} for n in range(3)]
    columns = {"audio": audio, "sentence": ["A.", "B.", "C."], "speaker_id": ["s", "s", "t"]}
    return pa.table(columns)


def test_huggingface_arrow_and_parquet(tmp_path, arrow_table):
    import pyarrow as pa
    import pyarrow.parquet

    saved = tmp_path / "saved"
    for split in ("train", "test"):  # as DatasetDict.save_to_disk writes
        (saved / split).mkdir(parents=True)
        with pa.OSFile(str(saved / split / "data-00000-of-00001.arrow"), "wb") as sink:
            with pa.ipc.new_stream(sink, arrow_table.schema) as writer:
                writer.write_table(arrow_table)
    hub = tmp_path / "hub/data"
    hub.mkdir(parents=True)
    pa.parquet.write_table(arrow_table, hub / "train-00000-of-00001.parquet")
    for path, count, splits in ((saved, 6, {"train", "evaluation"}), (tmp_path / "hub", 3, {"train"})):
        found, _ = listed("huggingface", path, columns="speaker=speaker_id")
        assert len(found) == count and {r.split for r in found.values()} == splits
        r = next(r for r in found.values() if r.text == "B.")
        assert r.speaker == "s" and len(corpora.read("huggingface", r)) == 8000
    with pytest.raises(ValueError, match="no column for text, found audio"):
        (tmp_path / "mute").mkdir()
        pa.parquet.write_table(arrow_table.select(["audio"]), tmp_path / "mute/train.parquet")
        listed("huggingface", tmp_path / "mute")


def test_huggingface_rows_are_their_own_sound(tmp_path, arrow_table):
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow_table, tmp_path / "train.parquet")
    found, _ = listed("huggingface", tmp_path)
    for n, r in enumerate(found.values()):
        (tmp_path / "x.wav").write_bytes(wav_bytes(tmp_path, n))
        np.testing.assert_array_equal(corpora.read("huggingface", r), corpora.read_file(tmp_path / "x.wav"))


def test_tables_with_stray_quotation_marks(tmp_path):
    """In tables of tabs they are text; in others one that is not closed is told, not taken for a long transcript."""
    rows = ['a.wav\t"Turn it on', "b.wav\tturn off", '"c.wav"\t"He said ""go""."', "d.wav\tgo on"]
    (tmp_path / "t.tsv").write_text("\n".join(["path\ttext", *rows]))
    found, _ = listed("manifest", tmp_path / "t.tsv")
    texts = {"a.wav": '"Turn it on', "b.wav": "turn off", "c.wav": 'He said "go".', "d.wav": "go on"}
    assert {r.id: r.text for r in found.values()} == texts
    table = tmp_path / "t.csv"
    table.write_text('path,text\na.wav,"Turn it on\nb.wav,turn off\nc.wav,go\n')
    with pytest.raises(ValueError, match=r"t.csv, line 4: .*quotation mark"):
        listed("manifest", table)
    table.write_text('path,text\na.wav,"Turn it on.\nNow!"\n')
    assert next(iter(listed("manifest", table)[0].values())).text == "Turn it on. Now!"
    table.write_bytes("path,text\na.wav,Gr\xfc\xdfe\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"t.csv: not UTF-8 .*CSV UTF-8"):
        listed("manifest", table)


def test_huggingface_audiofolder(tmp_path):
    for split in ("train", "validation"):
        trees.sound(tmp_path / split / "a.wav")
        (tmp_path / split / "metadata.csv").write_text("file_name,transcription\na.wav,Hello there.\n")
    found, _ = listed("huggingface", tmp_path)
    assert {(r.id, r.split, r.text) for r in found.values()} == {
        ("train/a.wav", "train", "Hello there."),
        ("validation/a.wav", "validation", "Hello there."),
    }
    elsewhere = tmp_path.parent / "elsewhere.wav"
    trees.sound(elsewhere)
    (tmp_path / "validation" / "metadata.csv").write_text(f"file_name,transcription\n{elsewhere},Hello there.\n")
    assert {r.id for r in listed("huggingface", tmp_path)[0].values()} == {"train/a.wav", str(elsewhere)}
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "validation")
    with pytest.raises(ValueError, match=r"found no \.arrow"):
        listed("huggingface", tmp_path)
