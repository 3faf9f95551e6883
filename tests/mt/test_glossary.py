"""Terms mined from parallel text."""

import csv
from pathlib import Path
import random

import pytest

from jaxmoe.mt import glossary

SENTENCES = Path(__file__).parents[2] / "jaxmoe" / "data" / "demo" / "sentences.tsv"
FRAMES = [
    ("Bring the {} here.", "Bring {} her."),
    ("I lost the {} today.", "Ich habe heute {} verloren."),
    ("Where is the {} now?", "Wo ist jetzt {}?"),
    ("She sold the {} quickly.", "Sie verkaufte schnell {}."),
    ("Nobody wanted the {} anyway.", "Niemand wollte {} sowieso."),
]
NOUNS = {
    "wheelchair": "den Rollstuhl",
    "blood pressure": "den Blutdruck",
    "Ryder Cup": "den Ryder Cup",
    "tablet": "die Tablette",
    "ladder": "die Leiter",
    "speech therapist": "die Logopädin",
}


@pytest.fixture(scope="module")
def pairs():
    return [(en.format(e), de.format(d)) for e, d in NOUNS.items() for en, de in FRAMES]


@pytest.fixture(scope="module")
def demo():
    with open(SENTENCES, encoding="utf-8") as file:
        return [(row["english"], row["german"]) for row in csv.DictReader(file, delimiter="\t")]


def test_nouns_and_only_nouns_are_found(pairs):
    found = {term.english: term.german for term in glossary.mine(pairs)}
    assert found == {english: german.split(" ", 1)[1] for english, german in NOUNS.items()}


def test_repeated_prompts_are_one_observation(pairs):
    once = glossary.mine(pairs)
    assert glossary.mine(pairs * 50) == once  # seen to fail without counting sentences once: everything is certain


def test_chance_gives_no_terms(demo):
    english, german = map(list, zip(*demo, strict=True))
    for seed in range(5):
        random.Random(seed).shuffle(german)
        assert glossary.mine(zip(english, german, strict=True)) == []


def test_rare_pairs_are_not_certain(pairs):
    assert glossary.mine(pairs[:2] + pairs[-2:], min_count=2) == []
    p = {len(set(range(n))): glossary.mine(pairs, min_count=3)[0].p for n in (1,)}
    assert 0 < p[1] < 0.01


def test_a_word_with_two_translations_is_left_out(pairs):
    two = [(en, de.replace("den Rollstuhl", "das Rad") if i % 2 else de) for i, (en, de) in enumerate(pairs)]
    assert "wheelchair" not in {term.english for term in glossary.mine(two)}


def test_inflected_forms_count_as_one(pairs):
    forms = [(en.replace("tablet ", "tablets "), de.replace("Tablette", "Tabletten")) for en, de in pairs[15:18]]
    found = {t.english: t for t in glossary.mine(pairs[:15] + forms + pairs[18:])}
    assert found["tablets"].german == "Tabletten" and found["tablets"].together == 5


def test_terms_of_the_demo_corpus(demo):
    found = {term.english: term.german for term in glossary.mine(demo)}
    assert found.items() >= {"umbrella": "Regenschirm", "heating": "Heizung", "children": "Kinder"}.items()
    assert not found.keys() & {"the", "and", "my", "please", "turn", "we", "old"}
    assert len(found) < 60  # of some 1,400 words
