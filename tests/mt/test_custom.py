"""What DeepL is told of a corpus."""

import json

import pytest

from jaxmoe.mt import custom
from tests.mt.test_glossary import FRAMES, NOUNS

PAIRS = [(en.format(e), de.format(d)) for e, d in NOUNS.items() for en, de in FRAMES]
HELD_OUT = {"u1": ("Nobody wanted the ladder, anyway!", "Das ist anders übersetzt."), "u2": ("Ladder?", "Leiter?")}
INSTRUCTIONS = ["Translate what is meant where words are repeated."]


def build(folder, train=PAIRS, held_out=HELD_OUT, **options):
    options = {"instructions": INSTRUCTIONS, "alpha": 0.01} | options
    return custom.build(folder, train, held_out.values(), **options)


def test_files_hold_train_without_what_is_held_out(tmp_path):
    counts = build(tmp_path, [*PAIRS, *PAIRS])
    made = custom.read(tmp_path)
    assert made.memory == [pair for pair in PAIRS if "wanted the ladder" not in pair[0]]
    assert counts["left_out_as_held_out"] == 1 and counts["memory"] == len(PAIRS) - 1
    assert made.glossary["blood pressure"] == "Blutdruck"
    assert "ladder" not in made.glossary  # it is a whole held-out utterance
    assert made.instructions == INSTRUCTIONS
    custom.check_leakage(made, HELD_OUT, tmp_path)


def test_version_follows_content(tmp_path):
    build(tmp_path / "a")
    build(tmp_path / "b", reversed(PAIRS))
    build(tmp_path / "c")
    first, other, same = (custom.read(tmp_path / name) for name in "abc")
    assert first.version == same.version != other.version
    path = tmp_path / "c" / "glossary.tsv"
    path.write_text(path.read_text().replace("Blutdruck", "Druck"))
    assert custom.read(tmp_path / "c").version != first.version


@pytest.mark.parametrize("where", ["memory", "german", "glossary", "instruction"])
def test_held_out_sentences_are_refused(tmp_path, where):
    build(tmp_path)
    if where == "glossary":
        with open(tmp_path / "glossary.tsv", "a", encoding="utf-8") as file:
            file.write("ladder\tLeiter\n")
    elif where == "instruction":
        style = json.loads((tmp_path / "style.json").read_text())
        style["instructions"].append("Write 'Das ist anders' for: nobody wanted the ladder anyway.")
        (tmp_path / "style.json").write_text(json.dumps(style))
    else:
        leak = ("nobody wanted the Ladder anyway", "Neu.") if where == "memory" else ("New.", HELD_OUT["u1"][1])
        (tmp_path / "memory.tmx").write_bytes(custom.to_tmx([*PAIRS[:3], leak]))
    with pytest.raises(ValueError, match=r"held-out splits, the first is .*\(utterance u[12]\)") as caught:
        custom.check_leakage(custom.read(tmp_path), HELD_OUT, tmp_path)
    assert "wanted" not in str(caught.value)


def test_form_of_address_is_a_rule_where_the_corpus_has_one(tmp_path):
    polite = [(f"Could you hold {n}?", f"Könnten Sie {n} halten?") for n in range(12)]
    plain = [(f"Do you see {n}?", f"Siehst du {n}?") for n in range(12)]
    build(tmp_path / "a", [*PAIRS, *polite])
    build(tmp_path / "b", [*PAIRS, *plain])
    build(tmp_path / "c", [*PAIRS, *polite, *plain])
    rules = [custom.read(tmp_path / name).rules.get("style_and_tone", {}).get("formality") for name in "abc"]
    assert rules == ["use_formal_tone", "use_casual_tone", None]


def test_she_at_the_start_of_a_sentence_is_not_polite():
    assert custom.address([("She sleeps.", "Sie schläft.")] * 50, 0.01) == ({}, {"formal": 0, "informal": 0})


def test_memory_survives_odd_characters(tmp_path):
    odd = [('A <b> & "c" \u00a0é', "Ä < ü > ß 'ß' 𝄞"), ("x", "y")]
    (tmp_path / "m.tmx").write_bytes(custom.to_tmx(odd))
    assert custom.from_tmx(tmp_path / "m.tmx") == odd


def test_bad_files_are_named(tmp_path):
    build(tmp_path)
    (tmp_path / "glossary.tsv").write_text("english\tgerman\nonly one column\n")
    with pytest.raises(ValueError, match=r"glossary\.tsv:2: expected English"):
        custom.read(tmp_path)
    build(tmp_path)
    (tmp_path / "memory.tmx").write_text("<tmx><body><tu>")
    with pytest.raises(ValueError, match=r"memory\.tmx: not TMX"):
        custom.read(tmp_path)
    (tmp_path / "memory.tmx").unlink()  # as when somebody in it has been forgotten
    with pytest.raises(ValueError, match=r"has no memory\.tmx; run --phase=customize --force"):
        custom.read(tmp_path)


def test_what_deepl_would_refuse_is_refused_here(tmp_path):
    with pytest.raises(ValueError, match="11, DeepL takes 10"):
        build(tmp_path, instructions=["Be brief."] * 11)
    with pytest.raises(ValueError, match="number 1 has 301 characters"):
        build(tmp_path, instructions=["x" * 301])
    with pytest.raises(ValueError, match="nothing to customise with: 1 train pairs"):
        build(tmp_path, [HELD_OUT["u1"]])
