"""Sounds lost, words confused, and the bins of loudness: small cases worked by hand."""

from jaxmoe.report.errors import bins, lost_sounds, most_confused, sounds


def test_spelling_is_taken_apart_into_sounds():
    assert sounds("watching") == ["w", "a", "tch", "i", "ng"]
    assert sounds("Ship's") == ["sh", "i", "p", "s"]


def test_sounds_of_replaced_words_are_counted_by_class():
    # "cat" heard as "at": the stop c is lost, t and a are not; "dog" is missing and no replacement.
    found = lost_sounds(["the cat sat", "my dog"], ["the at sat", "my"])
    assert found["pairs"] == 1
    assert found["classes"] == {
        "stops": {"sounds": 2, "wrong": 1, "share": 50.0},
        "vowels": {"sounds": 1, "wrong": 0, "share": 0.0},
    }


def test_the_commonest_confusions_come_first_and_single_ones_not_at_all():
    references = ["red hat", "red hat", "red hat", "blue hat", "blue hat", "old"]
    hypotheses = ["bed hat", "bed hat", "bed hat", "glue hat", "glue hat", "cold"]
    assert most_confused(references, hypotheses) == [
        {"said": "red", "heard": "bed", "times": 3},
        {"said": "blue", "heard": "glue", "times": 2},
    ]


def test_bins_hold_their_lower_edge():
    expected = ["under 10 dB", "10 to 20 dB", "10 to 20 dB", "over 20 dB", "unknown"]
    assert bins([9.9, 10.0, 19.9, 20.0, None], (10.0, 20.0), "dB").tolist() == expected
