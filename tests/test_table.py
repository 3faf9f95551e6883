"""The table of transcripts, and that it is a manifest."""

import json

from jaxmoe import table
from jaxmoe.data.corpora import manifest
from tests.data import trees


def test_transcripts_become_a_manifest(tmp_path, capsys):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    for name in ("b", "a"):
        trees.sound(tmp_path / f"{name}.wav")
        content = {"audio": str(tmp_path / f"{name}.wav"), "text": f' Say "{name}", please. ', "duration_s": 0.5}
        content |= {"flags": ["repetition"] if name == "a" else [], "translations": {"de": {"text": "Bitte."}}}
        (out / "sub" / f"{name}.json").write_text(json.dumps(content))
    (out / "other.json").write_text("[1, 2]")
    assert table.main([str(out)]) == 0
    assert "2 recordings, 1 with doubts" in capsys.readouterr().out
    found = list(manifest.recordings(str(out / "transcripts.csv")))
    assert [r.text for r in found] == ['Say "a", please.', 'Say "b", please.']
    assert found[0].path == str(tmp_path / "a.wav") and found[0].translation == "Bitte."


def test_a_corrected_table_is_not_replaced(tmp_path, capsys):
    content = {"audio": "a.wav", "text": "heard", "duration_s": 0.5, "flags": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "transcripts.csv").write_text("corrected")
    assert table.main([str(tmp_path)]) == 1 and "--force" in capsys.readouterr().err
    assert (tmp_path / "transcripts.csv").read_text() == "corrected"
    assert table.main([str(tmp_path), "--force"]) == 0 and "heard" in (tmp_path / "transcripts.csv").read_text()


def test_a_folder_without_transcripts_is_an_error(tmp_path, capsys):
    assert table.main([str(tmp_path)]) == 1
    assert "--output_format=json" in capsys.readouterr().err
